"""The fitted statistics of the detector: teacher channels, map quantiles, the threshold.

All are fitted on good images with every network in eval mode, before and after training. With several processes
each takes its share of the images, and all get the result that one process would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientad.data.transforms import to_unit_range
from efficientad.detector.anomaly_maps import LOCAL_MAPS, UNFITTED_QUANTILES, RawMaps, anomaly_score
from efficientad.detector.calibration import FEWEST_SCORES, calibrate
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import FEATURE_CHANNELS
from efficientad.system.devices import autocast, fitting_device
from efficientad.system.distributed import gather_objects, gather_shares, rank, ranks, sum_over_ranks
from efficientad.system.errors import UserError
from efficientad.system.progress_bars import progress_bar
from efficientad.training.cache import ImageBatch, ImageSet, TeacherFeatures

QUANTILES = (0.9, 0.995)  # mapped to 0 and 0.1 (section 3.4)
RIM_SHARE = 0.9  # chosen of 1, 0.9 and 0.8 on three data sets; see efficientad/README.md
_BATCH_SIZE = 16  # changes only speed and memory
_SMALLEST_STD = 1e-6  # a channel that never changes is not scaled


class FlatMapsError(UserError):
    """The maps of the held-out images have no spread, so nothing can be normalized."""


@torch.no_grad()
def fit_teacher_statistics(
    model: EfficientAD, images: ImageSet, indices: range, teacher_features: TeacherFeatures
) -> None:
    """Set model.teacher_mean and teacher_std: per channel, over every cell of the teacher's output that counts.

    Exact for any batch size: in float64, and each batch's variance from the deviations from its own mean, since
    E[x^2] - E[x]^2 loses its digits where the mean is large.

    Args:
        indices: of the training images in `images`.
        teacher_features: of the model's teacher, which keeps what it can.
    """
    device = model.teacher_mean.device
    place = fitting_device(device)
    total = Moments.of(torch.zeros(FEATURE_CHANNELS, 0, dtype=torch.float64, device=place))
    tiles = model.tiles()
    for batch in _batches(model, images, indices, "Computing statistics of features"):
        batch = batch.to(device)
        counted = None if batch.inspected is None else model.counted(batch.inspected)[:, 0]
        for cells in tiles:
            windows = None if len(tiles) == 1 else [cells] * len(batch.indices)
            values = teacher_features(batch.indices, batch.pixels, windows).transpose(0, 1)
            values = values.flatten(1) if counted is None else values[:, counted[(slice(None), *cells.slices)]]
            total = total.joined(Moments.of(values.to(place).double()))
    total = total.over_ranks()
    std = total.variance().sqrt()
    std = torch.where(std > _SMALLEST_STD, std, torch.ones_like(std))
    for buffer, values in ((model.teacher_mean, total.mean), (model.teacher_std, std)):
        buffer.copy_(values.float().view(1, -1, 1, 1))


class Moments(NamedTuple):
    """Number, mean and summed squared deviation of values, per channel, in float64."""

    count: Tensor  # a scalar
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of values: channels x n, float64."""
        count = torch.tensor(float(values.shape[1]), dtype=torch.float64, device=values.device)
        mean = values.sum(dim=1) / count.clamp(min=1)
        return cls(count, mean, (values - mean[:, None]).square().sum(dim=1))

    def joined(self, other: Moments) -> Moments:
        """Of these values and those of `other` (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        apart, share = other.mean - self.mean, other.count / count.clamp(min=1)
        between = apart.square() * self.count * share
        return Moments(count, self.mean + apart * share, self.deviation + other.deviation + between)

    def over_ranks(self) -> Moments:
        """Of the values of all processes."""
        count = sum_over_ranks(self.count.clone())
        mean = sum_over_ranks(self.mean * self.count) / count
        deviation = sum_over_ranks(self.deviation + self.count * (self.mean - mean).square())
        return Moments(count, mean, deviation)

    def variance(self) -> Tensor:
        """Of the values, as of a whole population."""
        return self.deviation / self.count


class HeldOutMaps(NamedTuple):
    """The maps of some held-out images before normalization, on the host."""

    raw: RawMaps
    inspected: Tensor | None  # of these images; see ImageBatch

    def to(self, device: torch.device) -> HeldOutMaps:
        """The same on another device."""
        raw = RawMaps(*(None if kind is None else kind.to(device) for kind in self.raw))
        return HeldOutMaps(raw, None if self.inspected is None else self.inspected.to(device))


@torch.inference_mode()
def map_held_out(
    model: EfficientAD, images: ImageSet, indices: range, precision: str, quiet: bool = False
) -> list[HeldOutMaps]:
    """The maps of this process's share of the held-out good images; leaves the model in eval mode.

    Args:
        indices: of the validation images in `images`.
        quiet: without a progress bar.
    """
    model.eval()
    device = model.quantiles.device
    maps = []
    for batch in _batches(model, images, indices, "Final map normalization", quiet):
        with autocast(device, precision):
            inspected = None if batch.inspected is None else batch.inspected.to(device)
            raw = model.raw_maps(to_unit_range(batch.pixels.to(device)), inspected)
        maps.append(HeldOutMaps(raw, batch.inspected).to(torch.device("cpu")))
    return maps


def fit_rim_weights(model: EfficientAD, maps: Sequence[HeldOutMaps]) -> None:
    """Set model.rim_weights, which make the rim of good images less remarkable than their inside.

    Where a patch sees mirrored pixels, or others that are not the part's, the maps of good images vary more. Each
    map is multiplied there by the ratio of its 0.995 quantiles inside and at the rim, if that is below 1, and by
    RIM_SHARE.

    Args:
        maps: of map_held_out, on every process.
    """
    parts = []
    for raw, inspected in maps:
        rim = model.rim(inspected)
        if rim is None:
            continue
        rim = rim.cpu()
        counted = torch.ones_like(rim) if inspected is None else model.counted(inspected)
        parts.append([_split(kind, rim, counted) for kind in raw.local])
    everywhere = [part for own in gather_objects(parts) for part in own]
    weights = []
    for kind in zip(*everywhere, strict=True):
        values = [torch.cat(where).numpy() for where in zip(*(pair for pair in kind if pair), strict=True)]
        ends = [np.quantile(where, QUANTILES[1]) if len(where) else 0.0 for where in values]
        ratio = float(ends[0] / ends[1]) if ends and 0 < ends[0] < ends[1] else 1.0
        weights.append(RIM_SHARE * ratio)
    model.rim_weights.copy_(torch.tensor(weights or [1.0] * LOCAL_MAPS))


def _split(raw: Tensor | None, rim: Tensor, counted: Tensor) -> tuple[Tensor, Tensor] | None:
    """The values of a map that count, inside and at the rim."""
    if raw is None:
        return None
    rim, counted = rim.expand_as(raw), counted.expand_as(raw)
    return raw[counted & ~rim], raw[counted & rim]


def fit_map_quantiles(model: EfficientAD, maps: Sequence[HeldOutMaps]) -> None:
    """Set model.rim_weights and model.quantiles from the maps of held-out good images.

    Args:
        maps: of map_held_out, on every process.

    Raises:
        FlatMapsError: on every process.
    """
    fit_rim_weights(model, maps)
    counting = []
    for held_out in maps:
        raw, inspected = held_out.to(model.quantiles.device)
        raw = model.weigh_rim(raw, inspected)
        counted = None if inspected is None else model.counted(inspected)
        values = (kind if kind is None or counted is None else kind[counted] for kind in raw.local)
        counting.append(RawMaps(*(None if kind is None else kind.cpu() for kind in values)))
    everywhere = [raw for part in gather_objects(counting) for raw in part]
    with torch.no_grad():
        model.quantiles.copy_(torch.from_numpy(map_quantiles(everywhere)))


@torch.inference_mode()
def score_held_out(model: EfficientAD, maps: Sequence[HeldOutMaps]) -> list[float]:
    """The scores of all held-out good images in their order, on every process.

    Args:
        maps: of map_held_out; the map quantiles must be fitted already.
    """
    own: list[float] = []
    for held_out in maps:
        own += anomaly_score(model.combine_maps(*held_out.to(model.quantiles.device))).tolist()
    return gather_shares(own)


def fit_calibration(model: EfficientAD, scores: Sequence[float], left_out: int, target_fpr: float) -> None:
    """Set model.calibration, or to None if there are too few scores.

    Args:
        scores: of good images, none of which had a part in its own.
        left_out: how many of them are training images.
        target_fpr: the wanted false-positive rate, in (0, 1).
    """
    enough = len(scores) >= FEWEST_SCORES
    model.calibration = calibrate(scores, target_fpr, left_out) if enough else None


@torch.inference_mode()
def score_images(
    model: EfficientAD, images: ImageSet, indices: range, precision: str, description: str, quiet: bool = False
) -> list[float]:
    """The scores of images in the order of `indices`, on every process; leaves the model in eval mode.

    Args:
        description: of the progress bar.
        quiet: without one.
    """
    model.eval()
    device = model.quantiles.device
    own: list[float] = []
    for batch in _batches(model, images, indices, description, quiet):
        batch = batch.to(device)
        with autocast(device, precision):
            own += anomaly_score(model(to_unit_range(batch.pixels), batch.inspected)).tolist()
    return gather_shares(own)


def map_quantiles(batches: list[RawMaps]) -> np.ndarray:
    """The 0.9 and 0.995 quantile of each kind of map over all pixels pooled: float32, 3 x 2.

    By numpy, since torch.quantile refuses more than 2^24 elements.

    Raises:
        FlatMapsError: the two quantiles of a map coincide.
    """
    fitted = np.array([UNFITTED_QUANTILES] * LOCAL_MAPS, dtype=np.float32)
    for row, maps in enumerate(zip(*(raw.local for raw in batches), strict=True)):
        if maps[0] is not None:
            fitted[row] = np.quantile(np.concatenate([raw.numpy().ravel() for raw in maps]), QUANTILES)
    if not (fitted[:, 1] > fitted[:, 0]).all():
        raise FlatMapsError(
            "the held-out good images give anomaly maps without any spread, so they cannot be normalized; "
            "check that the training images are real photographs and not constant or damaged"
        )
    return fitted


def _batches(
    model: EfficientAD, images: ImageSet, indices: range, description: str, quiet: bool = False
) -> Iterator[ImageBatch]:
    """Batches of this process's share of the images."""
    own = torch.tensor(indices[rank() :: ranks()])
    order = own.split(model.images_per_pass(_BATCH_SIZE)) if len(own) else []
    silent = quiet or rank() > 0
    return iter(
        progress_bar(images.batches(order), desc=description, total=len(order), unit="batch", disable=silent)
    )
