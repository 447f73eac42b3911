"""Reads the boxes and segmentations of COCO annotations, and draws masks from them. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from efficientad.preparation.coco import Annotation

_FARTHEST = 1e9  # coordinates beyond it are as broken as nan and inf
_LONGEST_OUTLINE = 1_000_000  # pixels; pycocotools needs about 120 bytes for each
_NUMBER = re.compile(r"\s*[+-]?([0-9]{1,18}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?\s*")
AS_TEXT = "Coordinates that are text are read as numbers"
AS_POINTS = "Outlines of points [x, y] in place of x, y, x, y, ... are read as such"
UNWRAPPED = "Segmentations that are one outline in place of a list of them are read as such"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Polygons:
    """The outlines x, y, x, y, ... of a segmentation; why others are left out, and how they were read."""

    outlines: list[list[float]]
    problem: str = ""
    reading: str = ""


@dataclass(frozen=True)
class Drawn:
    """What an annotation draws on an image: run lengths or, failing them, a box (left, top, right, bottom)."""

    runs: dict[str, Any] | None
    box: Box | None
    problem: str  # why its segmentation, or a part of it, is not drawn; empty if it is, or if there is none
    readings: frozenset[str]  # AS_TEXT, AS_POINTS, UNWRAPPED

    @property
    def is_empty(self) -> bool:
        return self.runs is None and self.box is None


def has_shape(annotation: Annotation) -> bool:
    """Whether the annotation has a box or a segmentation, readable or not; without one it only names a class."""
    segmentation = annotation.get("segmentation")
    return bool(annotation.get("bbox") or "rle" in annotation or segmentation not in (None, "", {}, [], [[]]))


def read_box(annotation: Annotation) -> list[float] | None:
    """The four numbers of the bbox, x, y, width and height in COCO; None without four finite ones."""
    box = annotation.get("bbox")
    numbers = _numbers(box) if isinstance(box, list) and len(box) == 4 else None
    return numbers if numbers and _are_finite(numbers) else None


def annotation_box(annotation: Annotation, width: int, height: int) -> Box | None:
    """The bounding box (left, top, right, bottom) within the image, or None without one that has an area."""
    box = read_box(annotation)
    if box is None:
        return None
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def describe_box(annotation: Annotation, width: int, height: int) -> str:
    """Why annotation_box finds no box; empty if it finds one."""
    if annotation_box(annotation, width, height):
        return ""
    if not annotation.get("bbox"):
        return "it has no box"
    box = read_box(annotation)
    if box is None:
        return "its bbox is not four numbers"
    return "its box has no area" if min(box[2:]) <= 0 else "its box is outside the image"


def annotation_polygons(annotation: Annotation) -> list[list[float]]:
    """The outlines x, y, x, y, ... of an annotation; none for a run-length mask or a box."""
    return read_polygons(annotation).outlines


def read_polygons(annotation: Annotation) -> Polygons:
    """The outlines of a segmentation that is a list; none of any other.

    Besides COCO's list of outlines, two others are read, which can mean nothing else: one outline that is not
    in a list, and outlines whose points are [x, y].
    """
    parts = annotation.get("segmentation")
    parts = [part for part in parts if part not in ([], None)] if isinstance(parts, list) else []
    if not parts:
        return Polygons([])
    reading = ""
    if not any(isinstance(part, (list, dict)) for part in parts):
        parts, reading = [parts], UNWRAPPED
    elif _are_points(parts):
        parts = [parts]
    outlines, problem, texts = [], "", False
    for part in parts:
        if _are_points(part):
            part, reading = [value for point in part for value in point], AS_POINTS
        points = _numbers(part)
        found = _describe_points(points)
        if found:
            problem = found
        else:
            outlines.append(points)
            texts = texts or points is not part  # converted
    return Polygons(outlines, problem, (reading or (AS_TEXT if texts else "")) if outlines else "")


def extent(annotation: Annotation) -> Box | None:
    """Left, top, right and bottom of what the annotation draws, not cut at any image; None if it is unreadable.

    Of run lengths it is the size of the image that they were made for.
    """
    outlines = annotation_polygons(annotation)
    if outlines:
        columns = [value for points in outlines for value in points[::2]]
        rows = [value for points in outlines for value in points[1::2]]
        return min(columns), min(rows), max(columns), max(rows)
    if size := _size_of_runs(annotation):
        return 0, 0, size[1], size[0]
    box = read_box(annotation)
    return (box[0], box[1], box[0] + box[2], box[1] + box[3]) if box else None


def fits(annotation: Annotation, size: tuple[int, int]) -> bool:
    """Whether the annotation lies within an image of this width and height, but for a rounding error.

    Run lengths fit their own size alone; what is unreadable fits nowhere.
    """
    if not annotation_polygons(annotation) and (runs := _size_of_runs(annotation)):
        return runs == [size[1], size[0]]
    sides = extent(annotation)
    return sides is not None and box_fits(sides, size)


def box_fits(box: Box, size: tuple[int, int], tolerance: float = 0.01) -> bool:
    """Whether left, top, right, bottom are within an image of this width and height, but for a share of them."""
    slack = [1 + tolerance * side for side in size]
    left, top, right, bottom = box
    return left >= -slack[0] and top >= -slack[1] and right <= size[0] + slack[0] and bottom <= size[1] + slack[1]


def read_annotation(annotation: Annotation, width: int, height: int) -> Drawn:
    """What the annotation draws on an image of this size, as draw_mask does, and what had to be guessed."""
    polygons = read_polygons(annotation)
    readings = {polygons.reading} - {""}
    problem = polygons.problem
    runs = None
    if polygons.outlines:
        runs, found = _outlines_to_runs(polygons.outlines, width, height)
        problem = found or problem
    elif "rle" in annotation or not isinstance(annotation.get("segmentation") or [], list):
        runs, problem = _read_runs(annotation, width, height)
    box = None if runs is not None else annotation_box(annotation, width, height)
    if box and any(isinstance(value, str) for value in annotation["bbox"]):
        readings.add(AS_TEXT)
    return Drawn(runs, box, problem, frozenset(readings))


def draw_mask(annotations: Iterable[Annotation], width: int, height: int) -> np.ndarray:
    """The union of the annotations, uint8 H x W, 0 or 255.

    Each is drawn from its segmentation (polygons or run lengths, crowds too) or, failing that, from its box.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    outlines = []
    for annotation in annotations:
        drawn = read_annotation(annotation, width, height)
        if drawn.runs is not None:
            outlines.append(drawn.runs)
        elif drawn.box is not None:
            left, top, right, bottom = drawn.box
            mask[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 255
    if outlines:
        mask[coco_mask.decode(coco_mask.merge(outlines)).astype(bool)] = 255
    return mask


def _outlines_to_runs(outlines: list[list[float]], width: int, height: int) -> tuple[dict[str, Any] | None, str]:
    """pycocotools' run lengths of the outlines, or None and the reason."""
    limits = np.array([width, height], dtype=np.float64)
    # Far-away points would take memory in proportion to their distance.
    near = [np.clip(np.reshape(points, (-1, 2)), -limits, 2 * limits) for points in outlines]
    length = sum(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() for points in near)
    if length > _LONGEST_OUTLINE:
        return None, f"its outline is {length:.0f} pixels long"
    merged = coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist() for points in near], height, width))
    if coco_mask.area(merged):
        return merged, ""
    return None, "its outline encloses no pixel of the image"


