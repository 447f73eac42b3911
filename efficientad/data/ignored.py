"""The mask of what is not inspected: read from a file of any kind, kept as a PNG of 1-bit pixels."""

from __future__ import annotations

import functools
import io
from pathlib import Path

from PIL import Image

from efficientad.data.images import UnreadableImageError, read_image
from efficientad.system.errors import UserError


def read_ignored(path: Path) -> bytes:
    """A mask file as View.ignored.

    Raises:
        UserError: it cannot be read, or ignores nothing or everything.
    """
    try:
        mask = read_image(path).convert("L").point(lambda level: 255 * (level > 127)).convert("1")
    except UnreadableImageError as error:
        raise UserError(f"--ignore {error}") from None
    lowest, highest = mask.getextrema()
    if lowest == highest:
        what = "all white, so nothing would be inspected" if highest else "nowhere white, so it ignores nothing"
        raise UserError(f"--ignore {path} is {what}; paint white what is not to be inspected, and the rest black")
    data = io.BytesIO()
    mask.save(data, "PNG")
    return data.getvalue()


def check_ignored(data: bytes) -> None:
    """Raise ValueError if they are not a PNG of 1-bit pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            if opened.mode != "1":
                raise ValueError(f"its pixels are {opened.mode}")
            opened.load()
    except Exception as error:  # Pillow raises almost any type on damaged files
        raise ValueError(f"the mask of what is ignored is damaged: {error}") from None


@functools.lru_cache(maxsize=4)
def decode_ignored(ignored: bytes) -> Image.Image:
    """The mask in such bytes: mode "1", white where nothing is inspected; not to be changed."""
    with Image.open(io.BytesIO(ignored), formats=["PNG"]) as opened:
        return opened.copy()
