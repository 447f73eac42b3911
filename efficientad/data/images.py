"""Checks and decodes image files as upright 8-bit RGB; lists those that cannot be read."""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from efficientad.system.errors import UserError, list_some
from efficientad.system.files import csv_cell, write_csv
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar

_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of a whole file
_ORIENTATION = 0x0112  # EXIF's; from 5 on the image lies on its side
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


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image file's bytes; see to_upright_rgb. Of an animation the first frame counts.

    Raises:
        UnreadableImageError: not an image, damaged, or too large to be a photograph.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return to_upright_rgb(opened)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(name, failure_reason(error, empty=not data)) from error


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as upright 8-bit RGB.

    EXIF rotation is applied; transparency goes on black; gray is repeated in the three channels. 16-bit
    values are divided by 257 and floats taken as [0, 1], both clipped: never stretched by the image's own
    range, so that equal light gives equal pixels.
    """
    return _to_rgb(ImageOps.exif_transpose(image))


def failure_reason(error: Exception, empty: bool) -> str:
    if empty:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    return str(error) or type(error).__name__


def check_image(file: BinaryIO, name: str) -> None:
    """Find the damage that is cheap to find: not an image, too large, or a truncated JPEG or PNG.

    Reads a few kilobytes, and decodes only files that seem truncated. Damage in the middle goes unnoticed.

    Raises:
        UnreadableImageError
    """
    size = file.seek(0, os.SEEK_END)
    try:
        with Image.open(file) as opened:
            last_bytes = _LAST_BYTES.get(opened.format or "", b"")
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(name, failure_reason(error, empty=not size)) from error
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
            with Image.open(file) as opened:
                size, is_turned = opened.size, opened.getexif().get(_ORIENTATION, 1) >= 5
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
