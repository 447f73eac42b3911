"""The fitted statistics of the detector: teacher channels, map quantiles, the threshold.

All are fitted on good images with every network in eval mode, before and after training. With several processes
each takes its share of the images, and all get the result that one process would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from efficientad.data.transforms import to_unit_range
from efficientad.detector.calibration import FEWEST_SCORES, calibrate
from efficientad.detector.networks import FEATURE_CHANNELS, UNFITTED_QUANTILES, EfficientAD, RawMaps, anomaly_score
from efficientad.system.devices import autocast
from efficientad.system.distributed import gather_objects, rank, ranks, sum_over_ranks
from efficientad.system.errors import UserError
from efficientad.system.progress_bars import progress_bar
from efficientad.training.cache import ImageSet, TeacherFeatures

QUANTILES = (0.9, 0.995)  # mapped to 0 and 0.1 (section 3.4)
_BATCH_SIZE = 16  # changes only speed and memory
_SMALLEST_STD = 1e-6  # a channel that never changes is not scaled


class FlatMapsError(UserError):
    """The maps of the held-out images have no spread, so nothing can be normalized."""


@torch.no_grad()
def fit_teacher_statistics(
    model: EfficientAD, images: ImageSet, indices: range, teacher_features: TeacherFeatures
) -> None:
    """Set model.teacher_mean and teacher_std: per channel, over every pixel of the teacher's output.

    Exact for any batch size: sums in float64, and the variance from the deviations from the final mean, since
    E[x^2] - E[x]^2 loses its digits where the mean is large.

    Args:
        indices: of the training images in `images`.
        teacher_features: of the model's teacher; kept in the first pass, so that the second is quick.
    """
    device = model.teacher_mean.device

    def channel_mean(description: str, of: Callable[[Tensor], Tensor]) -> Tensor:
        total = torch.zeros(FEATURE_CHANNELS, dtype=torch.float64, device=device)
        count = torch.zeros((), dtype=torch.float64, device=device)
        for batch, pixels in _batches(images, indices, description):
            values = of(teacher_features(batch, to_unit_range(pixels.to(device))).double())
            total += values.sum(dim=(0, 2, 3))
            count += values.shape[0] * values.shape[2] * values.shape[3]
        return (sum_over_ranks(total) / sum_over_ranks(count)).view(1, -1, 1, 1)

    mean = channel_mean("Computing mean of features", lambda features: features)
    variance = channel_mean("Computing std of features", lambda features: (features - mean).square())
    std = variance.sqrt()
    model.teacher_mean.copy_(mean)
    model.teacher_std.copy_(torch.where(std > _SMALLEST_STD, std, torch.ones_like(std)))


@torch.inference_mode()
def fit_map_quantiles(
    model: EfficientAD, images: ImageSet, indices: range, precision: str, quiet: bool = False
) -> None:
    """Set model.quantiles from held-out good images; leaves the model in eval mode, without dropout.

    Args:
        indices: of the validation images in `images`.
        quiet: without a progress bar.

    Raises:
        FlatMapsError: on every process.
    """
    model.eval()
    device = model.quantiles.device
    maps = []
    for _, pixels in _batches(images, indices, "Final map normalization", quiet):
        with autocast(device, precision):
            raw_maps = model.raw_maps(to_unit_range(pixels.to(device)))
        maps.append(RawMaps(*(None if raw is None else raw.cpu() for raw in raw_maps)))
    everywhere = [raw_maps for part in gather_objects(maps) for raw_maps in part]
    model.quantiles.copy_(torch.from_numpy(map_quantiles(everywhere)))


def fit_calibration(
    model: EfficientAD, images: ImageSet, indices: range, precision: str, target_fpr: float
) -> None:
    """Set model.calibration from the scores of held-out good images, or to None if they are too few.

    Args:
        indices: of the validation images in `images`; the map quantiles must be fitted already.
        target_fpr: the wanted false-positive rate, in (0, 1).
    """
    scores = score_images(model, images, indices, precision, "Calibrating the threshold")
    model.calibration = calibrate(scores, target_fpr) if len(scores) >= FEWEST_SCORES else None


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
    for _, pixels in _batches(images, indices, description, quiet):
        with autocast(device, precision):
            own += anomaly_score(model(to_unit_range(pixels.to(device)))).tolist()
    scores = [0.0] * len(indices)
    for first, part in enumerate(gather_objects(own)):
        scores[first :: ranks()] = part  # as _batches distributes them
    return scores


def map_quantiles(batches: list[RawMaps]) -> np.ndarray:
    """The 0.9 and 0.995 quantile of each kind of map over all pixels pooled: float32, 3 x 2.

    By numpy, since torch.quantile refuses more than 2^24 elements.

    Raises:
        FlatMapsError: the two quantiles of a map coincide.
    """
    fitted = np.array([UNFITTED_QUANTILES] * len(RawMaps._fields), dtype=np.float32)
    for row, maps in enumerate(zip(*batches, strict=True)):
        if maps[0] is not None:
            fitted[row] = np.quantile(np.concatenate([raw.numpy().ravel() for raw in maps]), QUANTILES)
    if not (fitted[:, 1] > fitted[:, 0]).all():
        raise FlatMapsError(
            "the held-out good images give anomaly maps without any spread, so they cannot be normalized; "
            "check that the training images are real photographs and not constant or damaged"
        )
    return fitted


def _batches(
    images: ImageSet, indices: range, description: str, quiet: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of this process's share of the images."""
    own = torch.tensor(indices[rank() :: ranks()])
    order = own.split(_BATCH_SIZE) if len(own) else []
    silent = quiet or rank() > 0
    return iter(
        progress_bar(images.batches(order), desc=description, total=len(order), unit="batch", disable=silent)
    )
