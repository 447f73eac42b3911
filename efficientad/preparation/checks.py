"""Finds annotations that cannot be meant as they are written. Imports no torch.

What a whole file has wrong ends the command, since all masks would be wrong; single oddities are named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from efficientad.preparation.coco import Annotation, name_annotation
from efficientad.preparation.shapes import (
    Box,
    Drawn,
    annotation_polygons,
    box_fits,
    describe_box,
    extent,
    has_shape,
    read_annotation,
    read_box,
)
from efficientad.preparation.sources import SourceImage
from efficientad.system.errors import UserError, count_of, printable

_NEARLY_ALL = 0.9  # share of the annotations from which it is the exporter that is wrong
_CLEARLY = 0.05  # of a side: boxes that leave their image by more are more than inexact
_APART = 0.01  # of a side: a gap between box and outline that is no rounding error
_MANY_OUTSIDE = 0.2  # share of boxes that leave their image, from which they may be [x1, y1, x2, y2]


@dataclass
class _Kind:
    """How many annotations have one oddity, and the first of them."""

    count: int = 0
    first: str = ""

    def add(self, annotation: Annotation, source: SourceImage, why: str = "") -> None:
        if not self.count:
            self.first = f"{name_annotation(annotation)} of {printable(source.name)}{why and f': {why}'}"
        self.count += 1

    def line(self, one: str, many: str) -> list[str]:
        """E.g. ["2 annotations draw nothing (first: ...)"]; none for a count of 0."""
        return [f"{self.count} {one if self.count == 1 else many} (first: {self.first})"] if self.count else []


@dataclass
class _Findings:
    """The oddities of the annotations that mark defects."""

    count: int = 0  # annotations with a box or outlines that can be read
    boxes: int = 0  # those that are drawn as their box
    boxes_of_corners: int = 0  # that would be within the image as [x1, y1, x2, y2]
    boxes_outside: _Kind = field(default_factory=_Kind)
    relative: _Kind = field(default_factory=_Kind)
    shapeless: _Kind = field(default_factory=_Kind)
    empty: _Kind = field(default_factory=_Kind)
    as_box: _Kind = field(default_factory=_Kind)
    in_part: _Kind = field(default_factory=_Kind)
    outside: _Kind = field(default_factory=_Kind)
    apart: _Kind = field(default_factory=_Kind)
    rotated: _Kind = field(default_factory=_Kind)
    readings: dict[str, _Kind] = field(default_factory=lambda: defaultdict(_Kind))


def check_annotations(file: Path, sources: Sequence[SourceImage]) -> list[str]:
    """Notes for the user about annotations of defects that draw nothing or not what they say.

    Args:
        file: the annotation file, for messages.
        sources: with their frames, see settle_frames.

    Raises:
        UserError: (nearly) all coordinates are relative, or (nearly) all boxes are two corners.
    """
    found = _Findings()
    for source in sources:
        for annotation in source.defects:
            _look_at(annotation, source, found)
    if found.count and found.relative.count >= _NEARLY_ALL * found.count:
        raise UserError(
            f"{file}: {_share(found.relative.count, found.count)} annotations lie within 0..1 (first: "
            f"{found.relative.first}): relative coordinates? COCO has pixels; multiply x and width by the width of "
            "the image, y and height by its height"
        )
    many = found.boxes_outside.count >= max(1, _MANY_OUTSIDE * found.boxes)
    if many and found.boxes_of_corners >= _NEARLY_ALL * found.boxes:
        raise UserError(
            f"{file}: {found.boxes_outside.count} of {found.boxes} boxes leave their image (first: "
            f"{found.boxes_outside.first}) and would be inside as [x1, y1, x2, y2]; convert them to COCO's "
            "[x, y, width, height]"
        )
    return [
        *found.shapeless.line(
            "annotation has neither box nor segmentation and makes no mask",
            "annotations have neither box nor segmentation and make no masks",
        ),
        *found.empty.line("annotation draws nothing", "annotations draw nothing"),
        *found.as_box.line(
            "segmentation cannot be read and is drawn as its box",
            "segmentations cannot be read and are drawn as their box",
        ),
        *found.in_part.line("segmentation is read only in part", "segmentations are read only in part"),
        *found.outside.line("annotation leaves its image", "annotations leave their image"),
        *found.apart.line(
            "segmentation does not touch the box of its annotation",
            "segmentations do not touch the box of their annotation",
        ),
        *found.rotated.line(
            "box has a rotation and is drawn without it", "boxes have a rotation and are drawn without it"
        ),
        *found.relative.line("annotation lies within 0..1", "annotations lie within 0..1"),
        *(
            f"{reading}: {count_of(kind.count, 'annotation')} (first: {kind.first})"
            for reading, kind in found.readings.items()
        ),
    ]


def _look_at(annotation: Annotation, source: SourceImage, found: _Findings) -> None:
    size = source.frame.size
    drawn = read_annotation(annotation, *size)
    for reading in sorted(drawn.readings):
        found.readings[reading].add(annotation, source)
    if extent(annotation) is not None:
        found.count += 1
    if _is_relative(annotation):
        found.relative.add(annotation, source)
    if drawn.runs is None and (box := read_box(annotation)):
        found.boxes += 1
        if not box_fits((box[0], box[1], box[0] + box[2], box[1] + box[3]), size, _CLEARLY):
            found.boxes_outside.add(annotation, source, f"{box} in {size[0]} x {size[1]}")
        found.boxes_of_corners += box[0] < box[2] and box[1] < box[3] and box_fits(tuple(box), size)
    if drawn.box is not None and _is_rotated(annotation):
        found.rotated.add(annotation, source)
    if drawn.runs is not None and _is_apart(drawn.runs, read_box(annotation), size):
        found.apart.add(annotation, source)
    _sort_in(annotation, source, drawn, found)


def _sort_in(annotation: Annotation, source: SourceImage, drawn: Drawn, found: _Findings) -> None:
    width, height = source.frame.size
    if drawn.is_empty:
        if not has_shape(annotation):
            found.shapeless.add(annotation, source)
        else:
            why = [drawn.problem, describe_box(annotation, width, height)]
            found.empty.add(annotation, source, " and ".join(filter(None, why)))
    elif drawn.problem:
        (found.in_part if drawn.runs else found.as_box).add(annotation, source, drawn.problem)
    sides = _sides_of_drawn(annotation, drawn)
    if sides and not box_fits(sides, (width, height)):
        left, top, right, bottom = sides
        where = f"from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) in {width} x {height}"
        found.outside.add(annotation, source, where)


def _sides_of_drawn(annotation: Annotation, drawn: Drawn) -> Box | None:
    """Left, top, right and bottom of the outlines or the box that is drawn, not cut; None if it is neither."""
    if drawn.runs is not None:
        return extent(annotation) if annotation_polygons(annotation) else None
    return extent({"bbox": annotation["bbox"]}) if drawn.box else None


def _is_rotated(annotation: Annotation) -> bool:
    """Whether the box is turned, as CVAT writes it."""
    attributes = annotation.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    return isinstance(rotation, (int, float)) and rotation % 360 != 0


def _is_apart(runs: dict[str, Any], box: list[float] | None, size: tuple[int, int]) -> bool:
    """Whether a box that has an area is somewhere else than the run lengths, by more than a rounding error."""
    if box is None or min(box[2:]) <= 0:
        return False
    left, top, width, height = coco_mask.toBbox(runs).tolist()
    gaps = (
        max(left - box[0] - box[2], box[0] - left - width) / size[0],
        max(top - box[1] - box[3], box[1] - top - height) / size[1],
    )
    return max(gaps) > _APART


def _is_relative(annotation: Annotation) -> bool:
    """Whether all coordinates are between 0 and 1, and not all of them whole."""
    outlines = annotation_polygons(annotation)
    values = [value for points in outlines for value in points] or read_box(annotation) or []
    return all(0 <= value <= 1 for value in values) and any(value != int(value) for value in values)


def _share(count: int, total: int) -> str:
    return f"all {total}" if count == total else f"{count} of {total}"
