"""training.png: a training's losses, learning rate and, where it was told, AUROC over its steps, from log.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from efficientad.system.files import atomic_file

_TERMS = {
    "loss": "sum of all",
    "hard": "student and teacher, where they differ most",
    "ae": "autoencoder and teacher",
    "stae": "student and autoencoder",
    "penalty": "student on images of other things",
}
_COLOURS = ("#17212d", "#1d5cb3", "#b1560f", "#1c8a54", "#8a3fa0")
_AUROC_COLOUR = "#a3243b"
_MOST_POINTS = 1000  # of a curve; more cannot be seen
_SMOOTHED = 50  # windows in a smoothed curve


def draw_training(log_file: Path, path: Path) -> None:
    """Draw the log of a training, unless it is empty, as a PNG of about 1200 x 900 pixels.

    A long log is thinned by averaging. Each loss is drawn faintly as it was logged and boldly as a moving average.
    AUROCs on test images have a panel of their own, which makes the picture 1200 x 1140 pixels.
    """
    try:
        import matplotlib
    except ImportError:  # hours of training shall not end in an error for a picture
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
    losses.set(yscale="log", ylabel="loss", title="What the training minimizes: lower is better")
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
    """The columns that every row has, and step and AUROC where test images were looked at."""
    with log_file.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([float(row[name]) for row in rows]) for name in ("step", "lr", *_TERMS)}
    return columns, [(int(row["step"]), float(row["test_auroc"])) for row in rows if row.get("test_auroc")]


def _thinned(log: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means over groups of neighbouring rows, at most _MOST_POINTS of them."""
    count = len(log["step"])
    starts = np.unique(np.linspace(0, count, min(count, _MOST_POINTS), endpoint=False).astype(int))
    sizes = np.diff([*starts, count])
    return {name: np.add.reduceat(values, starts) / sizes for name, values in log.items()}


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The moving average; nan stays out of it, and at the ends the window is shorter."""
    window = np.ones(max(1, len(values) // _SMOOTHED))
    known = ~np.isnan(values)
    sums = np.convolve(np.where(known, values, 0), window, "same")
    counts = np.convolve(known, window, "same")
    return np.where(known, sums / np.maximum(counts, 1), np.nan)
