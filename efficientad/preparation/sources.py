"""Finds the images of a data set and their classes, in COCO annotations or folders. Imports no torch."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from efficientad.data.folders import find_images, is_data_folder, is_image_name
from efficientad.data.formats import DESCRIPTION
from efficientad.preparation.coco import Annotation, CocoImage, CocoSet
from efficientad.system.errors import UserError, list_some, require_folder

NORMAL_NAMES = ("good", "normal", "ok", "led", "marked")  # categories that label the part, not a defect
NEARLY_EVERY = 0.9  # share of annotated images from which a category may well label the part
_LONGEST_FOLDER_NAME = 60  # characters, of up to four bytes each
GOOD_FOLDER, SINGLE_DEFECT_FOLDER = "good", "defect"
_DEVICES = ("con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)))
_NO_DEFECT_FOLDERS = {GOOD_FOLDER, *_DEVICES}  # Windows reserves the names of its devices


@dataclass(frozen=True)
class SourceImage:
    """An image for a data set."""

    path: Path
    name: str  # its path below the folder it was found in, with "/"
    classes: tuple[str, ...] = ()  # folder names of the defect classes; none for a good image
    annotations: list[Annotation] = field(default_factory=list)
    defects: list[Annotation] = field(default_factory=list)  # the annotations that do not label the part
    annotated_size: tuple[int, int] | None = None  # width and height that the annotations refer to


@dataclass(frozen=True)
class AnnotatedImages:
    """The images of a COCO file, and notes for the user."""

    images: list[SourceImage]
    class_names: dict[str, str]  # defect class folder -> category name
    missing: list[Path]  # annotated images that are not there
    notes: list[str]


def find_annotated(
    coco: CocoSet,
    folder: Path,
    normal_categories: Sequence[str] | None,
    use_names: bool,
    take_unannotated: bool,
    skip_missing: bool,
) -> AnnotatedImages:
    """The images of a COCO set with their defect classes.

    Args:
        folder: the folder that the set's file names are relative to.
        normal_categories: names (any letter case) or ids of categories that are not defects; None for
            NORMAL_NAMES.
        use_names: name the class folders after categories instead of ids.
        take_unannotated: images without annotations are good; otherwise they are left out.
        skip_missing: leave out missing images.

    Raises:
        UserError: no such folder or category, or images that are missing or outside the folder.
    """
    require_folder(folder, "give the folder of the annotated images with --labeled_dir")
    normal = find_normal_categories(coco.categories, normal_categories)
    defects = [key for key in coco.categories if key not in normal]
    folders = name_class_folders({key: coco.categories[key] for key in defects}, use_names)
    notes = [*coco.notes, _describe_normal(coco.categories, normal), *_suspect_part_labels(coco, normal)]

    by_path: dict[Path, tuple[str, list[CocoImage]]] = {}  # a file may have several entries
    located, missing = _locate(coco, folder, skip_missing, notes)
    for name, path, image in located:
        by_path.setdefault(path, (name, []))[1].append(image)
    images, unannotated = [], 0
    for path, (name, entries) in by_path.items():
        annotations = [annotation for entry in entries for annotation in entry.annotations]
        if not annotations:
            unannotated += 1
            if not take_unannotated:
                continue
        found = [annotation for annotation in annotations if annotation["category_id"] not in normal]
        classes = sorted({annotation["category_id"] for annotation in found})
        class_folders = tuple(folders[key] for key in classes)
        images.append(SourceImage(path, name, class_folders, annotations, found, entries[0].size))
    if unannotated:
        what = "taken as good" if take_unannotated else "left out; --unannotated good takes them as good"
        notes.append(f"{unannotated} images have no annotations: {what}")
    images.sort(key=lambda image: image.name)
    return AnnotatedImages(images, {folders[key]: coco.categories[key] for key in defects}, missing, notes)


def find_normal_categories(categories: dict[int, str], wanted: Sequence[str] | None) -> set[int]:
    """The ids of the categories that are not defects.

    Args:
        wanted: names, in any letter case, or ids; None for those of NORMAL_NAMES that exist.

    Raises:
        UserError: a wanted category does not exist.
    """
    normal = set()
    for word in NORMAL_NAMES if wanted is None else wanted:
        found = {key for key, name in categories.items() if word.casefold() in (name.casefold(), str(key))}
        if wanted is not None and not found:
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
    cleaned = {
        key: re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name)[:_LONGEST_FOLDER_NAME].strip(" .")
        for key, name in categories.items()
    }
    uses = Counter(name.casefold() for name in cleaned.values())

    def is_fit(name: str) -> bool:
        folded = name.casefold()
        return bool(name) and folded not in _NO_DEFECT_FOLDERS and uses[folded] == 1 and is_data_folder(name)

    named = {key: name if is_fit(name) else f"{name}_{key}".lstrip("_. ") for key, name in cleaned.items()}
    again = Counter(name.casefold() for name in named.values())  # adding the id may make two of them equal
    return {key: name if again[name.casefold()] == 1 else by_id[key] for key, name in named.items()}


def find_good(folder: Path) -> list[SourceImage]:
    """Every image under the folder, at any depth, as a good one.

    Raises:
        UserError: no such folder, or no image in it.
    """
    images = _find_below(folder, "--unlabeled_dir")
    return [SourceImage(path, path.relative_to(folder).as_posix()) for path in images]


def find_defective(folder: Path) -> list[SourceImage]:
    """Every image under the folder; its class is the first folder below, or "defect" if there is none.

    Raises:
        UserError: no such folder, no image in it, or good images among them.
    """
    images = []
    for path in _find_below(folder, "--defect_dir"):
        parts = path.relative_to(folder).parts
        class_name = parts[0] if len(parts) > 1 else SINGLE_DEFECT_FOLDER
        if class_name.casefold() == GOOD_FOLDER:
            raise UserError(f"{folder / class_name} is among the defects; move it out, or to --unlabeled_dir")
        images.append(SourceImage(path, path.relative_to(folder).as_posix(), (class_name,)))
    return images


def _find_below(folder: Path, flag: str) -> list[Path]:
    require_folder(folder, f"give the folder of images with {flag}")
    images = find_images(folder)
    if not images:
        raise UserError(f"{folder} holds no images ({DESCRIPTION}); check {flag}")
    return images


def _locate(
    coco: CocoSet, folder: Path, skip_missing: bool, notes: list[str]
) -> tuple[list[tuple[str, Path, CocoImage]], list[Path]]:
    """Name, path and entry of every existing image in the folder; and the paths of the missing ones."""
    root = os.path.realpath(folder)
    located, missing, outside, unusual = [], [], [], []
    for image in coco.images:
        name = image.file_name
        if "\\" in name and not _exists(folder / name):
            name = name.replace("\\", "/")  # annotated on Windows
        path = folder / name
        if _leaves(path, root):
            outside.append(repr(image.file_name))
        elif not _exists(path):
            missing.append(path)
        elif not is_image_name(path.name):
            unusual.append(str(path))
        else:
            located.append((name, path, image))
    if outside:
        raise UserError(f"{_count(outside, 'file_name')} outside {folder}; correct it:{list_some(outside)}")
    if missing and not skip_missing:
        raise UserError(
            f"{_count(missing, 'annotated image')} missing; check that --labeled_dir is the folder that the "
            f"file names are relative to, or leave them out with --skip_missing:{list_some([*map(str, missing)])}"
        )
    if unusual:
        raise UserError(
            f"{_count(unusual, 'annotated image')} hidden or of an unknown type; known are "
            f"{DESCRIPTION}:{list_some(unusual)}"
        )
    if missing:
        notes.append(f"{_count(missing, 'annotated image')} missing and left out:{list_some([*map(str, missing)])}")
    if not located:
        raise UserError(f"{folder} holds none of the annotated images; check --labeled_dir")
    return located, missing


def _leaves(path: Path, root: str) -> bool:
    try:  # the image itself may be a link, as from tools that keep large files elsewhere
        return not Path(os.path.realpath(path.parent)).is_relative_to(root)
    except ValueError:  # not a valid file name
        return False


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or not a valid file name
        return False


def _count(problems: Sequence[str], noun: str) -> str:
    return f"1 {noun} is" if len(problems) == 1 else f"{len(problems)} {noun}s are"


def _describe_normal(categories: dict[int, str], normal: set[int]) -> str:
    names = ", ".join(f"{categories[key]} ({key})" for key in sorted(normal))
    if not names:
        return "Every category counts as a defect; name those that label the part with --normal_categories"
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
