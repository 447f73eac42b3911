"""The log of a training: log.csv and training.png."""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from efficientad.system.distributed import rank, sum_over_ranks
from efficientad.system.errors import UserError
from efficientad.system.files import atomic_file
from efficientad.system.progress_bars import progress_bar
from efficientad.system.saving import CsvLog
from efficientad.training.losses import Losses

LOG_EVERY = 10  # steps; reading a loss makes the GPU wait
_FIELDS = ("step", *Losses._fields, "loss", "lr", "images_per_s", "test_auroc")


class TrainingLog:
    """Averages the losses between two readings of them; writes log.csv and shows the progress.

    A context manager for the time of the training.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self._csv, self._steps = CsvLog(path, _FIELDS), steps
        self._step = 0
        self._reset()

    def _reset(self) -> None:
        self._sums: Tensor | None = None
        self._count = 0
        self._images = 0
        self._start = time.perf_counter()

    def __enter__(self) -> TrainingLog:
        self._csv.write()
        self._bar = progress_bar(
            total=self._steps, initial=self._step, desc="Training", unit="step", disable=rank() > 0
        )
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, losses: Losses, lr: float, images: int, read: bool = False) -> None:
        """Add the losses of a step.

        Args:
            losses: this process's share.
            images: of the step, over all processes.
            read: read the losses now, even if it is not their turn.

        Raises:
            UserError: the loss is not finite.
        """
        terms = torch.stack([loss.detach() for loss in losses])
        self._sums = terms if self._sums is None else self._sums + terms
        self._count += 1
        self._images += images
        self._step += 1
        self._bar.update()
        if read or self._step % LOG_EVERY == 0 or self._step in (1, self._steps):
            self._read(lr)
            self._reset()

    def _read(self, lr: float) -> None:
        terms = (sum_over_ranks(self._sums.clone()) / self._count).tolist()
        loss = sum(terms)
        speed = self._images / (time.perf_counter() - self._start)
        self._csv.add([self._step, *(f"{term:.6f}" for term in (*terms, loss)), f"{lr:g}", f"{speed:.2f}", ""])
        if not math.isfinite(loss):
            raise self.not_finite()
        self._bar.set_description(f"Current loss: {loss:.4f}")
        self._bar.set_postfix_str(f"{speed:.1f} images/s", refresh=False)

    def add_test_auroc(self, auroc: float, images: int) -> None:
        """Print and log the AUROC on the test images after the last step, whose losses must have been read.

        Args:
            auroc: in [0, 1], or nan.
            images: how many test images there are.
        """
        if rank() == 0:
            value = "undefined" if math.isnan(auroc) else f"{100 * auroc:.2f}"
            tqdm.write(f"Step {self._step}: image AUROC {value}, with the labels of {images} test images")
            sys.stdout.flush()
        self._csv.set_last("test_auroc", f"{auroc:.6f}")
        self._reset()  # images/s are those of the training

    def not_finite(self) -> UserError:
        """The error for a training that has failed."""
        return UserError(
            f"the loss is not finite at step {self._step} ({self._csv.path}); train again with --overwrite and a "
            "smaller --lr or --precision fp32, or look for damaged training images"
        )

    def state(self) -> dict:
        """The sums since the last reading, over all processes; see `restore`.

        Raises:
            UserError: the loss is not finite.
        """
        sums = None if self._sums is None else sum_over_ranks(self._sums.clone())
        if sums is not None and not sums.isfinite().all():
            raise self.not_finite()
        return {"sums": sums, "count": self._count}

    def restore(self, state: dict, step: int, device: torch.device) -> None:
        """Continue after `step` with what `state` returned; rows of log.csv from later steps are dropped."""
        self._step, self._count = step, state["count"]
        if state["sums"] is not None:
            sums = state["sums"].to(device)
            self._sums = sums if rank() == 0 else torch.zeros_like(sums)
        self._csv.restore(step)


_TERMS = {
    "loss": "sum of all",
    "hard": "student and teacher, where they differ most",
    "ae": "autoencoder and teacher",
    "stae": "student and autoencoder",
    "penalty": "student on other images",
}
_COLOURS = ("#17212d", "#1d5cb3", "#b1560f", "#1c8a54", "#8a3fa0")
_AUROC_COLOUR = "#a3243b"
_MOST_POINTS = 1000  # of a curve; more cannot be seen
_SMOOTHED = 50  # windows in a smoothed curve


def draw_training(log_file: Path, path: Path) -> None:
    """Draw the log of a training, unless it is empty, as a PNG of about 1200 x 900 pixels.

    A long log is thinned by averaging. Each loss is drawn faintly as logged and boldly as a moving average. AUROCs
    on test images have their own panel, which makes the picture 1200 x 1140 pixels.
    """
    try:
        import matplotlib
    except ImportError:  # a picture must not make hours of training fail
        print(f"Note: no {path.name}, since matplotlib is not installed (pip install -r requirements.txt)")
        return

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot
    from matplotlib.ticker import StrMethodFormatter

    log, aurocs = _read_log(log_file)
    if not len(log["step"]):
        return
    log = _thinned(log)
    heights = (3, 1, 1) if aurocs else (3, 1)
    size = (8, 7.6 if aurocs else 6)
    figure, panels = pyplot.subplots(
        len(heights), sharex=True, figsize=size, height_ratios=heights, layout="constrained"
    )
    losses, rate = panels[0], panels[-1]
    single = "o" if len(log["step"]) == 1 else None
    for (term, label), colour in zip(_TERMS.items(), _COLOURS, strict=True):
        values = np.where(log[term] > 0, log[term], np.nan)  # nothing to draw on a logarithmic axis
        if np.isnan(values).all():
            continue
        losses.plot(log["step"], values, color=colour, alpha=0.25, linewidth=1)
        losses.plot(log["step"], _smoothed(values), color=colour, linewidth=1.8, label=label, marker=single)
    losses.set(yscale="log", ylabel="loss", title="Training loss (lower is better)")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    if aurocs:
        panels[1].plot(*zip(*aurocs, strict=True), color=_AUROC_COLOUR, marker=".")
        panels[1].set(ylabel="image AUROC", title="With the test labels: not for choosing when to stop")
    rate.plot(log["step"], log["lr"], color=_COLOURS[1], marker=single)
    rate.set(ylabel="learning rate", xlabel="step", ylim=(0, 1.1 * max(log["lr"].max(), 1e-12)))
    rate.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    rate.xaxis.get_major_locator().set_params(integer=True)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)


def _read_log(log_file: Path) -> tuple[dict[str, np.ndarray], list[tuple[int, float]]]:
    """The columns that every row has, and (step, AUROC) of the rows with one."""
    with log_file.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([float(row[name]) for row in rows]) for name in ("step", "lr", *_TERMS)}
    return columns, [(int(row["step"]), float(row["test_auroc"])) for row in rows if row.get("test_auroc")]


def _thinned(log: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means over at most _MOST_POINTS groups of neighbouring rows."""
    count = len(log["step"])
    starts = np.unique(np.linspace(0, count, min(count, _MOST_POINTS), endpoint=False).astype(int))
    sizes = np.diff([*starts, count])
    return {name: np.add.reduceat(values, starts) / sizes for name, values in log.items()}


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The moving average, without nan; at the ends the window is shorter."""
    window = np.ones(max(1, len(values) // _SMOOTHED))
    known = ~np.isnan(values)
    sums = np.convolve(np.where(known, values, 0), window, "same")
    counts = np.convolve(known, window, "same")
    return np.where(known, sums / np.maximum(counts, 1), np.nan)
