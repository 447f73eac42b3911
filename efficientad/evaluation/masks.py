"""Finds and reads the masks of a data set, which mark its defects.

ground_truth/<class>/<image>_mask.png       MVTec AD, custom sets; every connected area is a defect
ground_truth/<class>/<image>.png            VisA, BTAD; the same
ground_truth/<class>/<image>/000.png, ...   MVTec LOCO; every file is a defect of the kind of its pixel value, and
                                            defects_config.json defines how much of it must be found
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from efficientad.data.datasets import Dataset, Sample
from efficientad.data.folders import find_images
from efficientad.data.formats import open_image
from efficientad.data.images import UnreadableImageError, check_file, read_bytes
from efficientad.evaluation.pixel_metrics import Defect
from efficientad.system.errors import UserError, list_some

GROUND_TRUTH = "ground_truth"
SATURATION_FILE = "defects_config.json"
_LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".avifs"})


@dataclass(frozen=True)
class MaskFiles:
    """The masks of one image."""

    paths: tuple[Path, ...]
    one_defect_each: bool  # otherwise every connected area is a defect


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

    def files(self, sample: Sample) -> list[Path]:
        """The masks of an image and of its copies."""
        known = self.samples[sample]
        return [path for masks in (known.own, *known.of_copies) if masks for path in masks.paths]


def find_masks(dataset: Dataset, samples: Sequence[Sample]) -> MaskSet | None:
    """Find the masks of the defective test images; None if there are none.

    Raises:
        UserError: masks are damaged or not as large as their images, or the saturations cannot be read.
    """
    folder = dataset.root / GROUND_TRUTH
    classes = {sample.class_name for sample in samples if sample.is_anomalous}
    found = {name: _masks_by_image(folder / name) for name in classes if (folder / name).is_dir()}
    own = {}
    for sample in samples:
        stem = PurePosixPath(sample.image_name).with_suffix("").as_posix()
        masks = found.get(sample.class_name, {}).get(stem)
        if masks:
            own[sample] = masks
    if not own:
        return None
    _check_sizes(own)
    known = {}
    for copies in _group_copies(samples):
        is_anomalous = any(copy.is_anomalous for copy in copies)
        for number, sample in enumerate(copies):
            others = tuple(own[copy] for copy in copies if copy is not sample and copy in own)
            known[sample] = SampleMasks(own.get(sample), others, is_anomalous, is_repeated=number > 0)
    return MaskSet(known, _read_saturations(dataset.root / SATURATION_FILE))


def _masks_by_image(folder: Path) -> dict[str, MaskFiles]:
    """Masks by the image's name below its class folder, without suffix. <image>_mask precedes <image>."""
    found: dict[str, MaskFiles] = {}
    numbered = defaultdict(list)
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        found[name] = MaskFiles((path,), one_defect_each=False)
        numbered[path.relative_to(folder).parent.as_posix()].append(path)
    for name in list(found):
        if name.endswith("_mask"):
            found[name.removesuffix("_mask")] = found[name]
    folders = {name: MaskFiles(tuple(inside), one_defect_each=True) for name, inside in numbered.items()}
    return {**folders, **found}


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


def _group_copies(samples: Iterable[Sample]) -> Iterable[list[Sample]]:
    """Groups of samples with equal content, in order; reads only files of equal size."""
    by_size = defaultdict(list)
    for sample in samples:
        by_size[os.path.getsize(sample.path) if sample.path.exists() else sample].append(sample)
    for same_size in by_size.values():
        by_content = defaultdict(list)
        for sample in same_size:
            by_content[_digest(sample) if len(same_size) > 1 else sample].append(sample)
        yield from by_content.values()


def _digest(sample: Sample) -> bytes | Sample:
    try:
        return hashlib.sha256(read_bytes(sample.path)).digest()
    except UnreadableImageError:
        return sample  # which the evaluation will report


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
        values = read_mask(path)
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


def read_mask(path: Path) -> np.ndarray:
    """The mask, H x W; 0 where there is no defect. Palette images give their indices.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_image(path, str(path)) as opened:
            has_alpha = opened.mode in ("RGBA", "LA", "PA")
            values = np.asarray(opened.convert("RGB") if has_alpha else opened)
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UserError(f"cannot read the mask {path}; repair, replace or remove it") from error
    values = values.max(axis=2) if values.ndim == 3 else values
    return np.where(values > 127, values, 0) if path.suffix.lower() in _LOSSY else values


def _split_regions(values: np.ndarray, one_defect: bool) -> list[np.ndarray]:
    inside = np.flatnonzero(values)
    if one_defect:
        return [inside] if inside.size else []
    return connected_regions(values != 0)


def connected_regions(mask: np.ndarray) -> list[np.ndarray]:
    """Each connected area as indices into the flattened H x W bools; touching corners connect."""
    from scipy.ndimage import label

    inside = np.flatnonzero(mask)
    if not inside.size:
        return []
    labels = label(mask, structure=np.ones((3, 3)))[0].ravel()[inside]
    order = np.argsort(labels, kind="stable")
    return np.split(inside[order], np.cumsum(np.bincount(labels)[1:-1]))
