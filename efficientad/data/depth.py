"""The bit depth of a data set: which value is white in files of more than 8 bits.

A 16-bit file may hold what a camera of 10, 12 or 14 bits saw, and one of floats anything: the file does not say.
So a training decides once for its detector, never image by image, or equal light would not give equal pixels.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

BITS = {8: 255, 10: 1023, 12: 4095, 14: 16383, 16: 65535}  # and the largest value of each
AUTO, FLOAT_255, FLOAT_1 = "auto", "float255", "float1"
_WHITES = {"integers": (*map(float, BITS.values()),), "floats": (1.0, *map(float, BITS.values()))}
_HALF_LEVEL = 1 / 510  # of white: floats beyond black and white by less are rounding errors, as of a filter
_PHOTOMETRIC, _BITS_PER_SAMPLE, _PLANES = 262, 258, 284  # TIFF's tags
_SEPARATE = 2  # value of _PLANES


@dataclass(frozen=True)
class Scale:
    """What is white in the files of one kind."""

    white: float
    lowest: float | None = None  # the lowest white that would hold some training image; None: there was none


@dataclass(frozen=True)
class Depth:
    """What is white in deep files: those of more than 8 bits a channel. 8-bit files are always themselves."""

    integers: Scale | None = None  # None: the training has seen no such file
    floats: Scale | None = None

    def as_dict(self) -> dict[str, Any]:
        """The depth as plain values; see from_dict."""
        scales = {"integers": self.integers, "floats": self.floats}
        return {name: None if scale is None else [scale.white, scale.lowest] for name, scale in scales.items()}

    @classmethod
    def from_dict(cls, values: Any) -> Depth:
        """The depth of which as_dict made `values`.

        Raises:
            KeyError, TypeError, ValueError: it made them not.
        """
        if not isinstance(values, dict):
            raise TypeError(f"depth is {values!r}")
        return cls(*(_parse_scale(name, values[name]) for name in _WHITES))


def _parse_scale(name: str, values: Any) -> Scale | None:
    if values is None:
        return None
    if type(values) is not list or len(values) != 2:
        raise TypeError(f"{name} is {values!r}")
    white, lowest = values
    known = type(white) is float and white in _WHITES[name]
    if not known or not (lowest is None or (type(lowest) is float and lowest in _WHITES[name])):
        raise ValueError(f"{name} is {values!r}")
    return Scale(white, lowest)


def asked_whites(choice: str) -> tuple[float | None, float | None]:
    """White in integers and in floats, as one of arguments.BIT_DEPTHS gives them; None: it is to be found."""
    if choice in (FLOAT_255, FLOAT_1):
        return None, 255.0 if choice == FLOAT_255 else 1.0
    return (None, None) if choice == AUTO else (float(BITS[int(choice)]),) * 2


def least_white(peak: float, is_float: bool) -> float | None:
    """The lowest white that holds a largest value; None: there is none."""
    slack = 1 + _HALF_LEVEL if is_float else 1
    whites = _WHITES["floats" if is_float else "integers"]
    return next((white for white in whites if peak <= slack * white), None)


def describe_white(white: float, is_float: bool) -> str:
    """ "12 bits", or "floats up to 255"."""
    return f"floats up to {white:g}" if is_float else f"{_bits(white)} bits"


def _bits(white: float) -> int:
    return next(bits for bits, value in BITS.items() if value == white)


class DeepPixels(NamedTuple):
    """The values of a deep file, upright and as they are stored."""

    values: np.ndarray  # H x W or H x W x 3; integers, or float32
    alpha: Image.Image | None  # 8-bit; only with three channels
    is_inverted: bool  # 0 is white

    @property
    def is_float(self) -> bool:
        return self.values.dtype.kind == "f"

    def own_white(self) -> tuple[float, float]:
        """The largest value, and the lowest white that holds it.

        Raises:
            ValueError: no depth would be right for these values; the message is for the user.
        """
        lowest, peak = float(self.values.min()), float(self.values.max())
        if not np.isfinite(lowest) or not np.isfinite(peak):
            raise ValueError("some values are no numbers, or infinite (NaN, inf); save it without them")
        white = least_white(peak, self.is_float)
        self._check(peak, white or _WHITES["floats"][-1])
        if lowest < (-_HALF_LEVEL * white if self.is_float else 0):
            raise ValueError(f"values down to {lowest:g}, below black; save it with values from 0 on")
        return peak, white

    def to_levels(self, depth: Depth) -> tuple[Image.Image, bool]:
        """The image in 8 bits a channel, and whether it is of fewer bits by itself than the depth is for.

        Raises:
            ValueError: values that the depth cannot be right for; the message is for the user.
        """
        peak, own = self.own_white()
        scale = depth.floats if self.is_float else depth.integers
        if scale is None:
            trained = "8-bit ones" if depth == Depth() else "others"
            kind = "floats" if self.is_float else "more than 8 bits"
            raise ValueError(
                f"a file of {kind}, but the detector was trained on {trained}: save it like those, or train with "
                "such files, too; see --bit_depth of train.py"
            )
        self._check(peak, scale.white)
        values = self.values
        if self.is_float:
            levels = np.clip(values * np.float32(255 / scale.white), 0, 255)
            levels = np.rint(levels, out=levels).astype(np.uint8)
        else:
            ramp = np.arange(int(scale.white) + 1, dtype=np.float32) / np.float32(scale.white)
            table = np.rint(255 * ramp).astype(np.uint8)
            levels = (table[::-1] if self.is_inverted else table)[values]
        image = Image.fromarray(levels)
        if self.alpha is not None:
            image.putalpha(self.alpha)
        return image, peak > 0 and own < (scale.lowest or scale.white)

    def _check(self, peak: float, white: float) -> None:
        """Raise ValueError if the largest value is above white."""
        if peak > (1 + _HALF_LEVEL if self.is_float else 1) * white:
            ends = f"floats end at {white:g}" if self.is_float else f"{_bits(white)} bits end at {white:g}"
            raise ValueError(f"values up to {peak:g} where {ends}; see --bit_depth of train.py")


def is_deep(opened: Image.Image) -> bool:
    """Whether an image has more than 8 bits a channel; to be asked before its pixels are decoded."""
    return opened.mode in ("I", "F") or opened.mode.startswith("I;16") or _has_deep_colours(opened)


def deep_pixels(opened: Image.Image, data: bytes) -> DeepPixels | None:
    """The values of a file that Image.open has opened; None if it is none of more than 8 bits.

    Args:
        data: the file's bytes.

    Raises:
        ValueError: the values cannot be had.
        almost anything on damaged files.
    """
    if _has_deep_colours(opened):
        return _deep_colours(opened, data)
    if not is_deep(opened):
        return None
    # Of deep gray Pillow leaves it to us, of 8-bit gray not; should that change, the raw mode ends with I
    tags = getattr(opened, "tag_v2", {})
    is_inverted = tags.get(_PHOTOMETRIC) == 0 and not _raw_mode(opened).endswith(";I")
    if is_inverted and opened.mode == "F":
        raise ValueError("floats with 0 for white; save it with 0 for black")
    return DeepPixels(np.asarray(ImageOps.exif_transpose(opened)), None, is_inverted)


def gray_pixels(image: Image.Image) -> DeepPixels | None:
    """The values of an image in memory; None if it has 8 bits a channel."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return DeepPixels(np.asarray(image), None, is_inverted=False)
    return None


