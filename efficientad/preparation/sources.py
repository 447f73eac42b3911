"""Finds the images of a data set and their classes, in COCO annotations or folders. Imports no torch."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from efficientad.data.folders import describe_others, find_images, is_data_folder, leave_out_below
from efficientad.data.formats import DESCRIPTION
from efficientad.data.labels import is_good_name
from efficientad.preparation.coco import Annotation, CocoImage, CocoSet
from efficientad.preparation.file_names import Located, locate_images
from efficientad.preparation.orientation import Frame
from efficientad.system.errors import UserError, count_of, list_some, require_folder

PART_NAMES = ("led", "marked")  # categories that label the part, not a defect, besides those of good parts
NEARLY_EVERY = 0.9  # share of annotated images from which a category may well label the part
_LONGEST_FOLDER_NAME = 60  # characters, of up to four bytes each
SINGLE_DEFECT_FOLDER = "defect"
_DEVICES = (  # Windows reserves their names
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)),
)


@dataclass(frozen=True)
class SourceImage:
    """An image for a data set."""

    path: Path
    name: str  # its path below the folder it was found in, with "/"
    classes: tuple[str, ...] = ()  # folder names of the defect classes; none for a good image
    annotations: list[Annotation] = field(default_factory=list)
    defects: list[Annotation] = field(default_factory=list)  # the annotations that do not label the part
    stated_size: tuple[int, int] | None = None  # width and height as the annotation file has them
    frame: Frame | None = None  # what the annotations refer to; None: the upright image
    mask: Path | None = None  # a file that marks the defects, in place of annotations


@dataclass(frozen=True)
class AnnotatedImages:
    """The images of a COCO file, and notes for the user."""

    images: list[SourceImage]
    class_names: dict[str, str]  # defect class folder -> category name
    missing: list[Path]  # annotated images that are not there and were left out
    notes: list[str]


def find_annotated(
    coco: CocoSet,
    folder: Path,
    normal_categories: Sequence[str] | None,
    use_names: bool,
    take_unannotated: bool,
    skip_missing: bool,
    match_names: bool = False,
    good_folder: Path | None = None,
) -> AnnotatedImages:
    """The images of a COCO set with their defect classes.

    Args:
        folder: the folder that the set's file names are relative to.
        normal_categories: names (any letter case) or ids of categories that are not defects; None for names
            of good parts (is_good_name) and PART_NAMES.
        use_names: name the class folders after categories instead of ids.
        take_unannotated: images without annotations are good; otherwise they are left out.
        skip_missing: leave out missing images.
        match_names, good_folder: how to look for images under other spellings, see locate_images.

    Raises:
        UserError: no such folder or category, or images that are missing or outside the folder.
    """
    require_folder(folder, "give the folder of the annotated images with --labeled_dir")
    normal = find_normal_categories(coco.categories, normal_categories)
    defects = [key for key in coco.categories if key not in normal]
    folders = name_class_folders({key: coco.categories[key] for key in defects}, use_names)
    notes = [*coco.notes, _describe_normal(coco, normal), *_suspect_part_labels(coco, normal)]
    if use_names:
        notes += _describe_renamed({key: coco.categories[key] for key in defects}, folders)

    located, missing = locate_images(coco, folder, good_folder, skip_missing, match_names, notes)
    images, unannotated = [], 0
    for item, entries in _join_entries(located):
        annotations = [annotation for entry in entries for annotation in entry.annotations]
        if not annotations:
            unannotated += 1
            if not take_unannotated:
                continue
        found = [annotation for annotation in annotations if annotation["category_id"] not in normal]
        classes = sorted({annotation["category_id"] for annotation in found})
        class_folders = tuple(folders[key] for key in classes)
        size = next((entry.size for entry in entries if entry.size), None)
        images.append(SourceImage(item.path, item.name, class_folders, annotations, found, size))
    if unannotated:
        what = "taken as good" if take_unannotated else "left out; --unannotated good takes them as good"
        notes.append(
            f"{count_of(unannotated, 'image')} {'has' if unannotated == 1 else 'have'} no annotations: {what}"
        )
    images.sort(key=lambda image: image.name)
    return AnnotatedImages(images, {folders[key]: coco.categories[key] for key in defects}, missing, notes)


def _join_entries(located: Sequence[Located]) -> list[tuple[Located, list[CocoImage]]]:
    """The images with their entries, of which a file may have several.

    Raises:
        UserError: they state different sizes, so that their annotations do not refer to one picture.
    """
    by_path: dict[Path, tuple[Located, list[CocoImage]]] = {}
    for item in located:
        path = Path(os.path.realpath(item.path.parent), item.path.name)  # a/../b.png is b.png
        by_path.setdefault(path, (item, []))[1].append(item.image)
    joined = list(by_path.values())
    odd = [str(item.path) for item, entries in joined if len({entry.size for entry in entries if entry.size}) > 1]
    if odd:
        count = count_of(len(odd), "image")
        raise UserError(f"{count} with several entries of different sizes; correct them:{list_some(odd)}")
    return joined


def find_normal_categories(categories: dict[int, str], wanted: Sequence[str] | None) -> set[int]:
    """The ids of the categories that are not defects.

    Args:
        wanted: names, in any letter case, or ids; None for the names of good parts and PART_NAMES.

    Raises:
        UserError: a wanted category does not exist.
    """
    if wanted is None:
        return {
            key for key, name in categories.items() if is_good_name(name) or name.strip().casefold() in PART_NAMES
        }
    normal = set()
    for word in wanted:
        folded = word.strip().casefold()
        found = {key for key, name in categories.items() if folded in (name.strip().casefold(), str(key))}
        if not found:
            known = ", ".join(f"{name} ({key})" for key, name in categories.items())
            raise UserError(f"--normal_categories {word}: no such category; choose from {known}")
        normal |= found
    return normal


def name_class_folders(categories: dict[int, str], use_names: bool) -> dict[int, str]:
    """The folder of each defect category: defect_type_<id>, or its name, made safe for any file system.

    Names that would share a folder, and names that a defect folder cannot have, get the id.
    """
    by_id = {key: f"defect_type_{key}" for key in categories}
    if not use_names:
        return by_id
    cleaned = {key: _clean(name) for key, name in categories.items()}
    uses = Counter(name.casefold() for name in cleaned.values())

    def is_fit(name: str) -> bool:
        folded = name.casefold()
        is_reserved = is_good_name(name) or folded in _DEVICES
        return bool(name) and not is_reserved and uses[folded] == 1 and is_data_folder(name)

    named = {key: name if is_fit(name) else f"{name}_{key}".lstrip("_. ") for key, name in cleaned.items()}
    again = Counter(name.casefold() for name in named.values())  # adding the id may make two of them equal
    return {key: name if again[name.casefold()] == 1 else by_id[key] for key, name in named.items()}


def find_good(folder: Path, notes: list[str]) -> list[SourceImage]:
    """Every image under the folder, at any depth, as a good one; `notes` takes a line about other files.

    Raises:
        UserError: no such folder, or no image in it.
    """
    images = _find_below(folder, "--unlabeled_dir", None, notes)
    return [SourceImage(path, path.relative_to(folder).as_posix()) for path in images]


def find_defective(folder: Path, mask_dir: Path | None, notes: list[str]) -> list[SourceImage]:
    """Every image under the folder; its class is the first folder below, or "defect" if there is none.

    Args:
        mask_dir: a folder of masks, which may be inside.
        notes: takes a line about files that are no images.

    Raises:
        UserError: no such folder, no image in it, or good images among them.
    """
    images = []
    for path in _find_below(folder, "--defect_dir", mask_dir, notes):
        parts = path.relative_to(folder).parts
        class_name = parts[0] if len(parts) > 1 else SINGLE_DEFECT_FOLDER
        if is_good_name(class_name):
            raise UserError(f"{folder / class_name} is among the defects; move it out, or to --unlabeled_dir")
        images.append(SourceImage(path, path.relative_to(folder).as_posix(), (class_name,)))
    return images


def _find_below(folder: Path, flag: str, apart: Path | None, notes: list[str]) -> list[Path]:
    require_folder(folder, f"give the folder of images with {flag}")
    others: list[Path] = []
    images = find_images(folder, others)
    if apart:
        images, others = leave_out_below(apart, images), leave_out_below(apart, others)
    if not images:
        raise UserError(f"{folder} holds no images ({DESCRIPTION}); check {flag}")
    notes += [f"{flag}: {line}" for line in describe_others(others)]
    return images


def _describe_renamed(categories: dict[int, str], folders: dict[int, str]) -> list[str]:
    """A line about the categories whose folder has another name than they have."""
    renamed = [f"{name} is {folders[key]}" for key, name in categories.items() if folders[key] != _clean(name)]
    if not renamed:
        return []
    return [f"Folders with a category's id, since its name is not unique or not possible:{list_some(renamed)}"]


def _clean(name: str) -> str:
    return re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name)[:_LONGEST_FOLDER_NAME].strip(" .")


def _describe_normal(coco: CocoSet, normal: set[int]) -> str:
    names = ", ".join(f"{coco.categories[key]} ({key})" for key in sorted(normal))
    if not names:
        roots = ", ".join(f"{coco.categories[key]} ({key})" for key in sorted(coco.roots))
        apart = f" but {roots}, which only groups others," if roots else ""
        return f"Every category{apart} counts as a defect; name those that label the part with --normal_categories"
    return f"Categories that count as normal, not as defects: {names}"


def _suspect_part_labels(coco: CocoSet, normal: set[int]) -> list[str]:
    seen = [{annotation["category_id"] for annotation in image.annotations} for image in coco.images]
    annotated = sum(bool(categories) for categories in seen)
    counts = Counter(key for categories in seen for key in categories - normal)
    return [
        f"Note: {count} of the {annotated} annotated images have the category {coco.categories[key]} ({key}); "
        "if it labels the part and not a defect, name it with --normal_categories"
        for key, count in sorted(counts.items())
        if annotated > 1 and count >= NEARLY_EVERY * annotated
    ]
