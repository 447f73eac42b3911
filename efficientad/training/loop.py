"""The training loop, and its state between two steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from efficientad.data.transforms import Changes, augment, draw_changes, to_unit_range, where_gray
from efficientad.detector.grid import Places
from efficientad.detector.model import EfficientAD
from efficientad.system.cuda_graph import CudaGraphs, GraphedStep
from efficientad.system.devices import autocast
from efficientad.system.distributed import gather_objects, own_part, rank, ranks, sum_over_ranks
from efficientad.system.random_streams import random_stream
from efficientad.system.saving import StateSaver
from efficientad.training.cache import ImageBatch, ImageSet, TeacherFeatures
from efficientad.training.log import TrainingLog
from efficientad.training.losses import Losses, compute_losses
from efficientad.training.options import TrainingPlan
from efficientad.training.progress import Progress
from efficientad.training.windows import Windows, see_whole, see_windows

NATURAL_GRAY_SHARE = 0.3  # of the penalty images
LR_DECAY_AT = 0.95  # of the steps; then the learning rate is a tenth


def shuffled_batches(indices: range, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Tensors of indices for `steps` steps: every epoch all of them in a new order, its last batch shorter."""
    taken = 0
    while taken < steps:
        shuffled = indices.start + torch.randperm(len(indices), generator=generator)
        for batch in shuffled.split(batch_size)[: steps - taken]:
            yield batch
            taken += 1


def learning_rate(lr: float, step: int, steps: int) -> float:
    """The rate of a step, counted from 0: a tenth of `lr` for the last 5 % of the steps, as in the paper."""
    return lr if step < max(1, int(LR_DECAY_AT * steps)) else 0.1 * lr


