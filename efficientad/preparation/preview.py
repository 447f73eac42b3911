"""Annotations drawn on their images, to check labels by eye. Imports no torch."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image, ImageDraw, ImageFont

from efficientad.data.depth import Depth, Scale
from efficientad.data.images import (
    UnreadableImageError,
    decode_image,
    fit_jpg,
    raise_if_unreadable,
    read_bytes,
    read_deep,
)
from efficientad.preparation.orientation import Frame, read_header, turn_point_upright
from efficientad.preparation.plan import distinct_names
from efficientad.preparation.shapes import annotation_box, annotation_polygons
from efficientad.preparation.sources import SourceImage
from efficientad.preparation.staging import ManifestRow, write_manifest
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar

_JPG_QUALITY = 90
_GOLDEN_RATIO = 0.618  # hue steps that stay far apart in any number


def category_colours(categories: dict[int, str]) -> dict[int, tuple[int, int, int]]:
    """An RGB colour for each category id, unlike those of its neighbours."""
    return {
        key: tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, 0.9, 1.0))
        for number, key in enumerate(sorted(categories))
    }


def _own_depth(source: SourceImage) -> Depth:
    """What is white in a file of more than 8 bits, by its values alone: enough to look at it."""
    deep = read_deep(source.path)
    try:
        scale = None if deep is None else Scale(deep.own_white()[1])
    except ValueError as error:
        raise UnreadableImageError(str(source.path), str(error)) from error
    return Depth(scale, scale)


def draw_annotations(source: SourceImage, categories: dict[int, str]) -> Image.Image:
    """The source's upright RGB image with box, outline and category name of each of its annotations.

    Raises:
        UnreadableImageError
    """
    data = read_bytes(source.path)
    image, header = decode_image(data, str(source.path), _own_depth(source)), read_header(data, str(source.path))
    frame = source.frame or Frame(image.size, is_stored=False)
    full_size = header.stored_size if frame.is_stored else image.size
    scale = (full_size[0] / frame.size[0], full_size[1] / frame.size[1])

    def place(x: float, y: float) -> tuple[float, float]:
        point = (x * scale[0], y * scale[1])
        return turn_point_upright(*point, header) if frame.is_stored else point

    pen = ImageDraw.Draw(image)
    line_width = max(1, round(min(image.size) / 300))
    font = ImageFont.load_default(size=max(10, min(image.size) / 32))
    colours = category_colours(categories)
    for annotation in source.annotations:
        key = annotation["category_id"]
        for points in annotation_polygons(annotation):
            outline = [place(x, y) for x, y in zip(points[::2], points[1::2], strict=True)]
            pen.line([*outline, outline[0]], fill=colours[key], width=line_width)
        if box := annotation_box(annotation, *frame.size):
            (left, right), (top, bottom) = map(sorted, zip(place(*box[:2]), place(*box[2:]), strict=True))
            pen.rectangle((left, top, right, bottom), outline=colours[key], width=line_width)
            _write_name(pen, left, top, categories[key], font, colours[key])
    return image


def _write_name(
    pen: ImageDraw.ImageDraw,
    left: float,
    top: float,
    name: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> None:
    """Write the name on a patch of its colour, above the upper left corner of a box or, at an edge, in it."""
    x, y = round(left), round(top)
    _, _, right, bottom = pen.textbbox((x, y), name, font=font)
    height = bottom - y + 2
    y = y - height if y >= height else y
    pen.rectangle((x, y, right + 2, y + height), fill=colour)
    luma = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    pen.text((x + 1, y), name, font=font, fill=(0, 0, 0) if luma > 128 else (255, 255, 255))


def write_previews(
    sources: Sequence[SourceImage],
    categories: dict[int, str],
    folder: Path,
    workers: int,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
) -> None:
    """Write a JPG of every annotated source into the empty `folder`, and a manifest.csv of them.

    Args:
        on_unreadable: called for each image that cannot be decoded, which has no preview; None: they are an error.

    Raises:
        UserError: images cannot be decoded, and on_unreadable is None; names all of them.
    """
    annotated = [source for source in sources if source.annotations]
    names = distinct_names([PurePosixPath(source.name).name for source in annotated])

    def write(item: tuple[SourceImage, str]) -> ManifestRow | UnreadableImageError:
        source, name = item
        path = folder / PurePosixPath(name).with_suffix(".jpg")
        try:
            drawn = draw_annotations(source, categories)
            fit_jpg(drawn)
            drawn.save(path, quality=_JPG_QUALITY)
        except UnreadableImageError as error:
            return error
        return ManifestRow(source.path.absolute(), path.name, hashlib.sha256(path.read_bytes()).hexdigest())

    done = parallel_map(write, list(zip(annotated, names, strict=True)), workers)
    unreadable: list[UnreadableImageError] = []
    rows = []
    for row in progress_bar(done, desc="Drawing annotations", total=len(annotated), unit="image"):
        if isinstance(row, UnreadableImageError):
            (on_unreadable or unreadable.append)(row)
        else:
            rows.append(row)
    raise_if_unreadable(unreadable)
    write_manifest(folder, rows)
