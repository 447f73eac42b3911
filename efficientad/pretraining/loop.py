"""The distillation of a teacher from an ImageNet network (paper, section 3.1 and algorithm 3): loop and state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from efficientad.detector.initialization import OutputLayerFit
from efficientad.detector.networks import FEATURE_CHANNELS, apply_pdn
from efficientad.pretraining.batches import Batches, DistillationPlan, random_windows
from efficientad.pretraining.muon import Muon
from efficientad.pretraining.targets import DistillationTarget
from efficientad.system.devices import autocast
from efficientad.system.distributed import from_first_rank, rank, ranks, sum_over_ranks
from efficientad.system.errors import UserError
from efficientad.system.progress_bars import progress_bar
from efficientad.system.random_streams import random_stream
from efficientad.system.saving import CsvLog, StateSaver
from efficientad.system.torch_files import write_atomically

EVALUATIONS = 20  # during a run; the state is saved after each
STATE_SECONDS = 300  # and at least this often
_WARM_UP_STEPS = 50  # of the cosine schedule
_LOG_COLUMNS = ("step", "minutes", "images", "loss", "explained_variance", "lr", "images_per_s")
_RIDGE = 0.05  # when the output layer is solved; see OutputLayerFit.solve
_PATCHES_PER_IMAGE = 256
_FEWEST_IMAGES = 256  # patches of one image are alike


@torch.inference_mode()
def explained_variance(
    pdn: nn.Module, pairs: list[tuple[Tensor, Tensor]], device: torch.device, precision: str
) -> float:
    """1 - mean squared error / variance of the targets, over all channels; 1 is perfect, 0 a constant answer.

    Args:
        pairs: (N x 3 x S x S images, N x 384 x P x P targets) of this process; all return the same.
    """
    error, squares, count = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
    total = torch.zeros(FEATURE_CHANNELS, dtype=torch.float64, device=device)
    for images, targets in pairs:
        targets = targets.to(device).float()
        with autocast(device, precision):
            answers = apply_pdn(pdn, images.to(device))
        error = error + (answers.float() - targets).square().sum(dtype=torch.float64)
        total = total + targets.sum(dim=(0, 2, 3), dtype=torch.float64)
        squares = squares + targets.square().sum(dtype=torch.float64)
        count = count + targets.numel() / targets.shape[1]
    error, total, squares, count = (sum_over_ranks(value) for value in (error, total, squares, count))
    variance = squares - total.square().sum() / count
    return float(1 - error / variance)


@torch.inference_mode()
def solve_output_layer(
    pdn: nn.Sequential,
    target: DistillationTarget,
    batches: Iterator[tuple[Tensor, Tensor]],
    plan: DistillationPlan,
    trained: bool,
) -> None:
    """Set the last convolution by ridge regression on the hidden layers. Not in the paper.

    For given hidden layers the best output layer has a closed form, which thousands of steps only approach.

    Args:
        batches: of Batches.from_step; as many are taken as the number of weights needs.
        trained: the weights have learnt this target: the ridge pulls towards them, not towards zero.
    """
    fit = OutputLayerFit(pdn[-1], FEATURE_CHANNELS, random_stream(plan.seed, "output layer", int(trained), rank()))
    images = max(_FEWEST_IMAGES, math.ceil(fit.patches_needed / _PATCHES_PER_IMAGE))
    steps = math.ceil(images / (plan.batch_size * ranks()))
    bar = progress_bar(total=steps, desc="Solving the output layer", unit="step", disable=rank() > 0)
    with bar:
        for _, (large, small) in zip(range(steps), batches, strict=False):
            answers = target(large, plan.precision)
            with autocast(plan.device, plan.precision):
                hidden = apply_pdn(pdn[:-1], small).float()
            fit.add(hidden, answers, _PATCHES_PER_IMAGE)
            bar.update()
    sum_over_ranks(fit.squares)
    sum_over_ranks(fit.products)
    fit.set(from_first_rank(fit.solve(_RIDGE, towards=fit.weights() if trained else 0.0)))


def _make_optimizer(pdn: nn.Module, plan: DistillationPlan) -> torch.optim.Optimizer:
    if plan.optimizer == "muon":
        return Muon(pdn.parameters(), plan.lr, plan.weight_decay)
    return torch.optim.Adam(pdn.parameters(), plan.lr, weight_decay=plan.weight_decay, fused=True)


def _not_finite() -> UserError:
    return UserError("the teacher's answers are not finite; try a smaller --lr, or --precision fp32")


class Distillation:
    """One run: the teacher, its optimizer and its progress; saved and resumed as a whole."""

    def __init__(
        self,
        pdn: nn.Sequential,
        target: DistillationTarget,
        batches: Batches,
        plan: DistillationPlan,
        output: Path,
        state_file: Path,
        settings: dict[str, str],
    ) -> None:
        """
        Args:
            output: file of the best weights; the log goes beside it.
            settings: kept in the state, for whoever resumes.
        """
        self.settings = settings
        self.pdn, self.target, self.batches, self.plan, self.output = pdn, target, batches, plan, output
        self.optimizer = _make_optimizer(pdn, plan)
        self.step = 0
        self.seconds = 0.0
        self.best = -math.inf
        self.log = CsvLog(output.with_name(f"{output.name}.csv"), _LOG_COLUMNS)
        self.saver = StateSaver(state_file, pdn, self._state, STATE_SECONDS)

    def progress(self) -> float:
        """From 0 to 1, in steps or in minutes, whichever is further; the same on every process."""
        plan = self.plan
        by_steps = self.step / plan.steps if plan.steps else 0.0
        by_time = self.seconds / 60 / plan.minutes if plan.minutes else 0.0
        if plan.minutes and ranks() > 1:
            by_time = float(from_first_rank(torch.tensor(by_time, dtype=torch.float64)))
        return min(1.0, max(by_steps, by_time))

    def learning_rate(self) -> float:
        """The rate of the next step."""
        if self.plan.schedule == "constant":
            return self.plan.lr
        annealed = 0.5 * (1 + math.cos(math.pi * self.progress()))
        return self.plan.lr * annealed * min(1.0, (self.step + 1) / _WARM_UP_STEPS)

    def run(self, held_out: list[tuple[Tensor, Tensor]], solve: bool) -> float:
        """Train to the end of the plan; returns the best explained variance of the held-out images.

        Args:
            held_out: this process's pairs of images for the teacher and targets.
            solve: begin and end with solve_output_layer.

        Raises:
            UserError: the teacher's answers are not finite; the best weights so far stay.
            Interrupted: by a signal; the state is saved.
        """
        if self.step == 0:
            self.log.write()
            if solve:
                self._solve(trained=False)
            self._evaluate(held_out)
        network = DistributedDataParallel(self.pdn) if ranks() > 1 else partial(apply_pdn, self.pdn)
        progress = self.progress()
        loss_sum, since, images = torch.zeros((), device=self.plan.device), self.step, 0
        start = last = time.perf_counter()
        bar = progress_bar(total=1000, initial=int(1000 * progress), desc="Distilling", disable=rank() > 0)
        with bar, self.saver.watching(_not_finite):
            for large, small in self.batches.from_step(self.step):
                if progress >= 1:
                    break
                loss_sum += self._train_on(network, large, small)
                self.step += 1
                images += len(small) * ranks()
                now = time.perf_counter()
                self.seconds += now - last
                last = now
                before, progress = progress, self.progress()
                bar.update(int(1000 * progress) - bar.n)
                evaluate = int(EVALUATIONS * before) < int(EVALUATIONS * progress)
                if evaluate:
                    self._evaluate(held_out, float(loss_sum) / (self.step - since), images / (now - start))
                    loss_sum, since, images = torch.zeros_like(loss_sum), self.step, 0
                    start = last = time.perf_counter()
                self.saver.after_step(self.step, save=evaluate)
        if solve:
            self._solve(trained=True)
            self._evaluate(held_out)
        return self.best

    def _train_on(self, network: Callable[[Tensor], Tensor], large: Tensor, small: Tensor) -> Tensor:
        plan = self.plan
        generator = random_stream(plan.seed, "windows", self.step, rank())
        images, targets = random_windows(small, self.target(large, plan.precision), plan.window, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with autocast(plan.device, plan.precision):
            answers = network(images)
        loss = F.mse_loss(answers.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _solve(self, trained: bool) -> None:
        solve_output_layer(self.pdn, self.target, self.batches.from_step(self.step), self.plan, trained)

    def _evaluate(
        self, held_out: list[tuple[Tensor, Tensor]], loss: float | None = None, speed: float = 0.0
    ) -> None:
        share = explained_variance(self.pdn, held_out, self.plan.device, self.plan.precision)
        lr = self.learning_rate()  # on every process, since they agree on the time
        if rank() == 0:
            seen = self.step * self.plan.batch_size * ranks()
            # No steps, no loss: before the first one, and after the output layer was solved.
            loss_text, speed_text = ("", "") if loss is None else (f"{loss:.5f}", f"{speed:.2f}")
            minutes = f"{self.seconds / 60:.2f}"
            self.log.add([self.step, minutes, seen, loss_text, f"{share:.5f}", f"{lr:.3g}", speed_text])
            shown = f"loss {loss_text}, " if loss_text else ""
            tqdm.write(f"step {self.step}: {shown}explained variance {share:.4f} of held-out images")
            if share > self.best:
                weights = {key: value.cpu().half().contiguous() for key, value in self.pdn.state_dict().items()}
                write_atomically(weights, self.output)
        if not math.isfinite(share):
            raise _not_finite()
        self.best = max(self.best, share)

    def _state(self) -> dict:
        return {
            "settings": self.settings,
            "pdn": self.pdn.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "target": self.target.fitted(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
        }

    def resume(self, state: dict) -> None:
        """Continue from a saved state."""
        self.pdn.load_state_dict(state["pdn"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.target.restore(state["target"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.log.restore(self.step)