class Learner:
    """Student and autoencoder of a model, and what trains them step by step."""

    def __init__(self, model: EfficientAD, plan: TrainingPlan) -> None:
        self._model, self._plan = model, plan
        self.steps_done = 0
        self._generator = random_stream(plan.seed, "augmentation")
        parameters = [*model.student.parameters(), *model.autoencoder.parameters()]
        self._optimizer = torch.optim.Adam(parameters, lr=plan.lr, weight_decay=plan.weight_decay, fused=True)
        self._scaler = torch.amp.GradScaler(plan.device.type, enabled=plan.precision == "fp16")
        self._batch = 0  # images of this step, over all processes
        # Untried with the gradient scaler of fp16 and with several processes.
        self._graphed = plan.device.type == "cuda" and plan.cuda_graph and plan.precision != "fp16" and ranks() == 1
        self._run = GraphedStep(self._learn, CudaGraphs(plan.device)) if self._graphed else self._learn
        self._lr_on_device = torch.zeros((), device=plan.device)

    def learning_rate(self) -> float:
        """The rate of the next step."""
        return learning_rate(self._plan.lr, self.steps_done, self._plan.steps)

    def draw_windows(self, windows: Windows, batch: int) -> Tensor:
        """Places for the windows of the next step; every process draws those of the whole batch."""
        return windows.draw(batch, self._generator)

    def step(
        self,
        images: Tensor,
        teacher_plain: Tensor,
        natural: Tensor | None,
        batch: int,
        overview: Tensor | None = None,
        places: Places | None = None,
        counted: Tensor | None = None,
    ) -> Losses:
        """One optimizer step (algorithm 1); returns this process's share of the losses before it.

        Every process draws the changes of the whole batch, so that they are the same for any number of processes.

        Args:
            images: N x 3 x h x w, float32 in [0, 1], on the plan's device: this process's part of a batch, or
                windows of it.
            teacher_plain: the normalized teacher's output for them.
            natural: N x 3 x S x S natural or drawn images for the penalty, in colour, or None.
            batch: images of the step, over all processes.
            overview, places, counted: see compute_losses.
        """
        own, device = own_part(batch), self._plan.device
        gray = () if natural is None else (torch.rand(batch, generator=self._generator) < NATURAL_GRAY_SHARE,)
        drawn = (*draw_changes(batch, self._generator), *gray)
        choices = (values[own].to(device, non_blocking=device.type == "cuda") for values in drawn)
        lr = self.learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr_on_device.fill_(lr) if self._graphed else lr  # a graph reads it from there
        self._batch = batch
        kind, factor, gray = (*choices, None)[:3]
        inputs = (images, teacher_plain, kind, factor, gray, natural, overview, *(places or (None,) * 3))
        # How many cells count is known on the host alone, so a graph cannot hold it
        losses = self._run(*inputs) if counted is None else self._learn(*inputs, counted)
        self.steps_done += 1
        return Losses(*losses.unbind())

    def _learn(
        self,
        images: Tensor,
        teacher_plain: Tensor,
        kind: Tensor,
        factor: Tensor,
        gray: Tensor | None,
        natural: Tensor | None,
        overview: Tensor | None,
        rows: Tensor | None,
        columns: Tensor | None,
        inside: Tensor | None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """The part of a step that runs on the device alone; returns the four losses."""
        changes = Changes(kind, factor)
        augmented = augment(images, changes, overview)
        if overview is not None:
            overview = augment(overview, changes)
        if natural is not None:
            natural = where_gray(natural, gray)
        places = None if rows is None else Places(rows, columns, inside)
        with autocast(self._plan.device, self._plan.precision):
            losses = compute_losses(
                self._model, images, augmented, teacher_plain, natural, self._batch, overview, places, counted
            )
        recorded = self._plan.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        for group in self._optimizer.param_groups:
            group["capturable"] = recorded  # Adam needs it to be recorded, and warns about it otherwise
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(sum(losses)).backward()
        self._add_gradients()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return torch.stack([loss.detach() for loss in losses])

    def _add_gradients(self) -> None:
        """Replace the gradients of each process's share of the loss by their sum."""
        if ranks() == 1:
            return
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"]]
        whole = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = whole.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def state(self) -> dict:
        """Everything the next step depends on beside the model; called on all processes."""
        on_gpu = self._plan.device.type == "cuda"
        noise = (torch.get_rng_state(), torch.cuda.get_rng_state(self._plan.device) if on_gpu else None)
        return {
            "step": self.steps_done,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "augmentation": self._generator.get_state(),
            "noise": gather_objects(noise),  # dropout of each process
        }

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.steps_done = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._generator.set_state(state["augmentation"])
        on_cpu, on_gpu = state["noise"][rank()]
        torch.set_rng_state(on_cpu)
        if on_gpu is not None and self._plan.device.type == "cuda":
            torch.cuda.set_rng_state(on_gpu, self._plan.device)


class Training:
    """One run of the loop (algorithm 1), saved and resumed as a whole."""

    def __init__(
        self,
        model: EfficientAD,
        images: ImageSet,
        indices: range,
        teacher_features: TeacherFeatures,
        plan: TrainingPlan,
        log_file: Path,
        state_file: Path,
        about: dict | None = None,
        save_every: float = math.inf,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            model: with teacher weights and statistics, on plan.device.
            indices: of the training images in `images`.
            teacher_features: of the model's teacher.
            about: added to the state, for whoever resumes.
            save_every: seconds; the state is also saved at the beginning, at the end and on a signal.
            progress: of this model, reported on the way; changes nothing.
        """
        self._model, self._images, self._indices, self._teacher_features = model, images, indices, teacher_features
        self._plan, self._about, self._progress = plan, about or {}, progress
        self._learner = Learner(model, plan)
        self._log = TrainingLog(log_file, plan.steps)
        self._saver = StateSaver(state_file, model, self._state, save_every)
        self._batch = plan.batch_size * ranks()
        self._windows = Windows.of(model.grid, model.margin, plan.window)

    def run(self, penalty_batches: Iterator[Tensor] | None) -> None:
        """Train student and autoencoder to the end of the plan; leaves the model in eval mode.

        Args:
            penalty_batches: endless uint8 batches of this process's penalty images, from the next step on, or None.

        Raises:
            UserError: the loss is not finite; the log up to there and the last saved state stay.
            Interrupted: by a signal; the state is saved.
        """
        plan = self._plan
        order = shuffled_batches(self._indices, self._batch, plan.steps, random_stream(plan.seed, "order"))
        order = itertools.islice(order, self._learner.steps_done, None)
        self._model.train()
        with self._saver.watching(self._log.not_finite), self._log:
            self._saver.save()
            for images in self._images.batches(batch[own_part(len(batch))] for batch in order):
                self._train_on(images, penalty_batches)
                if self._progress_is_due():
                    self._log.add_test_auroc(self._progress.auroc(), len(self._progress.test_images))
                self._saver.after_step(self._learner.steps_done)
            self._saver.save()
        self._model.eval()

    def _train_on(self, images: ImageBatch, penalty_batches: Iterator[Tensor] | None) -> None:
        device, batch = self._plan.device, self._images_of_step()
        images = images.to(device)
        natural = None
        if penalty_batches is not None:
            natural = next(penalty_batches)[: len(images.indices)]
            natural = to_unit_range(natural.to(device, non_blocking=device.type == "cuda"))
        if self._windows is None:
            seen = see_whole(self._model, images)
        else:
            drawn = self._learner.draw_windows(self._windows, batch)[own_part(batch)]
            seen = see_windows(self._model, images, self._windows, drawn)
        answers = self._teacher_features(images.indices, images.pixels, seen.windows)
        teacher_plain = self._model.normalize_features(answers)
        lr = self._learner.learning_rate()
        losses = self._learner.step(
            seen.images, teacher_plain, natural, batch, seen.overview, seen.places, seen.counted
        )
        self._log.add(losses, lr, batch, read=self._progress_is_due())

    def _progress_is_due(self) -> bool:
        return self._progress is not None and self._progress.is_due(self._learner.steps_done, self._plan.steps)

    def _images_of_step(self) -> int:
        """The images of the next step, over all processes: as shuffled_batches gives them."""
        count = len(self._indices)
        done = self._learner.steps_done % math.ceil(count / self._batch) * self._batch
        return min(self._batch, count - done)

    def _state(self) -> dict:
        return {
            **self._about,
            "model": self._model.state_dict(),
            "teacher_features": self._teacher_features.state(),
            "log": self._log.state(),
            **self._learner.state(),
        }

    def restore(self, state: dict) -> None:
        """Continue from a saved state."""
        self._model.load_state_dict(state["model"])
        self._teacher_features.restore(state["teacher_features"])
        self._learner.restore(state)
        self._log.restore(state["log"], state["step"], self._plan.device)
