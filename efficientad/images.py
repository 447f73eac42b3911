"""Images from disk: one way to find, read and resize them for every command. Imports no torch.

Knows nothing of data sets and classes. Pixels leave this module as upright RGB uint8.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from efficientad.system.errors import UserError, list_files

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"})

_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of a whole file

_LARGEST_JPG = 65_500  # pixels on a side; libjpeg writes no more
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # tags

_TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(Exception):
    """One file cannot be decoded as an image; the message is its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # as given, so that another process can be sent it
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    def __reduce__(self) -> tuple:
        return UnreadableImageError, (self.name, self.reason)  # to be told to another process


def is_image_name(name: str) -> bool:
    """Whether a file of this name should hold an image: a usual suffix in any letter case, not hidden."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def is_data_folder(name: str) -> bool:
    """Whether a folder of this name is data: not hidden, and not what zip tools of macOS leave."""
    return not name.startswith(".") and name != "__MACOSX"


def find_images(folder: Path, pass_over: Callable[[OSError], None] | None = None) -> list[Path]:
    """Every image under `folder` at any depth, in an order that does not depend on the file system.

    Hidden files, and folders that are no data, are passed over. Links to folders are followed, but not in circles,
    and no folder is looked into twice.

    Args:
        pass_over: is told of each folder that cannot be listed; None: it is an error.

    Raises:
        OSError: a folder cannot be listed, and pass_over is None.
    """

    def fail(error: OSError) -> None:  # os.walk would pass over it in silence
        raise error

    top = Path(os.path.realpath(folder))
    seen = {top}

    def is_new(path: str) -> bool:
        real = Path(os.path.realpath(path))
        new = real not in seen and not top.is_relative_to(real)
        seen.add(real)
        return new

    found = []
    for parent, folders, names in os.walk(folder, onerror=pass_over or fail, followlinks=True):
        data = sorted(filter(is_data_folder, folders))
        folders[:] = [name for name in data if is_new(os.path.join(parent, name))]
        found += [Path(parent, name) for name in names if is_image_name(name)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def leave_out_below(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that do not lie in `folder`, whichever links lead there."""
    top = Path(os.path.realpath(folder))
    inside: dict[Path, bool] = {}  # by parent
    kept = []
    for path in paths:
        if path.parent not in inside:
            inside[path.parent] = Path(os.path.realpath(path.parent)).is_relative_to(top)
        if not inside[path.parent]:
            kept.append(path)
    return kept


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image file's bytes to upright 8-bit RGB, the same way whatever the file's mode is.

    EXIF rotation is applied; transparency goes on black; gray is repeated in the three channels. 16-bit
    values are divided by 257 and floats taken as [0, 1], both clipped: never stretched by the image's own
    range, so that equal light gives equal pixels. Of an animation the first frame counts.

    Raises:
        UnreadableImageError: not an image, damaged, or too large to be a photograph.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(name, _reason(error, empty=not data)) from error


def _reason(error: Exception, empty: bool) -> str:
    if empty:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    return str(error) or type(error).__name__


def check_image(file: BinaryIO, name: str) -> None:
    """Find the damage that is cheap to find: no image at all, too large, or a JPEG or PNG without its end.

    Reads a few kilobytes, and decodes only files that seem to lack their end. Damage in the middle goes unseen.

    Raises:
        UnreadableImageError
    """
    size = file.seek(0, os.SEEK_END)
    try:
        with Image.open(file) as opened:
            last_bytes = _LAST_BYTES.get(opened.format or "", b"")
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(name, _reason(error, empty=not size)) from error
    file.seek(max(0, size - len(last_bytes)))
    if file.read() != last_bytes:
        file.seek(0)
        decode_image(file.read(), name)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        return _from_unit_range(np.asarray(image))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_unit_range(np.asarray(image).astype(np.float32) / 65535)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def _from_unit_range(gray: np.ndarray) -> Image.Image:
    levels = np.rint(np.clip(np.nan_to_num(gray), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of its image before any pixel is decoded; sizes are width and height."""

    stored_size: tuple[int, int]
    orientation: int  # EXIF's, 1 to 8; from 5 on the upright image has width and height exchanged

    @property
    def upright_size(self) -> tuple[int, int]:
        return self.stored_size[::-1] if self.orientation > 4 else self.stored_size

    def is_sideways(self, size: tuple[int, int]) -> bool:
        """Whether something of this size fits the image as it is stored, but not as it is seen upright."""
        return size == self.stored_size != self.upright_size


def read_header(data: bytes, name: str) -> ImageHeader:
    """The header of an image file's bytes; far cheaper than decoding, so damage further on goes unseen.

    Raises:
        UnreadableImageError: not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            # Pillow decodes a whole PNG to look for EXIF data behind the pixels
            may_have_exif = opened.format != "PNG" or b"eXIf" in data or b"exif" in data
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1) if may_have_exif else 1
            size = opened.size
            if opened.format == "TIFF":  # whose size newer Pillows give as it is seen
                size = opened.tag_v2[_TIFF_WIDTH], opened.tag_v2[_TIFF_HEIGHT]
            return ImageHeader(size, orientation if orientation in range(1, 9) else 1)
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(name, _reason(error, empty=not data)) from error


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as EXIF orientation 5 to 8, which exchange width and height, wants it to be seen."""
    return image.transpose(_TURNS[orientation])


def turn_point_upright(x: float, y: float, header: ImageHeader) -> tuple[float, float]:
    """Where turn_upright takes a point of the stored image, both from the upper left corner."""
    width, height = header.stored_size
    turned = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}
    return turned[header.orientation]


def read_image(path: Path) -> Image.Image:
    """Read a file as upright 8-bit RGB; see decode_image.

    Raises:
        UnreadableImageError: also when the file cannot be opened.
    """
    return decode_image(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The file's bytes, or UnreadableImageError naming it."""
    with _open(path) as file:
        return file.read()


def check_file(path: Path) -> None:
    """check_image for a file on disk; raises UnreadableImageError also when it cannot be opened."""
    with _open(path) as file:
        check_image(file, str(path))


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device could be read for ever
            raise UnreadableImageError(str(path), "not a regular file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UnreadableImageError(str(path), error.strerror or str(error)) from error


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """Resize to size x size, bilinear with antialiasing; the aspect ratio is ignored, as in the paper."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def fit_jpg(picture: Image.Image) -> None:
    """Make a picture that no JPG can hold smaller, in place."""
    picture.thumbnail((_LARGEST_JPG, _LARGEST_JPG))  # changes nothing but what is larger


def raise_if_unreadable(problems: Sequence[UnreadableImageError | str]) -> None:
    """End the command, naming every unreadable file, if there is one."""
    if problems:
        count = f"{len(problems)} images" if len(problems) > 1 else "1 image"
        names = list_files([str(problem) for problem in problems])
        raise UserError(f"cannot read {count}; repair, replace or remove:{names}")
