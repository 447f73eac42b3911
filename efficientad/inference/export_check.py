"""How far an export is from the torch detector that it was made of, on good images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from efficientad.data.datasets import find_training_images, open_dataset
from efficientad.data.image_collections import StoredImage, find_stored_images
from efficientad.data.images import UnreadableImageError, raise_if_unreadable, were_skipped
from efficientad.data.transforms import to_square
from efficientad.detector.checkpoint import read_training
from efficientad.detector.networks import MAP_SCALE, EfficientAD, anomaly_score
from efficientad.inference.detectors import Detector, ExportedDetector, TorchDetector, load_exported
from efficientad.system.arguments import path_argument
from efficientad.system.errors import UserError
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar

_BATCH_SIZE = 5
# Differences are relative to the value, or to this if it is lower.
_FLOOR = 0.1 * MAP_SCALE


@dataclass(frozen=True)
class CheckImages:
    """Images to compare on, and others to calibrate int8 with; the same ones if there are few."""

    to_compare: Tensor  # uint8, N x 3 x S x S
    to_calibrate: np.ndarray  # uint8, N x S x S x 3


def find_good_images(given: Sequence[Path], weights_dir: Path) -> list[StoredImage]:
    """The images in the given folders and tar files; without any, those of the training in `weights_dir`.

    Raises:
        UserError: none are given, and the training's are no longer there.
    """
    if given:
        return find_stored_images(given)
    training = read_training(weights_dir)
    try:
        path = Path(training[path_argument(training["dataset"])])
        dataset = open_dataset(training["dataset"], path, training["subdataset"])
        split = find_training_images(dataset, training["seed"])
        skipped = were_skipped(weights_dir, [*split.train, *split.validation])
        split = find_training_images(dataset, training["seed"], leave_out=skipped)
    except (KeyError, UserError):
        raise UserError(
            "the images of the training are no longer where they were; name a folder of good images with --images"
        ) from None
    return [StoredImage(path) for path in (*split.validation, *split.train)]


def read_images(
    stored: Sequence[StoredImage], compared: int, calibrated: int, size: int, workers: int
) -> CheckImages:
    """Decode at most `compared` and `calibrated` of the images, each spread evenly over all.

    Raises:
        UserError: naming every unreadable image.
    """

    def read(image: StoredImage) -> Tensor | str:
        try:
            return to_square(image.read(), size)
        except UnreadableImageError as error:
            return str(error)

    to_compare = _spread(stored, compared)
    kept = set(to_compare)
    to_calibrate = _spread([image for image in stored if image not in kept] or stored, calibrated)
    chosen = [*to_compare, *to_calibrate]
    pixels = list(progress_bar(parallel_map(read, chosen, workers), "Reading images", len(chosen), unit="image"))
    raise_if_unreadable([problem for problem in pixels if isinstance(problem, str)])
    together, count = torch.stack(pixels), len(to_compare)
    return CheckImages(together[:count], together[count:].permute(0, 2, 3, 1).contiguous().numpy())


def _spread(items: Sequence[StoredImage], count: int) -> list[StoredImage]:
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


@dataclass(frozen=True)
class Bound:
    """The largest relative difference allowed, in the mean and of any one score."""

    mean: float
    score: float


BOUNDS = {
    "fp32": Bound(0.0005, 0.005),
    "fp16": Bound(0.01, 0.05),
    "bf16": Bound(0.05, 0.2),
    "int8": Bound(0.1, 0.4),
}


@dataclass(frozen=True)
class Differences:
    """Of maps or of scores: on the 0-255 scale, and relative."""

    mean: float
    largest: float
    relative_mean: float
    relative_largest: float


@dataclass(frozen=True)
class Parity:
    """The comparison over some images."""

    maps: Differences
    scores: Differences
    same_decisions: int
    images: int

    def keeps(self, bound: Bound) -> bool:
        """Whether no difference exceeds the bound; one that is not finite does."""
        means = self.maps.relative_mean <= bound.mean and self.scores.relative_mean <= bound.mean
        return means and self.scores.relative_largest <= bound.score

    def format(self, precision: str, threshold: float) -> str:
        """A table for the terminal."""
        bound = BOUNDS[precision]
        rows = [
            [name, d.mean, d.largest, f"{d.relative_mean:.3%}", f"{d.relative_largest:.3%}"]
            for name, d in (("maps", self.maps), ("scores", self.scores))
        ]
        headers = ["Difference to torch", "Mean", "Largest", "Relative mean", "Relative largest"]
        return (
            f"{tabulate(rows, headers=headers, floatfmt='.4f')}\n"
            f"Bound for {precision}: {bound.mean:.3%} in the mean, {bound.score:.3%} for any score\n"
            f"At threshold {threshold:g} {self.same_decisions} of {self.images} decisions agree"
        )


def compare_files(model: EfficientAD, path: Path, pixels: Tensor, threshold: float) -> Parity:
    """Compare a model with the export at `path`, both on the CPU; see compare."""
    reference = TorchDetector(model, torch.device("cpu"), "fp32")
    return compare(reference, load_exported(path, "cpu", "auto"), pixels, _BATCH_SIZE, threshold)


def compare(
    reference: Detector, exported: ExportedDetector, pixels: Tensor, batch_size: int, threshold: float
) -> Parity:
    """Compare the maps and scores of two detectors on uint8 images N x 3 x S x S."""
    maps, scores, other_maps, other_scores = [], [], [], []
    for batch in pixels.split(batch_size):
        expected = reference(batch).cpu()
        maps.append(expected[:, 0].numpy())
        scores.append(anomaly_score(expected).numpy())
        answer = exported.answer(batch.permute(0, 2, 3, 1).contiguous().numpy())
        other_maps.append(answer[0])
        other_scores.append(answer[1])
    expected_scores, found_scores = np.concatenate(scores), np.concatenate(other_scores)
    return Parity(
        _differences(np.concatenate(maps), np.concatenate(other_maps)),
        _differences(expected_scores, found_scores),
        int(((expected_scores > threshold) == (found_scores > threshold)).sum()),
        len(pixels),
    )


def _differences(expected: np.ndarray, found: np.ndarray) -> Differences:
    absolute = np.abs(found.astype(np.float64) - expected)
    relative = absolute / np.maximum(np.abs(expected), _FLOOR)
    return Differences(
        *(float(value) for value in (absolute.mean(), absolute.max(), relative.mean(), relative.max()))
    )
