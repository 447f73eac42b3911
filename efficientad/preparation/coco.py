"""Reads COCO annotations and checks every entry. Imports no torch."""

from __future__ import annotations

import re
import reprlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efficientad.preparation.annotation_files import read_annotation_file
from efficientad.system.errors import UserError, count_of, printable

_LARGEST_IMAGE = 178_956_970  # pixels; Pillow refuses to decode more
_NO_ID = "has no valid id; correct the annotations"
Annotation = dict[str, Any]  # with a category_id of CocoSet.categories; shapes.py reads boxes and outlines


@dataclass(frozen=True)
class CocoImage:
    """An image entry: its name below the image folder, the size that the file states for it, its annotations."""

    file_name: str
    size: tuple[int, int] | None  # width and height, if the file has them
    annotations: list[Annotation]


@dataclass(frozen=True)
class CocoSet:
    """A COCO file: images in the file's order, category names by id, and notes on harmless oddities."""

    images: list[CocoImage]
    categories: dict[int, str]
    roots: frozenset[int] = frozenset()  # ids of categories that only group others and that nothing is annotated as
    notes: list[str] = field(default_factory=list)


def read_coco(path: Path) -> CocoSet:
    """Read a COCO annotation file (object detection or segmentation).

    Ids that are text or decimal numbers are taken as the whole number that they mean where that is one entry.

    Raises:
        UserError: not readable, not JSON, no categories or images, two entries with one id, an incomplete entry,
            or an annotation of an unknown category or image: any of these could hide a defect.
    """
    contents = read_annotation_file(path)
    categories, odd_ids = _read_categories(path, contents)
    images = _by_id(path, "images", contents)
    for entry in images.values():
        if not isinstance(entry.get("file_name"), str) or not entry["file_name"].strip("/\\ "):
            raise UserError(f"{path}: image {entry['id']} has no file_name")
        if (size := _size(entry)) and size[0] * size[1] > _LARGEST_IMAGE:
            sides = " x ".join(map(reprlib.repr, size))
            raise UserError(f"{path}: image {entry['id']} has {sides} pixels; correct its size")
    annotations = _entries(path, "annotations", contents) if "annotations" in contents else []
    if not annotations:
        _refuse_elsewhere(path, contents)
    for number, annotation in enumerate(annotations):
        identity = annotation.setdefault("id", number + 1)
        if not isinstance(identity, (int, float, str)):
            raise UserError(f"{path}: an annotation's id is neither a number nor a string")
        key, is_odd = _find_category(annotation.get("category_id"), categories)
        if key is None:
            raise UserError(
                f"{path}: {name_annotation(annotation)} has the category_id "
                f"{reprlib.repr(annotation.get('category_id'))}, which is not among the file's categories; "
                "correct the annotations"
            )
        odd_ids += [annotation["category_id"]] if is_odd else []
        annotation["category_id"] = key
    notes = (
        [_describe_odd("Category ids that are text or decimal are taken as the whole", odd_ids)] if odd_ids else []
    )
    by_image = _assign(path, images, annotations, notes)
    names = {key: printable(str(entry.get("name") or key)) for key, entry in categories.items()}
    return CocoSet(
        [CocoImage(entry["file_name"], _size(entry), by_image[key]) for key, entry in images.items()],
        names,
        _find_roots(categories, {annotation["category_id"] for annotation in annotations}),
        notes,
    )


def name_annotation(annotation: Annotation) -> str:
    """The annotation in messages: "annotation 5"."""
    return f"annotation {reprlib.repr(annotation['id'])}"


