"""Checks and decodes image files as upright 8-bit RGB; lists those that cannot be read."""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from efficientad.data.depth import DeepPixels, Depth, deep_pixels, gray_pixels, is_deep
from efficientad.data.formats import DEEP_FORMATS, failure_reason, open_image, stored_size
from efficientad.data.reading_notes import ALPHA, CONSTANT_ALPHA, PAGES, SHALLOW, ReadingNotes
from efficientad.system.errors import UserError, list_some
from efficientad.system.files import csv_cell, write_csv
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar

_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of a whole file
_ORIENTATION, _TURNED = 0x0112, range(5, 9)  # EXIF's, and its values for an image that lies on its side
_REDUCIBLE = ("JPEG", "MPO")
_LARGEST_JPG = 65_500  # pixels on a side; libjpeg writes no more


class UnreadableImageError(Exception):
    """One file cannot be decoded as an image; the message is its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    def __reduce__(self) -> tuple:
        return UnreadableImageError, (self.name, self.reason)  # so that it can be sent to another process


class Decoded(NamedTuple):
    """An image as it is looked at."""

    image: Image.Image  # upright 8-bit RGB, perhaps reduced
    size: tuple[int, int]  # width and height of the upright image in the file


def decode_image(
    data: bytes, name: str, depth: Depth | None = None, notes: ReadingNotes | None = None
) -> Image.Image:
    """Decode an image file's bytes; see to_upright_rgb. Of an animation or of several pages the first one counts.

    Args:
        name: of the file.
        depth: what is white in files of more than 8 bits; None: the largest value of 16 bits, and 1.0 in floats.
        notes: takes what is to be said of the image.

    Raises:
        UnreadableImageError: not an image, damaged, too large, or with values that the depth is not right for.
    """
    return decode_at_least(data, name, None, depth, notes).image


def decode_at_least(
    data: bytes,
    name: str,
    least: tuple[int, int] | None,
    depth: Depth | None = None,
    notes: ReadingNotes | None = None,
) -> Decoded:
    """decode_image, at a half, a quarter or an eighth of its size where the file format makes that cheap.

    Args:
        least: width and height that the image must keep; None: its own.
    """
    try:
        with open_image(io.BytesIO(data), name) as opened:
            size = None
            if least is not None and opened.format in _REDUCIBLE:
                is_turned = _is_turned(opened)
                size = opened.size[::-1] if is_turned else opened.size
                opened.draft(None, least[::-1] if is_turned else least)
            found = set() if notes is None else _describe(opened)
            deep = None if depth is None else deep_pixels(opened, data)
            if deep is None:
                ImageOps.exif_transpose(opened, in_place=True)  # decodes it, too; a copy would take long
                image = _to_rgb(opened, depth is not None, found)
            else:
                image = _deep_to_rgb(deep, depth, found)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(name, failure_reason(error, empty=not data)) from error
    if notes is not None:
        for kind in found:
            notes.add(kind, name)
    return Decoded(image, size or image.size)


def to_upright_rgb(image: Image.Image, depth: Depth | None = None) -> Image.Image:
    """An image of any mode as upright 8-bit RGB.

    EXIF rotation is applied; gray is repeated in the three channels; transparency goes on black, unless it is the
    same everywhere, which tells nothing. Values of more than 8 bits are divided by what is white: never stretched
    by the image's own range, so that equal light gives equal pixels.

    Args:
        depth: see decode_image.

    Raises:
        ValueError: values that the depth is not right for; never without a depth.
    """
    upright = ImageOps.exif_transpose(image)
    deep = None if depth is None else gray_pixels(upright)
    return _to_rgb(upright, depth is not None) if deep is None else _deep_to_rgb(deep, depth)


def _is_turned(opened: Image.Image) -> bool:
    return opened.getexif().get(_ORIENTATION, 1) in _TURNED


def _describe(opened: Image.Image) -> set[str]:
    """What is to be said of a file that was opened."""
    has_pages = getattr(opened, "is_animated", False) and opened.format != "MPO"  # which has previews behind it
    return {PAGES} if has_pages else set()


def _deep_to_rgb(deep: DeepPixels, depth: Depth, found: set[str] | None = None) -> Image.Image:
    levels, is_shallow = deep.to_levels(depth)
    if is_shallow and found is not None:
        found.add(SHALLOW)
    return _to_rgb(levels, True, found)


def check_image(file: BinaryIO, name: str) -> None:
    """Find the damage that is cheap to find: not an image, too large, or a truncated JPEG or PNG.

    Reads a few kilobytes, and decodes only files that seem truncated. Damage in the middle goes unnoticed.

    Raises:
        UnreadableImageError
    """
    size = file.seek(0, os.SEEK_END)
    try:
        with open_image(file, name) as opened:
            last_bytes = _LAST_BYTES.get(opened.format or "", b"")
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(name, failure_reason(error, empty=not size)) from error
    file.seek(max(0, size - len(last_bytes)))
    if file.read() != last_bytes:
        file.seek(0)
        decode_image(file.read(), name)


def _to_rgb(image: Image.Image, ignores_constant_alpha: bool, found: set[str] | None = None) -> Image.Image:
    if image.mode == "F":
        return _from_unit_range(np.asarray(image))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_unit_range(np.asarray(image).astype(np.float32) / 65535)
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    lowest, highest = rgba.getextrema()[3]
    if found is not None and lowest < 255:
        found.add(CONSTANT_ALPHA if ignores_constant_alpha and lowest == highest else ALPHA)
    if ignores_constant_alpha and lowest == highest:
        return rgba.convert("RGB")
    black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, rgba).convert("RGB")


def _from_unit_range(gray: np.ndarray) -> Image.Image:
    """Floats as models without a depth saw them."""
    levels = np.rint(np.clip(np.nan_to_num(gray), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")


def read_image(path: Path) -> Image.Image:
    """Read a file as upright 8-bit RGB; see decode_image.

    Raises:
        UnreadableImageError: also when the file cannot be opened.
    """
    return decode_image(read_bytes(path), str(path))


def read_deep(path: Path) -> DeepPixels | None:
    """The values of a file of more than 8 bits a channel; None for any other, which is not decoded.

    Raises:
        UnreadableImageError
    """
    with _open(path) as file:
        try:
            with Image.open(file, formats=DEEP_FORMATS) as opened:
                if not is_deep(opened):
                    return None
            file.seek(0)
            data = file.read()
            with open_image(io.BytesIO(data), str(path)) as opened:
                return deep_pixels(opened, data)
        except MemoryError:
            raise
        except UnidentifiedImageError:
            return None
        except Exception as error:  # Pillow's plugins raise almost any type on damaged files
            raise UnreadableImageError(str(path), failure_reason(error, empty=False)) from error


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
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device might never end
            raise UnreadableImageError(str(path), "not a regular file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UnreadableImageError(str(path), error.strerror or str(error)) from error


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright image, from the file's header.

    Raises:
        UnreadableImageError
    """
    with _open(path) as file:
        try:
            with open_image(file, str(path)) as opened:
                size, is_turned = stored_size(opened), _is_turned(opened)
        except Exception as error:  # Pillow's plugins raise almost any type on damaged files
            raise UnreadableImageError(str(path), failure_reason(error, empty=False)) from error
    return size[::-1] if is_turned else size


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """Resize to size x size, bilinear with antialiasing; the aspect ratio is ignored, as in the paper."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def fit_jpg(picture: Image.Image) -> None:
    """Shrink a picture that is too large for a JPG, in place."""
    picture.thumbnail((_LARGEST_JPG, _LARGEST_JPG))


def raise_if_unreadable(problems: Sequence[UnreadableImageError | str]) -> None:
    """Raise a UserError that counts the unreadable files and names the first, if there are any."""
    if problems:
        count = f"{len(problems)} images" if len(problems) > 1 else "1 image"
        where = f"; --on_error skip of train.py, eval.py and prepare_dataset.py lists all in {SKIPPED_FILE}"
        names = list_some([str(problem) for problem in problems], where)
        raise UserError(f"cannot read {count}; repair, replace or remove:{names}")


SKIPPED_FILE = "skipped_files.csv"


def find_unreadable(
    paths: Sequence[Path], check: Callable[[Path], object], workers: int, quiet: bool = False
) -> list[UnreadableImageError]:
    """The files for which `check` raises UnreadableImageError, in the order of the paths.

    Args:
        check: check_file, which is quick, or read_image, which finds all damage.
        workers: threads that check.
        quiet: no progress bar.
    """

    def problem(path: Path) -> UnreadableImageError | None:
        try:
            check(path)
        except UnreadableImageError as error:
            return error
        return None

    checks = parallel_map(problem, paths, workers)
    bar = progress_bar(checks, "Checking images", len(paths), unit="image", disable=quiet)
    return [error for error in bar if error]


def write_skipped(folder: Path, skipped: Sequence[UnreadableImageError]) -> None:
    """Write skipped_files.csv: the path of each file and the reason."""
    write_csv(folder / SKIPPED_FILE, ["path", "reason"], ([error.name, error.reason] for error in skipped))


def were_skipped(folder: Path, paths: Sequence[Path]) -> set[str]:
    """The paths that the folder's skipped_files.csv lists; none without that file."""
    file = folder / SKIPPED_FILE
    if not file.is_file():
        return set()
    with file.open(newline="", encoding="utf-8") as opened:
        named = {row["path"] for row in csv.DictReader(opened)}
    return {str(path) for path in paths if csv_cell(path) in named}


def describe_skipped(folder: Path, skipped: Sequence[UnreadableImageError]) -> str:
    """A sentence for the terminal, with the first of them."""
    if not skipped:
        return "No file had to be skipped"
    count = f"{len(skipped)} files that cannot be read" if len(skipped) > 1 else "1 file that cannot be read"
    names = list_some([str(error) for error in skipped])
    return f"Skipped {count}, see {folder / SKIPPED_FILE}:{names}"
