"""How far an export is from the torch detector that it was made of, on good images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from efficientad.data.datasets import Dataset, find_training_images, open_dataset
from efficientad.data.image_collections import StoredImage, find_stored_images
from efficientad.data.images import UnreadableImageError, raise_if_unreadable, were_skipped
from efficientad.data.transforms import to_tensor
from efficientad.data.views import View
from efficientad.detector.anomaly_maps import MAP_SCALE, anomaly_score
from efficientad.detector.checkpoint import read_training
from efficientad.detector.model import EfficientAD
from efficientad.inference.detectors import Detector, TorchDetector
from efficientad.inference.exported import Answers, load_exported
from efficientad.system.dataset_arguments import path_argument
from efficientad.system.errors import UserError
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar

_Item = TypeVar("_Item")
_BATCH_SIZE = 5
_MOST_PIXELS, _FEWEST = 2**25, 4  # of the images to compare on, or to calibrate with
# Differences are relative to the value, or to this if it is lower.
_FLOOR = 0.1 * MAP_SCALE


class SeenImage(NamedTuple):
    """An image as the networks see it; see View."""

    pixels: Tensor  # uint8, 3 x H x W
    inspected: Tensor | None  # bools H x W; None: all


@dataclass(frozen=True)
class CheckImages:
    """Images to compare on, and others to calibrate int8 with; the same ones if there are few."""

    to_compare: Sequence[SeenImage]
    to_calibrate: Sequence[SeenImage]
    whole: Sequence[StoredImage]  # those to compare on


def find_good_images(given: Sequence[Path], weights_dir: Path) -> list[StoredImage]:
    """The images in the given folders and tar files; without any, those of the training in `weights_dir`.

    Raises:
        UserError: none are given, and the training's are no longer there.
    """
    if given:
        return find_stored_images(given)
    training = read_training(weights_dir)
    try:
        dataset = open_training_dataset(training)
        split = find_training_images(dataset, training["seed"])
        skipped = were_skipped(weights_dir, [*split.train, *split.validation])
        split = find_training_images(dataset, training["seed"], leave_out=skipped)
    except (KeyError, UserError):
        raise UserError(
            "the images of the training are no longer where they were; name a folder of good images with --images"
        ) from None
    return [StoredImage(path) for path in (*split.validation, *split.train)]


def open_training_dataset(training: Mapping[str, Any]) -> Dataset:
    """The data set of a training, from what read_training returns.

    Raises:
        KeyError: the training does not say which it was.
        UserError: it is no longer where it was.
    """
    path = Path(training[path_argument(training["dataset"])])
    return open_dataset(training["dataset"], path, training["subdataset"])


def read_images(
    stored: Sequence[StoredImage], compared: int, calibrated: int, view: View, workers: int
) -> CheckImages:
    """Decode at most `compared` and `calibrated` of the images, each spread evenly over all; few of large ones.

    Raises:
        UserError: naming every unreadable image.
    """

    def read(image: StoredImage) -> SeenImage | str:
        try:
            decoded = image.read(view.decode_whole)
            return SeenImage(view.pixels(decoded, str(image.path)), view.inspected(decoded.size))
        except UnreadableImageError as error:
            return str(error)

    most = max(_FEWEST, _MOST_PIXELS // (view.height * view.width))
    compared, calibrated = min(compared, most), min(calibrated, most)
    to_compare = spread(stored, compared)
    kept = set(to_compare)
    to_calibrate = spread([image for image in stored if image not in kept] or stored, calibrated)
    chosen = [*to_compare, *to_calibrate]
    images = list(progress_bar(parallel_map(read, chosen, workers), "Reading images", len(chosen), unit="image"))
    raise_if_unreadable([problem for problem in images if isinstance(problem, str)])
    return CheckImages(images[: len(to_compare)], images[len(to_compare) :], to_compare)


def stack(images: Sequence[SeenImage]) -> tuple[Tensor, Tensor | None]:
    """Images as one batch for a Detector."""
    pixels, inspected = zip(*images, strict=True)
    return torch.stack(pixels), None if inspected[0] is None else torch.stack(inspected)


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` of the items, evenly over all of them."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


@dataclass(frozen=True)
class Bound:
    """The largest relative difference allowed, in the mean and of any one score."""

    mean: float
    score: float


BOUNDS = {
    "fp32": Bound(0.0005, 0.005),
    "fp16": Bound(0.02, 0.05),
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


@torch.inference_mode()
def answer_as_torch(model: EfficientAD, images: Sequence[SeenImage]) -> Answers:
    """The model's maps and scores, on the CPU in fp32: what the files are compared with."""
    detector = TorchDetector(model, torch.device("cpu"), "fp32")
    maps = torch.cat([detector(*batch).cpu() for batch in _batches(detector, images)])
    return maps[:, 0].numpy(), anomaly_score(maps).numpy()


def compare_file(expected: Answers, path: Path, images: CheckImages, threshold: float) -> Parity:
    """Compare what answer_as_torch found for `images.to_compare` with the export at `path`, on the CPU.

    A file that resizes images gets them whole.
    """
    exported = load_exported(path, "cpu", "auto")
    if exported.metadata.any_size:
        view = exported.view
        batches = ((to_tensor(np.asarray(image.read(view.decode_whole)))[None], None) for image in images.whole)
    else:
        batches = _batches(exported, images.to_compare)
    maps, scores = zip(*(exported.answer(*batch) for batch in batches), strict=True)
    return compare(expected, (np.concatenate(maps), np.concatenate(scores)), threshold)


def _batches(detector: Detector, images: Sequence[SeenImage]) -> Iterator[tuple[Tensor, Tensor | None]]:
    size = detector.images_per_pass(_BATCH_SIZE)
    return (stack(images[start : start + size]) for start in range(0, len(images), size))


def compare(expected: Answers, found: Answers, threshold: float) -> Parity:
    """Compare two answers to the same images."""
    same = (expected[1] > threshold) == (found[1] > threshold)
    return Parity(
        *(_differences(*values) for values in zip(expected, found, strict=True)), int(same.sum()), len(same)
    )


def _differences(expected: np.ndarray, found: np.ndarray) -> Differences:
    absolute = np.abs(found.astype(np.float64) - expected)
    relative = absolute / np.maximum(np.abs(expected), _FLOOR)
    return Differences(
        *(float(value) for value in (absolute.mean(), absolute.max(), relative.mean(), relative.max()))
    )
