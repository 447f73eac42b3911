"""The masks of a data set, which mark its defects: found, checked, and split into defects.

mask_files.py has the layouts. With MVTec LOCO's, defects_config.json defines how much of a defect must be found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from efficientad.data.copies import group_copies
from efficientad.data.datasets import Dataset, Sample
from efficientad.data.formats import open_image
from efficientad.data.images import UnreadableImageError, check_file
from efficientad.evaluation.mask_files import MaskFiles, find_mask_files
from efficientad.evaluation.mask_values import describe_values, read_mask
from efficientad.evaluation.pixel_metrics import Defect
from efficientad.system.errors import UserError, list_some

SATURATION_FILE = "defects_config.json"


@dataclass(frozen=True)
class SampleMasks:
    """The masks of one test image and of its copies.

    An image with several kinds of defect is in several class folders, and the mask of each may show only that
    kind.
    """

    own: MaskFiles | None
    of_copies: tuple[MaskFiles, ...]  # of the same image in other folders
    is_anomalous: bool  # it, or a copy of it
    is_repeated: bool  # an earlier image is a copy of it


@dataclass(frozen=True)
class Saturation:
    """How much of a defect must be found: a number of pixels, or a share of its area."""

    threshold: float
    relative: bool

    def pixels(self, area: int) -> int:
        """The number of pixels that suffice for a defect of this area: 1 to area."""
        wanted = self.threshold * area if self.relative else self.threshold
        return max(1, min(int(wanted), area))


@dataclass(frozen=True)
class MaskSet:
    """The masks of a data set, at least one, and the saturations by pixel value, if it defines them."""

    samples: Mapping[Sample, SampleMasks]
    saturations: Mapping[int, Saturation]

    def values(self, sample: Sample) -> list[np.ndarray]:
        """The masks of an image and of its copies; see read_mask."""
        known = self.samples[sample]
        files = [masks for masks in (known.own, *known.of_copies) if masks]
        return [read_mask(path, masks.inverted) for masks in files for path in masks.paths]


def find_masks(dataset: Dataset, samples: Sequence[Sample]) -> tuple[MaskSet | None, list[str]]:
    """Find the masks of the defective test images; None if there are none. And notes for the user.

    Raises:
        UserError: masks are damaged or not as large as their images, or the saturations cannot be read.
    """
    own, notes = find_mask_files(dataset, samples)
    if not own:
        return None, notes
    _check_sizes(own)
    saturations = _read_saturations(dataset.root / SATURATION_FILE)
    paths = [path for masks in own.values() for path in masks.paths]
    inverted, about = describe_values(paths, may_be_inverted=not saturations)
    if inverted:
        own = {sample: replace(masks, inverted=True) for sample, masks in own.items()}
    known = {}
    for group in group_copies([sample.path for sample in samples]):
        copies = [samples[index] for index in group]
        is_anomalous = any(copy.is_anomalous for copy in copies)
        for number, sample in enumerate(copies):
            others = tuple(own[copy] for copy in copies if copy is not sample and copy in own)
            known[sample] = SampleMasks(own.get(sample), others, is_anomalous, is_repeated=number > 0)
    return MaskSet(known, saturations), [*notes, *about]


def _check_sizes(own: Mapping[Sample, MaskFiles]) -> None:
    """Check the sizes in the headers before the long work; orientation is checked when the image is decoded."""
    problems = []
    for sample, masks in own.items():
        size = _try_size(sample.path)
        for path in masks.paths:
            try:
                check_file(path)
            except UnreadableImageError as error:
                problems.append(str(error))
                continue
            mask_size = _try_size(path)
            # images without a size are unreadable, which the evaluation reports
            if size and mask_size and sorted(mask_size) != sorted(size):
                problems.append(_size_problem(path, mask_size, sample.path, size))
    if problems:
        count = f"{len(problems)} masks do" if len(problems) > 1 else "1 mask does"
        raise UserError(f"{count} not fit; correct or remove:{list_some(problems)}")


def _try_size(path: Path) -> tuple[int, int] | None:
    if not path.is_file():  # opening a pipe might never end
        return None
    try:
        with open_image(path, str(path)) as opened:
            return opened.size
    except Exception:  # Pillow's plugins raise almost any type on damaged files
        return None


def _size_problem(path: Path, mask_size: Sequence[int], image: Path, image_size: Sequence[int]) -> str:
    return f"{path} is {mask_size[0]} x {mask_size[1]}, its image {image} is {image_size[0]} x {image_size[1]}"


def _read_saturations(path: Path) -> dict[int, Saturation]:
    if not path.is_file():
        return {}
    try:
        return {
            int(entry["pixel_value"]): Saturation(
                float(entry["saturation_threshold"]), bool(entry["relative_saturation"])
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))
        }
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path} is damaged: each entry needs pixel_value, saturation_threshold and relative_saturation"
        ) from None


def read_defects(
    masks: MaskFiles,
    saturations: Mapping[int, Saturation],
    image: Path,
    image_size: tuple[int, int],
    inspected: np.ndarray | None = None,
) -> tuple[list[Defect], int]:
    """The defects in the masks of one image, and how many more lie wholly where nothing is inspected.

    Args:
        saturations: by pixel value; if empty, a region saturates at its area.
        image, image_size: the image's file, and width and height of the upright image.
        inspected: H x W bools; a defect has no other pixels, and saturates as if it were no larger. None: all.

    Raises:
        UserError: a mask is damaged, has another size, or a pixel value without a saturation.
    """
    regions, hidden = [], 0
    for path in masks.paths:
        values = read_mask(path, masks.inverted)
        if values.shape != image_size[::-1]:
            problem = _size_problem(path, values.shape[::-1], image, image_size)
            raise UserError(f"1 mask does not fit; correct or remove:{list_some([problem])}")
        for whole in _split_regions(values, masks.one_defect_each):
            pixels = whole if inspected is None else whole[inspected.flat[whole]]
            if not pixels.size:
                hidden += 1
                continue
            saturation = len(pixels)
            if saturations:
                value = int(values.flat[pixels[0]])
                if value not in saturations:
                    raise UserError(f"{path} has the pixel value {value}, which is not in {SATURATION_FILE}")
                saturation = saturations[value].pixels(len(pixels))
            regions.append(Defect(pixels, saturation))
    return regions, hidden


def _split_regions(values: np.ndarray, one_defect: bool) -> list[np.ndarray]:
    if not one_defect:
        return connected_regions(values != 0)
    inside = np.flatnonzero(values)
    return [inside] if inside.size else []


def connected_regions(mask: np.ndarray) -> list[np.ndarray]:
    """Each connected area as indices into the flattened H x W bools; touching corners connect."""
    from scipy.ndimage import label

    inside = np.flatnonzero(mask)
    if not inside.size:
        return []
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # labels are slow to set, even to 0
    labels = label(part, structure=np.ones((3, 3)))[0][part]
    order = np.argsort(labels, kind="stable")
    return np.split(inside[order], np.cumsum(np.bincount(labels)[1:-1]))
