"""EXIF orientation: turns images and annotations upright."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import ExifTags, Image

from efficientad.data.formats import failure_reason, open_image, stored_size
from efficientad.data.images import UnreadableImageError

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageHeader:
    """Size and orientation of an image, read without decoding it; sizes are width and height."""

    stored_size: tuple[int, int]
    orientation: int  # EXIF's, 1 to 8; from 5 on, width and height are exchanged in the upright image

    @property
    def upright_size(self) -> tuple[int, int]:
        return self.stored_size[::-1] if self.orientation > 4 else self.stored_size


@dataclass(frozen=True)
class Frame:
    """What the coordinates of an image's annotations refer to: a picture of this width and height."""

    size: tuple[int, int]
    is_stored: bool  # before EXIF rotation


def read_header(data: bytes, name: str) -> ImageHeader:
    """The header of an image file's bytes; far cheaper than decoding, but damage further on goes unnoticed.

    Raises:
        UnreadableImageError: not an image.
    """
    try:
        with open_image(io.BytesIO(data), name) as opened:
            # Pillow decodes a whole PNG to look for EXIF data behind the pixels
            may_have_exif = opened.format != "PNG" or b"eXIf" in data or b"exif" in data
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1) if may_have_exif else 1
            return ImageHeader(stored_size(opened), orientation if orientation in range(1, 9) else 1)
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(name, failure_reason(error, empty=not data)) from error


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The stored image turned upright, for an EXIF orientation of 1 to 8."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def turn_point_upright(x: float, y: float, header: ImageHeader) -> tuple[float, float]:
    """Where turn_upright takes a point of the stored image, both from the upper left corner."""
    width, height = header.stored_size
    turned = {1: (x, y), 2: (width - x, y), 3: (width - x, height - y), 4: (x, height - y)}
    turned |= {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}
    return turned[header.orientation]
