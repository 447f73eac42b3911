"""The losses of EfficientAD (sections 3.2 and 3.3), of a batch or of this process's part of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.detector.networks import FEATURE_CHANNELS, EfficientAD
from efficientad.system.distributed import gather_rows, ranks

HARD_QUANTILE = 0.999  # section 3.2


class Losses(NamedTuple):
    """The terms of one step, each a scalar float32 tensor; their sum is minimized.

    With several processes each has its share; all shares add up to the terms, and so do their gradients.
    """

    hard: Tensor  # student learns the teacher, where they differ most
    penalty: Tensor  # student predicts zero on natural images; 0 without them
    ae: Tensor  # autoencoder learns the teacher
    stae: Tensor  # student's second half learns the autoencoder


def hard_feature_loss(teacher: Tensor, student: Tensor, batch: int) -> Tensor:
    """Mean of the squared differences at or above their 0.999 quantile over batch, channels and pixels.

    Args:
        teacher, student: N x 384 x 56 x 56, float32.
        batch: images of all processes, over which the quantile is taken.
    """
    distances = (teacher - student).square().flatten()
    count = hard_feature_count(batch * teacher.shape[1:].numel())
    largest = distances.topk(min(count, len(distances)), sorted=False).values
    if ranks() == 1:
        return largest.mean()
    padded = F.pad(largest.detach(), (0, count - len(largest)), value=-1.0)  # below every square
    everywhere = gather_rows(padded).flatten()
    threshold = everywhere.topk(count, sorted=False).values.min()
    # where, not an index, for which the host would wait for the number of values
    return torch.where(largest >= threshold, largest, 0).sum() / (everywhere >= threshold).sum()


def hard_feature_count(elements: int) -> int:
    """The number of `elements` values at or above their interpolated 0.999 quantile."""
    return elements - math.ceil(HARD_QUANTILE * (elements - 1))


def compute_losses(
    model: EfficientAD,
    images: Tensor,
    augmented: Tensor,
    teacher_plain: Tensor,
    natural: Tensor | None,
    batch: int | None = None,
) -> Losses:
    """The losses of a batch, or this process's share of them.

    One pass of the student serves all three kinds of images; only its last layer differs: the first
    384 channels answer plain and natural images, the last 384 augmented ones.

    Args:
        images, augmented: N x 3 x S x S, float32 in [0, 1], the same images before and after augmentation.
        teacher_plain: N x 384 x 56 x 56, float32, the normalized teacher's output for `images`.
        natural: N x 3 x S x S natural images for the penalty, or None.
        batch: images of all processes (default: these are all).
    """
    batch = len(images) if batch is None else batch
    elements = batch * teacher_plain.shape[1:].numel()
    plain, changed = model.normalize(images), model.normalize(augmented)
    groups = [plain, changed] if natural is None else [plain, changed, model.normalize(natural)]
    hidden = model.student[:-1](torch.cat(groups)).split([len(group) for group in groups])
    last = model.student[-1]
    as_teacher, as_autoencoder = slice(None, FEATURE_CHANNELS), slice(FEATURE_CHANNELS, None)
    with torch.no_grad():
        teacher_changed = model.teacher_features(changed)
    autoencoder = model.autoencoder(changed).float()

    hard = hard_feature_loss(teacher_plain, _last_layer(last, hidden[0], as_teacher), batch)
    ae = (autoencoder - teacher_changed).square().sum() / elements
    stae = (_last_layer(last, hidden[1], as_autoencoder) - autoencoder).square().sum() / elements
    penalty = hard.new_zeros(())
    if natural is not None:
        penalty = _last_layer(last, hidden[2], as_teacher).square().sum() / elements
    return Losses(hard, penalty, ae, stae)


def _last_layer(layer: nn.Conv2d, hidden: Tensor, channels: slice) -> Tensor:
    return F.conv2d(hidden, layer.weight[channels], layer.bias[channels]).float()
