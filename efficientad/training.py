"""The losses of EfficientAD and the training loop. Takes a model and images, never argparse's namespace."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from efficientad.augmentation import augment, randomly_gray
from efficientad.device import autocast
from efficientad.errors import UserError
from efficientad.image_set import ImageSet
from efficientad.networks import FEATURE_CHANNELS, EfficientAD
from efficientad.teacher_answers import TeacherAnswers
from efficientad.tensors import to_unit_range

HARD_QUANTILE = 0.999  # section 3.2
NATURAL_GRAY_SHARE = 0.3  # of the penalty images
LR_DECAY_AT = 0.95  # of the steps; then the learning rate is a tenth
WARM_UP = 0.05  # of the steps, of the cosine schedule
LOG_EVERY = 10  # steps; reading a loss makes a GPU wait, so not every step is read


class Losses(NamedTuple):
    """The terms of one step, each a scalar float32 tensor. Their sum is what is minimized."""

    hard: Tensor  # student learns the teacher, where it is worst at it
    penalty: Tensor  # student stays silent on natural images; 0 without them
    ae: Tensor  # autoencoder learns the teacher
    stae: Tensor  # student's second half learns the autoencoder


@dataclass(frozen=True)
class TrainingPlan:
    """What the loop needs to know beside model and images."""

    steps: int
    batch_size: int
    lr: float  # of the student
    autoencoder_lr: float
    weight_decay: float
    schedule: str  # of the learning rate: step as in the paper, or cosine
    device: torch.device
    precision: str  # resolved: fp32, bf16 or fp16
    seed: int


def hard_feature_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean of the squared differences at or above their 0.999 quantile over batch, channels and pixels.

    Args:
        teacher, student: N x 384 x 56 x 56, float32.
    """
    distances = (teacher - student).square().flatten()
    return distances.topk(hard_feature_count(distances.numel()), sorted=False).values.mean()


def hard_feature_count(elements: int) -> int:
    """How many of `elements` values lie at or above their interpolated 0.999 quantile."""
    return elements - math.ceil(HARD_QUANTILE * (elements - 1))


def compute_losses(
    model: EfficientAD, images: Tensor, augmented: Tensor, teacher_plain: Tensor, natural: Tensor | None
) -> Losses:
    """The losses of sections 3.2 and 3.3 for one batch.

    One pass of the student serves all three kinds of images; only its last layer differs: the first
    384 channels answer plain and natural images, the last 384 augmented ones.

    Args:
        images, augmented: N x 3 x S x S, float32 in [0, 1], the same images before and after augmentation.
        teacher_plain: N x 384 x 56 x 56, float32, the normalized teacher's output for `images`.
        natural: M x 3 x S x S natural images for the penalty, or None.
    """
    plain, changed = model.normalize(images), model.normalize(augmented)
    groups = [plain, changed] if natural is None else [plain, changed, model.normalize(natural)]
    hidden = model.student[:-1](torch.cat(groups)).split([len(group) for group in groups])
    last = model.student[-1]
    as_teacher, as_autoencoder = slice(None, FEATURE_CHANNELS), slice(FEATURE_CHANNELS, None)
    with torch.no_grad():
        teacher_changed = model.teacher_features(changed)
    autoencoder = model.autoencoder(changed).float()

    hard = hard_feature_loss(teacher_plain, _last_layer(last, hidden[0], as_teacher))
    ae = F.mse_loss(autoencoder, teacher_changed)
    stae = F.mse_loss(_last_layer(last, hidden[1], as_autoencoder), autoencoder)
    penalty = hard.new_zeros(())
    if natural is not None:
        penalty = _last_layer(last, hidden[2], as_teacher).square().mean()
    return Losses(hard, penalty, ae, stae)


def _last_layer(layer: nn.Conv2d, hidden: Tensor, channels: slice) -> Tensor:
    return F.conv2d(hidden, layer.weight[channels], layer.bias[channels]).float()


