"""The losses of EfficientAD (sections 3.2 and 3.3), of a batch or of this process's part of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.detector.grid import Places
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import FEATURE_CHANNELS, apply_pdn
from efficientad.system.distributed import gather_rows, ranks, sum_over_ranks

HARD_QUANTILE = 0.999  # section 3.2


class Losses(NamedTuple):
    """The terms of one step, each a scalar float32 tensor; their sum is minimized.

    With several processes each has its share; all shares add up to the terms, and so do their gradients.
    """

    hard: Tensor  # student learns the teacher, where they differ most
    penalty: Tensor  # student predicts zero on natural images; 0 without them
    ae: Tensor  # autoencoder learns the teacher
    stae: Tensor  # student's second half learns the autoencoder


def hard_feature_loss(teacher: Tensor, student: Tensor, elements: int, counted: Tensor | None = None) -> Tensor:
    """Mean of the squared differences at or above their 0.999 quantile over batch, channels and cells.

    Args:
        teacher, student: N x 384 x h x w, float32.
        elements: differences of all processes that count, over which the quantile is taken.
        counted: bools N x 1 x h x w; None: all count.
    """
    distances = (teacher - student).square()
    if counted is not None:
        distances = torch.where(counted, distances, -1.0)  # below every square
    distances = distances.flatten()
    count = hard_feature_count(elements)
    largest = distances.topk(min(count, len(distances)), sorted=False).values
    if ranks() == 1:
        return largest.mean()
    padded = F.pad(largest.detach(), (0, count - len(largest)), value=-1.0)
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
    overview: Tensor | None = None,
    places: Places | None = None,
    counted: Tensor | None = None,
) -> Losses:
    """The losses of a batch, or this process's share of them.

    One pass of the student serves all three kinds of images; only its last layer differs: the first
    384 channels answer plain and natural images, the last 384 augmented ones.

    Args:
        images, augmented: N x 3 x h x w, float32 in [0, 1]: what the PDNs see of the images before and after their
            augmentation, whole images or windows.
        teacher_plain: N x 384 x cells, float32, the normalized teacher's output for `images`.
        natural: N x 3 x S x S natural images for the penalty, or None.
        batch: images of all processes (default: these are all).
        overview: N x 3 x 256 x 256, the augmented images as the autoencoder sees them (default: `augmented`).
        places: of the windows, for the autoencoder.
        counted: bools N x 1 x cells; None: all count.
    """
    batch = len(images) if batch is None else batch
    cells = batch * teacher_plain.shape[2:].numel() if counted is None else int(sum_over_ranks(counted.sum()))
    elements = cells * FEATURE_CHANNELS
    plain, changed = model.normalize(images), model.normalize(augmented)
    groups = [plain, changed] if natural is None else [plain, changed, model.normalize(natural)]
    hidden = _hidden_layers(model.student, groups)
    last = model.student[-1]
    as_teacher, as_autoencoder = slice(None, FEATURE_CHANNELS), slice(FEATURE_CHANNELS, None)
    with torch.no_grad():
        teacher_changed = model.teacher_features(changed)
    autoencoder = model.autoencode(changed if overview is None else model.normalize(overview), places).float()

    def mean_square(differences: Tensor) -> Tensor:
        squares = differences.square()
        return (squares if counted is None else torch.where(counted, squares, 0)).sum() / elements

    hard = hard_feature_loss(teacher_plain, _last_layer(last, hidden[0], as_teacher), elements, counted)
    ae = mean_square(autoencoder - teacher_changed)
    stae = mean_square(_last_layer(last, hidden[1], as_autoencoder) - autoencoder)
    penalty = hard.new_zeros(())
    if natural is not None:
        answer = _last_layer(last, hidden[2], as_teacher)
        penalty = answer.square().sum() / (batch * answer.shape[1:].numel())
    return Losses(hard, penalty, ae, stae)


def _hidden_layers(student: nn.Sequential, groups: list[Tensor]) -> list[Tensor]:
    """The input of the student's last layer for each group of images, in one pass for those of one size."""
    first = [group for group in groups if group.shape[1:] == groups[0].shape[1:]]
    hidden = [*apply_pdn(student[:-1], torch.cat(first)).split([len(group) for group in first])]
    return hidden + [apply_pdn(student[:-1], group) for group in groups[len(first) :]]


def _last_layer(layer: nn.Conv2d, hidden: Tensor, channels: slice) -> Tensor:
    return F.conv2d(hidden, layer.weight[channels], layer.bias[channels]).float()