def _read_runs(annotation: Annotation, width: int, height: int) -> tuple[dict[str, Any] | None, str]:
    """pycocotools' run lengths of a segmentation that is no list, or None and the reason."""
    segmentation = annotation.get("segmentation")
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if isinstance(counts, str):
        counts = _expand_counts(counts)
    if counts is None and ("rle" in annotation or (isinstance(segmentation, dict) and "rle" in segmentation)):
        return None, "it is not COCO's run lengths but another format, perhaps of Label Studio's brush"
    if not isinstance(segmentation, dict):
        return None, "its segmentation is neither outlines nor run lengths"
    size = segmentation.get("size")
    if size != [height, width]:
        if size == [width, height]:
            return None, f"the size of its run lengths is {size}, width before height; COCO's is height, width"
        return None, f"its run lengths are not of the image's size, height {height} and width {width}"
    # pycocotools trusts the counts, and writes beyond its memory if they exceed the image
    sound = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
    if not sound or sum(counts) != width * height:
        return None, "its run lengths do not fill the image"
    merged = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return (merged, "") if coco_mask.area(merged) else (None, "its run lengths mark no pixel")


def _size_of_runs(annotation: Annotation) -> list[int] | None:
    """Height and width of run lengths; None without them."""
    segmentation = annotation.get("segmentation")
    size = segmentation.get("size") if isinstance(segmentation, dict) and "counts" in segmentation else None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return size
    return None


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


def _are_points(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) >= 3
        and all(isinstance(point, list) and len(point) == 2 and _numbers(point) for point in part)
    )


def _numbers(values: Any) -> list[float] | None:
    """The numbers of a list, also those given as text; None if one is anything else."""
    if not isinstance(values, list):
        return None
    if set(map(type, values)) <= {int, float}:
        return values
    numbers = []
    for value in values:
        if isinstance(value, str) and len(value) < 80 and _NUMBER.fullmatch(value):
            value = float(value)
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        numbers.append(value)
    return numbers


def _describe_points(points: list[float] | None) -> str:
    """Why these are no outline; empty if they are one."""
    if points is None:
        return "its outline is not a list of numbers"
    if not _are_finite(points):
        return "its outline has coordinates that are not finite"
    if len(points) % 2:
        return "its outline has an odd number of coordinates"
    return "its outline has fewer than three points" if len(points) < 6 else ""


def _are_finite(numbers: Sequence[float]) -> bool:
    """Whether all are finite and not far away. Quick, since a file may have millions."""
    if not numbers:
        return True
    try:
        total = sum(numbers)  # nan if one of them is
    except OverflowError:  # a whole number that is too large for a float
        return False
    return total == total and min(numbers) > -_FARTHEST and max(numbers) < _FARTHEST
