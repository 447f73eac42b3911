"""Reads COCO annotations, checks every entry, and draws masks. Imports no torch."""

from __future__ import annotations

import contextlib
import io
import json
import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from efficientad.system.errors import UserError, printable

_LARGEST_IMAGE = 178_956_970  # pixels; Pillow refuses to decode more
_FARTHEST = 1e9  # coordinates beyond it are as broken as nan and inf
Annotation = dict[str, Any]  # with at least category_id; box and outline by annotation_box and annotation_rle


@dataclass(frozen=True)
class CocoImage:
    """An image entry: its name below the image folder, the size that its annotations refer to, and those."""

    file_name: str
    size: tuple[int, int] | None  # width and height, if the file has them
    annotations: list[Annotation]


@dataclass(frozen=True)
class CocoSet:
    """A COCO file: images in the file's order, category names by id, and notes on harmless oddities."""

    images: list[CocoImage]
    categories: dict[int, str]
    notes: list[str] = field(default_factory=list)


def read_coco(path: Path) -> CocoSet:
    """Read a COCO annotation file (object detection or segmentation).

    Raises:
        UserError: not readable, not JSON, no categories or images, two entries with one id, an incomplete entry,
            or an annotation of an unknown category: any of these could hide a defect.
    """
    contents = _read_json(path)
    categories = _unique(path, "categories", contents, int)
    images = _unique(path, "images", contents, (int, str))
    for entry in images.values():
        if not isinstance(entry.get("file_name"), str) or not entry["file_name"].strip("/\\ "):
            raise UserError(f"{path}: image {entry['id']} has no file_name")
        if (size := _size(entry)) and size[0] * size[1] > _LARGEST_IMAGE:
            raise UserError(f"{path}: image {entry['id']} has {size[0]} x {size[1]} pixels; correct its size")
    annotations = _entries(path, "annotations", contents) if "annotations" in contents else []
    for number, annotation in enumerate(annotations):
        annotation.setdefault("id", number + 1)  # only pycocotools' index needs one
        category, image = annotation.get("category_id"), annotation.get("image_id")
        name = f"annotation {reprlib.repr(annotation['id'])}"
        if not (_is_integer(category) and category in categories):
            raise UserError(
                f"{path}: {name} has the category_id {reprlib.repr(category)}, which is not among the file's "
                "categories; correct the annotations"
            )
        if not isinstance(image, (int, str)):
            raise UserError(f"{path}: {name} has no valid image_id; correct the annotations")
    coco = COCO()
    coco.dataset = {**contents, "annotations": annotations}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            coco.createIndex()
    except TypeError:
        raise UserError(f"{path}: an annotation's id is neither a number nor a string") from None
    notes = []
    strays = sum(annotation["image_id"] not in images for annotation in annotations)
    if strays and strays == len(annotations):
        raise UserError(f"{path}: no annotation has the image_id of an image in the file; correct them")
    if strays:
        notes.append(f"{strays} annotations belong to no image of {path} and are ignored")
    return CocoSet(
        [CocoImage(entry["file_name"], _size(entry), coco.imgToAnns.get(key, [])) for key, entry in images.items()],
        {key: printable(str(entry.get("name") or key)) for key, entry in categories.items()},
        notes,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}; name the COCO file with --annotations, or use --annotations none")
    try:
        contents = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # broken JSON or not UTF-8; nested without end
        raise UserError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(contents, dict):
        raise UserError(f"{path} is not a COCO file: it has no images, annotations and categories")
    return contents


def _entries(path: Path, key: str, contents: dict[str, Any]) -> list[dict[str, Any]]:
    entries = contents[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: its {key} are not a list of COCO entries")
    return entries


def _unique(path: Path, key: str, contents: dict[str, Any], id_type: type | tuple) -> dict[Any, dict[str, Any]]:
    """The entries by id; there must be some, with unique ids."""
    entries = _entries(path, key, contents) if key in contents else []
    if not entries:
        raise UserError(f"{path} has no {key}; is it a COCO file of object annotations?")
    by_id: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry.get("id"), id_type) or isinstance(entry["id"], bool):
            raise UserError(f"{path}: one of its {key} has no valid id; correct the annotations")
        if by_id.setdefault(entry["id"], entry) is not entry:
            raise UserError(f"{path}: two of its {key} have the id {entry['id']}; correct the annotations")
    return by_id


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    size = (entry.get("width"), entry.get("height"))
    return size if all(_is_integer(side) and side > 0 for side in size) else None


def annotation_box(annotation: Annotation, width: int, height: int) -> tuple[float, float, float, float] | None:
    """The bounding box (left, top, right, bottom) within the image, or None without one that has an area."""
    box = annotation.get("bbox")
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not _are_finite(box):
        return None
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def annotation_polygons(annotation: Annotation) -> list[list[float]]:
    """The outlines x, y, x, y, ... of an annotation; none for a run-length mask or a box."""
    outlines = annotation.get("segmentation")
    if not isinstance(outlines, list):
        return []
    return [points for points in outlines if _is_polygon(points)]


def draw_mask(annotations: Iterable[Annotation], width: int, height: int) -> np.ndarray:
    """The union of the annotations, uint8 H x W, 0 or 255.

    Each is drawn from its segmentation (polygons or run lengths, crowds too) or, failing that, from its box.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    outlines = []
    for annotation in annotations:
        outline = _run_lengths(annotation, width, height)
        if outline is not None:
            outlines.append(outline)
        elif (box := annotation_box(annotation, width, height)) is not None:
            left, top, right, bottom = box
            mask[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 255
    if outlines:
        mask[coco_mask.decode(coco_mask.merge(outlines)).astype(bool)] = 255
    return mask


def _run_lengths(annotation: Annotation, width: int, height: int) -> dict[str, Any] | None:
    """The segmentation as pycocotools' run lengths, or None without a valid one that has an area."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            counts = _expand_counts(counts)
        # pycocotools trusts the counts, and writes beyond its memory if they exceed the image
        sound = segmentation.get("size") == [height, width] and isinstance(counts, list)
        if not sound or not all(_is_integer(run) and run >= 0 for run in counts) or sum(counts) != width * height:
            return None
        merged = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    else:
        # Far-away points would take memory in proportion to their distance.
        limits = np.array([width, height], dtype=np.float64)
        polygons = [
            np.clip(np.reshape(points, (-1, 2)), -limits, 2 * limits).ravel().tolist()
            for points in annotation_polygons(annotation)
        ]
        if not polygons:
            return None
        merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return merged if coco_mask.area(merged) else None


def _expand_counts(text: str) -> list[int] | None:
    """The numbers in COCO's compressed run lengths, or None if the text is invalid.

    Six bits a character: five of the number, and whether it continues. From the third run on, each is the
    difference from the run two before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts if shift == 0 else None


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0 and _are_finite(points)


def _are_finite(numbers: Iterable[Any]) -> bool:
    return all(
        isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < _FARTHEST
        for number in numbers
    )