def _raw_mode(opened: Image.Image) -> str:
    """How the pixels lie in the file, in Pillow's words."""
    tiles = getattr(opened, "tile", None)
    words = tiles[0][3] if tiles else ""
    return str(words[0] if isinstance(words, (tuple, list)) and words else words)


def _has_deep_colours(opened: Image.Image) -> bool:
    if opened.mode not in ("RGB", "RGBA", "CMYK"):
        return False
    if opened.format == "PPM":
        return _ppm_maximum(opened) > 255
    bits = getattr(opened, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return ";16" in _raw_mode(opened) or max(bits if isinstance(bits, Sequence) else (bits,), default=8) > 8


def _deep_colours(opened: Image.Image, data: bytes) -> DeepPixels:
    """Pillow has no mode for them and gives the high bytes; read with the bytes exchanged it gives the low ones."""
    if opened.format == "PPM":
        return DeepPixels(_ppm_values(opened, data), None, False)
    raw = _raw_mode(opened)
    planes = getattr(opened, "tag_v2", {}).get(_PLANES)
    if opened.mode == "CMYK" or ";16" not in raw or planes == _SEPARATE:
        raise ValueError("16-bit colours that are stored in an unusual way; save it as 16-bit RGB or in 8 bits")
    if raw.startswith("LA"):  # gray and transparency, two bytes each, big ones first
        opened.tile = _with_raw_mode(opened.tile, "RGBA")
        bands = np.asarray(ImageOps.exif_transpose(opened))
        values = bands[..., 0].astype(np.uint16) << 8 | bands[..., 1]
        return DeepPixels(np.repeat(values[..., None], 3, axis=2), Image.fromarray(bands[..., 2].copy()), False)
    kind, order = raw.split(";16")
    exchanged = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[order]
    with Image.open(io.BytesIO(data), formats=[opened.format]) as again:
        again.tile = _with_raw_mode(again.tile, f"{kind};16{exchanged}")
        low = np.asarray(ImageOps.exif_transpose(again))
    high = np.asarray(ImageOps.exif_transpose(opened))
    alpha = Image.fromarray(high[..., 3].copy()) if high.shape[2] == 4 else None
    return DeepPixels(high[..., :3].astype(np.uint16) << 8 | low[..., :3], alpha, False)


def _ppm_maximum(opened: Image.Image) -> int:
    """What is white in a PPM file, as its header says; 255 for bytes."""
    words = opened.tile[0][3] if opened.tile else ()
    return int(words[1]) if isinstance(words, tuple) and len(words) > 1 and isinstance(words[1], int) else 255


def _ppm_values(opened: Image.Image, data: bytes) -> np.ndarray:
    """The colours of a PPM file, with 65535 for its white, as Pillow reads gray ones."""
    if not data.startswith(b"P6"):
        raise ValueError("more than 8 bits a colour in an unusual kind of PPM file; save it as PNG")
    width, height = opened.size
    start, count, white = opened.tile[0][2], width * height * 3, _ppm_maximum(opened)
    if len(data) < start + 2 * count:
        raise ValueError("image file is truncated")
    stored = np.frombuffer(data, ">u2", count, start).reshape(height, width, 3)
    if white == 65535:
        return stored.astype(np.uint16)
    return np.rint(np.minimum(stored, white) * (65535 / white)).astype(np.uint16)


def _with_raw_mode(tiles: list, raw: str) -> list:
    """The tiles of an opened file, to be decoded in another way."""

    def changed(words: Any) -> Any:
        return (raw, *words[1:]) if isinstance(words, (tuple, list)) else raw

    if hasattr(tiles[0], "_replace"):
        return [tile._replace(args=changed(tile[3])) for tile in tiles]
    return [(*tile[:3], changed(tile[3])) for tile in tiles]