def shuffled_batches(indices: range, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Tensors of indices for `steps` steps: every epoch a fresh shuffle of all, the last batch shorter."""
    taken = 0
    while taken < steps:
        shuffled = indices.start + torch.randperm(len(indices), generator=generator)
        for batch in shuffled.split(batch_size)[: steps - taken]:
            yield batch
            taken += 1


def learning_rate_factor(schedule: str, step: int, steps: int) -> float:
    """What --lr is multiplied by in a step, counted from 0.

    "step": a tenth for the last 5 % of the steps, as in the paper; "cosine": a linear rise, then down to zero.
    """
    if schedule == "step":
        return 1.0 if step < max(1, int(LR_DECAY_AT * steps)) else 0.1
    rise = min(1.0, (step + 1) / max(1, round(WARM_UP * steps)))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


class Learner:
    """Student and autoencoder of a model with what changes them, step by step."""

    def __init__(self, model: EfficientAD, plan: TrainingPlan) -> None:
        self._model, self._plan = model, plan
        self._generator = torch.Generator().manual_seed(plan.seed + 1)  # the order of the images has another one
        groups = [
            {"params": list(model.student.parameters()), "lr": plan.lr},
            {"params": list(model.autoencoder.parameters()), "lr": plan.autoencoder_lr},
        ]
        self._optimizer = torch.optim.Adam(groups, weight_decay=plan.weight_decay, fused=True)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_factor(plan.schedule, step, plan.steps)
        )
        self._scaler = torch.amp.GradScaler(plan.device.type, enabled=plan.precision == "fp16")

    def learning_rate(self) -> float:
        """Of the student, in the step to come."""
        return self._scheduler.get_last_lr()[0]

    def step(self, images: Tensor, teacher_plain: Tensor, natural: Tensor | None) -> Losses:
        """One optimizer step (algorithm 1); returns the losses before it.

        Args:
            images: N x 3 x S x S, float32 in [0, 1], on the plan's device.
            teacher_plain: the normalized teacher's output for them.
            natural: M x 3 x S x S natural images for the penalty, in colour, or None.
        """
        if natural is not None:
            natural = randomly_gray(natural, NATURAL_GRAY_SHARE, self._generator)
        augmented = augment(images, self._generator)
        with autocast(self._plan.device, self._plan.precision):
            losses = compute_losses(self._model, images, augmented, teacher_plain, natural)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(sum(losses)).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._scheduler.step()
        return losses


def train(
    model: EfficientAD,
    images: ImageSet,
    indices: range,
    answers: TeacherAnswers,
    natural_batches: Iterator[Tensor] | None,
    plan: TrainingPlan,
    log_file: Path,
) -> None:
    """Train student and autoencoder for plan.steps steps (algorithm 1), logging to a CSV file.

    Args:
        model: with teacher weights and statistics, on plan.device; left in eval mode.
        indices: of the training images in `images`.
        answers: of the model's teacher.
        natural_batches: endless uint8 batches of natural images, one for each step, or None.

    Raises:
        UserError: the loss is no longer finite; the log up to there stays.
    """
    device = plan.device
    order = shuffled_batches(indices, plan.batch_size, plan.steps, torch.Generator().manual_seed(plan.seed))
    learner = Learner(model, plan)
    model.train()
    with log_file.open("w", newline="") as file, tqdm(total=plan.steps, desc="Training", unit="step") as bar:
        log = _Log(file, bar, plan.steps)
        for batch, pixels in images.batches(order):
            plain = to_unit_range(pixels.to(device, non_blocking=True))
            natural = None
            if natural_batches is not None:
                natural = to_unit_range(next(natural_batches)[: len(plain)].to(device, non_blocking=True))
            teacher_plain = model.normalize_features(answers(batch, plain))
            lr = learner.learning_rate()
            log.add(learner.step(plain, teacher_plain, natural), lr, len(plain))
    model.eval()


class _Log:
    """Averages the losses between two looks at them, writes log.csv and the progress bar."""

    def __init__(self, file, bar: tqdm, steps: int) -> None:
        self._file = file
        self._rows = csv.writer(file)
        self._rows.writerow(["step", *Losses._fields, "loss", "lr", "images_per_s"])
        self._bar = bar
        self._steps = steps
        self._step = 0
        self._reset()

    def _reset(self) -> None:
        self._sums: Tensor | None = None
        self._count = 0
        self._images = 0
        self._start = time.perf_counter()

    def add(self, losses: Losses, lr: float, images: int) -> None:
        terms = torch.stack([loss.detach() for loss in losses])
        self._sums = terms if self._sums is None else self._sums + terms
        self._count += 1
        self._images += images
        self._step += 1
        self._bar.update()
        if self._step % LOG_EVERY == 0 or self._step in (1, self._steps):
            self._write(lr)
            self._reset()

    def _write(self, lr: float) -> None:
        terms = (self._sums / self._count).tolist()
        loss = sum(terms)
        speed = self._images / (time.perf_counter() - self._start)
        self._rows.writerow(
            [self._step, *(f"{term:.6f}" for term in terms), f"{loss:.6f}", f"{lr:g}", f"{speed:.2f}"]
        )
        self._file.flush()
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is not finite at step {self._step} ({self._file.name}); try a smaller --lr, "
                "--precision fp32, or look for damaged training images"
            )
        self._bar.set_description(f"Current loss: {loss:.4f}")
        self._bar.set_postfix_str(f"{speed:.1f} images/s", refresh=False)