def whole_number(value: Any) -> int | None:
    """The whole number that 2, 2.0, "2" and "2.0" mean; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value.split(".")[0]) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}(\.0+)?\s*", value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e15 else None
    return value if isinstance(value, int) else None


def _read_categories(path: Path, contents: dict[str, Any]) -> tuple[dict[int, dict[str, Any]], list[Any]]:
    """The categories by id, and the ids that had to be converted."""
    categories: dict[int, dict[str, Any]] = {}
    odd_ids = []
    for entry in _filled(path, "categories", contents):
        if "id" not in entry:
            raise UserError(f"{path}: one of its categories {_NO_ID}")
        key = whole_number(entry["id"])
        if key is None:
            raise UserError(
                f"{path}: category ids must be whole numbers, here {reprlib.repr(entry['id'])}; correct them, and "
                "the category_id of the annotations"
            )
        if key in categories:
            raise _same_id(path, "categories", categories[key]["id"], entry["id"])
        categories[key] = entry
        odd_ids += [] if type(entry["id"]) is int else [entry["id"]]
    return categories, odd_ids


def _find_category(value: Any, categories: dict[int, Any]) -> tuple[int | None, bool]:
    """The category that an annotation names, None if there is none, and whether its id had to be converted."""
    key = whole_number(value)
    return (key if key in categories else None), type(value) is not int


def _find_roots(categories: dict[int, dict[str, Any]], used: set[int]) -> frozenset[int]:
    """Categories that others have as their supercategory and that nothing is annotated as."""
    groups = Counter(str(entry.get("supercategory")) for entry in categories.values())
    roots = set()
    for key, entry in categories.items():
        name = str(entry.get("name"))
        others = groups[name] - (str(entry.get("supercategory")) == name)
        if others and key not in used:
            roots.add(key)
    return frozenset(roots)


def _by_id(path: Path, key: str, contents: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The entries by id, a whole number or text; there must be some, and none that mean the same number."""
    by_id: dict[int | str, dict[str, Any]] = {}
    numbers: dict[int, int | str] = {}
    for entry in _filled(path, key, contents):
        value = entry.get("id")
        identity = value if isinstance(value, str) else whole_number(value)
        if identity is None:
            raise UserError(f"{path}: one of its {key} {_NO_ID}")
        if identity in by_id:
            raise _same_id(path, key, by_id[identity]["id"], value)
        number = whole_number(identity)
        if number is not None and type(numbers.setdefault(number, identity)) is not type(identity):
            raise _same_id(path, key, numbers[number], value)
        by_id[identity] = entry
    return by_id


def _same_id(path: Path, key: str, one: Any, other: Any) -> UserError:
    if one == other:
        return UserError(f"{path}: two of its {key} have the id {one}; correct the annotations")
    return UserError(
        f"{path}: two of its {key} have the ids {reprlib.repr(one)} and {reprlib.repr(other)}, which mean the "
        "same; correct the annotations"
    )


def _assign(
    path: Path, images: dict[int | str, Any], annotations: list[Annotation], notes: list[str]
) -> dict[int | str, list[Annotation]]:
    """The annotations of each image. An id of another type is taken where it means exactly one image."""
    by_number: dict[int, list[int | str]] = defaultdict(list)
    for key in images:
        if (number := whole_number(key)) is not None:
            by_number[number].append(key)
    by_image: dict[int | str, list[Annotation]] = defaultdict(list)
    odd_ids, strays = [], []
    for annotation in annotations:
        value = annotation.get("image_id")
        if isinstance(value, bool) or not isinstance(value, (int, str, float)):
            raise UserError(f"{path}: {name_annotation(annotation)} has no valid image_id; correct the annotations")
        key = value
        if isinstance(value, float) or value not in images:
            meant = by_number.get(whole_number(value), [])
            if len(meant) != 1:
                strays.append(annotation)
                continue
            key = meant[0]
            odd_ids.append(value)
        by_image[key].append(annotation)
    if strays and len(strays) == len(annotations):
        raise UserError(f"{path}: no annotation has the image_id of an image in the file; correct them")
    if strays:
        first = f"{name_annotation(strays[0])} has the image_id {reprlib.repr(strays[0]['image_id'])}"
        belong = "belongs" if len(strays) == 1 else "belong"
        raise UserError(
            f"{path}: {count_of(len(strays), 'annotation')} {belong} to no image of the file (first: {first}); "
            "correct or remove what could hide a defect"
        )
    if odd_ids:
        notes.append(_describe_odd("Image ids of another type in annotations are taken as the", odd_ids))
    return by_image


def _refuse_elsewhere(path: Path, contents: dict[str, Any]) -> None:
    """Raise a UserError if a file has annotations in another place, without which its images would pass as good."""
    lists = {key: value for key, value in contents.items() if key not in ("images", "categories")}
    lists |= {f"{key} of an image": value for entry in contents["images"] for key, value in entry.items()}
    for key, value in lists.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and {"bbox", "segmentation", "category_id"} & set(first):
            raise UserError(
                f"{path} has no annotations where COCO has them, but in {printable(key)!r}; move them to a list "
                "annotations beside images, each with the image_id of its image"
            )


def _describe_odd(what: str, values: list[Any]) -> str:
    return f"{what} numbers that they mean: {len(values)} (first: {reprlib.repr(values[0])})"


def _filled(path: Path, key: str, contents: dict[str, Any]) -> list[dict[str, Any]]:
    entries = _entries(path, key, contents) if key in contents else []
    if not entries:
        raise UserError(f"{path} has no {key}; is it a COCO file of object annotations?")
    return entries


def _entries(path: Path, key: str, contents: dict[str, Any]) -> list[dict[str, Any]]:
    entries = contents[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: its {key} are not a list of COCO entries")
    return entries


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    width, height = whole_number(entry.get("width")), whole_number(entry.get("height"))
    return (width, height) if width and height and min(width, height) > 0 else None
