"""Finds the masks of test images by their names.

ground_truth/<class>/<image>_mask.png       MVTec AD, custom sets; every connected area is a defect
ground_truth/<class>/<image>.png            VisA, BTAD; the same
ground_truth/<class>/<image>/000.png, ...   MVTec LOCO; every file is a defect of the kind of its pixel value

Other names are taken where only one image can be meant, and what cannot be taken is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from efficientad.data.class_folders import class_folders
from efficientad.data.datasets import Dataset, Sample
from efficientad.data.folders import describe_others, find_images, is_image_name
from efficientad.data.labels import is_good_name
from efficientad.system.errors import count_of

GROUND_TRUTH = "ground_truth"
_OTHER_NAMES = ("groundtruth", "masks", "mask", "gt")  # without blanks, underscores and hyphens


@dataclass(frozen=True)
class MaskFiles:
    """The masks of one image."""

    paths: tuple[Path, ...]
    one_defect_each: bool  # otherwise every connected area is a defect
    inverted: bool = False  # what is 0 is defective


def find_mask_files(dataset: Dataset, samples: Sequence[Sample]) -> tuple[dict[Sample, MaskFiles], list[str]]:
    """The masks of the defective images, and notes for the user."""
    if dataset.split_file:
        return {sample: MaskFiles((sample.mask,), False) for sample in samples if sample.mask}, []
    folder, notes = _find_mask_folder(dataset.root)
    if not folder:
        return {}, notes
    found, others, files = {}, [], []
    class_masks, about = _pair_classes(folder, {sample.class_name for sample in samples if sample.is_anomalous})
    notes += about
    for inside in class_folders(folder):
        paths = find_images(inside, others)
        files += [] if is_good_name(inside.name) else paths  # good images need no mask
        if inside in class_masks:
            own = [sample for sample in samples if sample.class_name == class_masks[inside]]
            found |= _match(inside, paths, own)
    loose = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    others += [path for path in loose if not is_image_name(path.name)]
    loose = [path for path in loose if is_image_name(path.name)]
    by_name = _match_loose(folder, loose, samples)
    of_good = {path for sample, masks in by_name.items() if not sample.is_anomalous for path in masks.paths}
    taken = {sample: masks for sample, masks in by_name.items() if sample.is_anomalous and sample not in found}
    found |= taken
    if taken:
        notes.append(f"{count_of(len(taken), 'mask')} in no class folder of {folder} taken by name")
    notes += _describe_shared(found)
    notes += _describe_unused([*files, *loose], found.values(), of_good, folder)
    return found, [*notes, *describe_others(others)]


def _find_mask_folder(root: Path) -> tuple[Path | None, list[str]]:
    """The folder beside test/ that holds the masks; one with another name if there is only one such."""
    if (root / GROUND_TRUTH).is_dir():
        return root / GROUND_TRUTH, []
    others = [folder for folder in class_folders(root) if _fold(folder.name) in _OTHER_NAMES]
    if len(others) == 1:
        return others[0], [f"masks are taken from {others[0]}"]
    if others:
        names = " and ".join(folder.name for folder in others)
        return None, [f"{root} has several folders of masks, {names}: none is used; name one {GROUND_TRUTH}"]
    return None, []


def _fold(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " _-")


def _pair_classes(folder: Path, classes: Iterable[str]) -> tuple[dict[Path, str], list[str]]:
    """The class of each folder of masks: that of its name, else the only one that differs in nothing but case."""
    folders = {inside.name: inside for inside in class_folders(folder)}
    pairs = {folders[name]: name for name in classes if name in folders}
    notes = []
    for name in sorted(set(classes).difference(folders)):
        alike = [inside for inside in folders.values() if inside.name.casefold() == name.casefold()]
        if len(alike) == 1 and alike[0] not in pairs:
            pairs[alike[0]] = name
            notes.append(f"{alike[0]} is taken as the masks of {name}")
    return pairs, notes


def _match(folder: Path, paths: Sequence[Path], samples: Sequence[Sample]) -> dict[Sample, MaskFiles]:
    """The masks of images whose class has the folder.

    The usual names come first; the others are for files that are not the mask of another image by a usual one.
    """
    files: dict[str, Path] = {}  # by the name below the folder without suffix
    numbered = defaultdict(list)
    for path in paths:
        name = path.relative_to(folder)
        files[name.with_suffix("").as_posix()] = path
        numbered[name.parent.as_posix()].append(path)
    found = {}
    for sample in samples:
        stem = _stem(sample)
        path = files.get(f"{stem}_mask") or files.get(stem)
        if path:
            found[sample] = MaskFiles((path,), one_defect_each=False)
        elif stem in numbered:
            found[sample] = MaskFiles(tuple(numbered[stem]), one_defect_each=True)
    used = {path for masks in found.values() for path in masks.paths}
    for sample in samples:
        if sample not in found:
            stem = _stem(sample)
            names = (sample.image_name, f"{sample.image_name}_mask", f"{stem}_label", f"{stem}_gt")
            path = next((files[name] for name in names if name in files), None)
            if path and path not in used:
                found[sample] = MaskFiles((path,), one_defect_each=False)
    return found


def _match_loose(folder: Path, paths: Sequence[Path], samples: Sequence[Sample]) -> dict[Sample, MaskFiles]:
    """Masks in no class folder, also those of good images; only of images whose name no other one has."""
    by_class = defaultdict(list)
    for sample in samples:
        by_class[sample.class_name].append(sample)
    claims = defaultdict(list)
    for own in by_class.values():
        for sample, masks in _match(folder, paths, own).items():
            claims[masks].append(sample)
    return {same[0]: masks for masks, same in claims.items() if len(same) == 1}


def _describe_shared(found: Mapping[Sample, MaskFiles]) -> list[str]:
    """A line about masks that are those of several images by their names, as if the masks were among the images."""
    users: dict[Path, list[Path]] = defaultdict(list)
    for sample, masks in found.items():
        users[masks.paths[0]].append(sample.path)
    shared = [(mask, images) for mask, images in users.items() if len(images) > 1]
    if not shared:
        return []
    mask, images = shared[0]
    return [
        f"{count_of(len(shared), 'mask')} taken for several images each, for example {mask} for {images[0]} and "
        f"{images[1]}; masks belong into {GROUND_TRUTH} only"
    ]


def _describe_unused(
    files: Sequence[Path], found: Iterable[MaskFiles], of_good: set[Path], folder: Path
) -> list[str]:
    used = {path for masks in found for path in masks.paths} | of_good
    unused = [path for path in files if path not in used]
    if not unused:
        return []
    verb = "is" if len(unused) == 1 else "are"
    return [
        f"{count_of(len(unused), 'file')} in {folder} {verb} not clearly the mask of one defective test image, for "
        f"example {unused[0]}; see Masks in dataset/README.md for the names"
    ]


def _stem(sample: Sample) -> str:
    return PurePosixPath(sample.image_name).with_suffix("").as_posix()
