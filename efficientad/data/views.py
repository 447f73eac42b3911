"""The view that a detector has of an image: which part, at what size; and the way back to the image's pixels."""

from __future__ import annotations

import base64
import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from efficientad.data.depth import Depth
from efficientad.data.ignored import check_ignored, decode_ignored
from efficientad.data.images import Decoded, UnreadableImageError, decode_at_least, decode_image, read_bytes
from efficientad.data.reading_notes import ReadingNotes
from efficientad.data.transforms import to_tensor

STRETCH, FIT = "stretch", "fit"
SIDE = 256  # pixels, of the paper's input
SMALLEST_SIDE, SIDE_STEP = 64, 4
MOST_PIXELS = 178_956_970  # of an input
LONGEST_SIDE = 32_768
_PAINT = (124, 116, 104)  # ImageNet's mean, which is 0 once normalized
_RIM = 16  # pixels of the input within which the networks see little; they look at every fourth pixel beside it
_SPARE = 4  # times the input's size that a reduced image still has, so that the input is about the same
_SAME_SHAPE = 0.01  # relative difference of aspect ratios


@dataclass(frozen=True)
class View:
    """How an upright image becomes the input of the networks, and how a map of that becomes one of the image.

    First the region of interest is cut out and what is ignored in it painted over, so that nothing that it shows
    can change an answer; then it is resized, bilinear with antialiasing.
    """

    height: int = SIDE  # of the input; multiples of SIDE_STEP
    width: int = SIDE
    resize: str = STRETCH  # or FIT: keep the aspect ratio, in the middle of mirrored copies, which do not count
    # Left, top, width and height in pixels, or all of them at most 1 as shares of the image; None: the whole image
    roi: tuple[float, float, float, float] | None = None
    ignored: bytes | None = None  # a PNG of 1-bit pixels, of the shape of the images; white does not count
    # Of the files; None: of a model from before it was stored, whose files are decoded as they were then
    depth: Depth | None = None
    notes: ReadingNotes = field(default_factory=ReadingNotes, compare=False, repr=False)  # on what was decoded

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.height, self.width

    @property
    def counts_everywhere(self) -> bool:
        """Whether every pixel of every input is one of the part that is inspected."""
        return self.resize == STRETCH and self.ignored is None

    @property
    def is_whole(self) -> bool:
        """Whether images are inspected as a whole, so that a resized map fits the image."""
        return self.counts_everywhere and self.roi is None

    def box(self, image_size: tuple[int, int], name: str = "the image") -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the region of interest in an image.

        Args:
            image_size: width and height.
            name: of the image, for the error.

        Raises:
            UnreadableImageError: the image is too small for it.
        """
        if self.roi is None:
            return 0, 0, *image_size
        left, top, width, height = self.roi
        if max(self.roi) <= 1:
            left, right = _share(left, width, image_size[0])
            top, bottom = _share(top, height, image_size[1])
        else:
            left, top, right, bottom = int(left), int(top), int(left + width), int(top + height)
        if right > image_size[0] or bottom > image_size[1]:
            sizes = f"{image_size[0]}x{image_size[1]} pixels, the region of interest ends at {right}, {bottom}"
            raise UnreadableImageError(name, f"{sizes}; see --roi of train.py")
        return left, top, right, bottom

    def pixels(
        self, image: Image.Image, name: str = "the image", image_size: tuple[int, int] | None = None
    ) -> Tensor:
        """The input for an upright RGB image: uint8, 3 x height x width.

        Args:
            name: of the image, for the error.
            image_size: width and height that it had before decode reduced it; None: it did not.

        Raises:
            UnreadableImageError: the region of interest or the mask of what is ignored does not fit it, or leaves
                nothing to inspect.
        """
        size = image_size or image.size
        box = self.box(size, name)
        self._check_mask(size, name)
        inspected = self.inspected(size)
        if inspected is not None and not inspected[_RIM:-_RIM:SIDE_STEP, _RIM:-_RIM:SIDE_STEP].any():
            sizes = f"{size[0]}x{size[1]} pixels, of which nothing would be inspected"
            raise UnreadableImageError(name, f"{sizes}; see --roi, --ignore and --resize of train.py")
        part = image if self.roi is None else image.crop(box)
        if self.ignored is not None:
            left, top, right, bottom = box
            covered = Image.fromarray(~_inspected_image(self, image.size)[top:bottom, left:right])
            part = part.copy()
            part.paste(_PAINT, mask=covered)
        left, top, width, height = self._place((box[2] - box[0], box[3] - box[1]))
        resized = np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))
        if (width, height) != (self.width, self.height):
            below, right = self.height - top - height, self.width - left - width
            resized = np.pad(resized, ((top, below), (left, right), (0, 0)), mode="symmetric")
        return to_tensor(resized)

    def read(self, path: Path) -> tuple[Tensor, tuple[int, int]]:
        """The input for an image file, and width and height of the upright image.

        Raises:
            UnreadableImageError: also where it cannot be decoded.
        """
        image, size = self.decode(read_bytes(path), str(path))
        return self.pixels(image, str(path), size), size

    def decode(self, data: bytes, name: str) -> Decoded:
        """The upright RGB image in a file's bytes, for `pixels`: smaller than in the file if that suffices.

        Raises:
            UnreadableImageError
        """
        is_all_used = self.depth is None or self.roi is not None or self.ignored is not None
        least = None if is_all_used else (_SPARE * self.width, _SPARE * self.height)
        return decode_at_least(data, name, least, self.depth, self.notes)

    def decode_whole(self, data: bytes, name: str) -> Image.Image:
        """The upright RGB image in a file's bytes, as it looks to the networks, at its own size.

        Raises:
            UnreadableImageError
        """
        return decode_image(data, name, self.depth)

    def inspected(self, image_size: tuple[int, int]) -> Tensor | None:
        """Which pixels of the input show what is inspected: bools, height x width; None: all of any image.

        Args:
            image_size: width and height of the upright image.
        """
        return None if self.counts_everywhere else _inspected_input(self, image_size)

    def inspected_in_image(self, image_size: tuple[int, int]) -> np.ndarray | None:
        """Which pixels of the image are inspected: bools, its height x its width; None: all."""
        return None if self.roi is None and self.ignored is None else _inspected_image(self, image_size)

    def to_image(self, anomaly_map: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        """A map of the input as one of the image: float32, its height x its width, 0 where it is not inspected.

        Args:
            anomaly_map: height x width, float32.
            image_size: width and height of the upright image.
        """
        left, top, right, bottom = self.box(image_size)
        x, y, width, height = self._place((right - left, bottom - top))
        part = resize_map(anomaly_map[y : y + height, x : x + width], right - left, bottom - top)
        if self.is_whole:
            return part
        whole = np.zeros(image_size[::-1], dtype=np.float32)
        whole[top:bottom, left:right] = part
        inspected = self.inspected_in_image(image_size)
        return whole if inspected is None else np.where(inspected, whole, np.float32(0))

    def describe(self) -> str:
        """The view in words, with flags of train.py; empty for the default one."""
        parts = [f"{self.height} x {self.width} pixels (height x width)"]
        parts += ["--resize fit"] if self.resize == FIT else []
        parts += [] if self.roi is None else [f"--roi {' '.join(f'{value:g}' for value in self.roi)}"]
        parts += [] if self.ignored is None else ["--ignore"]
        return "" if replace(self, depth=None) == View() else ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The view as plain values; see from_dict."""
        return {
            "size": [self.height, self.width],
            "resize": self.resize,
            "roi": None if self.roi is None else list(map(float, self.roi)),
            "ignored": None if self.ignored is None else base64.b64encode(self.ignored).decode("ascii"),
            "depth": None if self.depth is None else self.depth.as_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> View:
        """The view of which as_dict made `values`.

        Raises:
            KeyError, TypeError, ValueError: it made them not; nothing of an untrusted file is believed.
        """
        if not isinstance(values, dict):
            raise TypeError(f"view is {values!r}")
        height, width = _numbers("size", values["size"], int, 2)
        problem = describe_bad_size(height, width)
        if problem:
            raise ValueError(f"size {problem}")
        resize, roi, ignored = values["resize"], values["roi"], values["ignored"]
        if resize not in (STRETCH, FIT):
            raise ValueError(f"resize is {resize!r}")
        if roi is not None:
            roi = parse_roi(_numbers("roi", roi, float, 4))
        if ignored is not None:
            ignored = base64.b64decode(ignored, validate=True)
            check_ignored(ignored)
        depth = values.get("depth")  # earlier versions had none
        return cls(height, width, resize, roi, ignored, None if depth is None else Depth.from_dict(depth))

    def _place(self, part_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, width and height of the resized part in the input; part_size: its width and height."""
        if self.resize == STRETCH:
            return 0, 0, self.width, self.height
        scale = min(self.width / part_size[0], self.height / part_size[1])
        width = min(self.width, max(1, round(scale * part_size[0])))
        height = min(self.height, max(1, round(scale * part_size[1])))
        return (self.width - width) // 2, (self.height - height) // 2, width, height

    def _check_mask(self, image_size: tuple[int, int], name: str) -> None:
        if self.ignored is None:
            return
        (width, height), (mask_width, mask_height) = image_size, decode_ignored(self.ignored).size
        if abs(width * mask_height - height * mask_width) > _SAME_SHAPE * width * mask_height:
            sizes = f"{width}x{height} pixels, the mask of what is ignored {mask_width}x{mask_height}"
            raise UnreadableImageError(name, f"{sizes}; see --ignore of train.py")


def _share(start: float, length: float, whole: int) -> tuple[int, int]:
    """The first pixel and the end of a share of so many pixels: one of them at least."""
    first = min(round(start * whole), whole - 1)
    return first, max(first + 1, round((start + length) * whole))


def resize_map(anomaly_map: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear resize of a float32 map to height x width."""
    plain = torch.from_numpy(np.ascontiguousarray(anomaly_map))[None, None]
    return F.interpolate(plain, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def describe_bad_size(height: int, width: int) -> str:
    """What is wrong with an input of this size; nothing if it can be used."""
    for side in (height, width):
        if side < SMALLEST_SIDE or side % SIDE_STEP:
            below = max(SMALLEST_SIDE, side - side % SIDE_STEP)
            nearest = f"{below} and {below + SIDE_STEP}" if side > SMALLEST_SIDE else str(SMALLEST_SIDE)
            return f"must be a multiple of {SIDE_STEP} from {SMALLEST_SIDE} on, not {side}; nearest: {nearest}"
    if height * width > MOST_PIXELS or max(height, width) > LONGEST_SIDE:
        return f"must have at most {MOST_PIXELS:,} pixels, {LONGEST_SIDE:,} on a side, not {height} x {width}"
    return ""


def parse_roi(values: Any) -> tuple[float, float, float, float]:
    """Left, top, width and height as View holds them.

    Raises:
        ValueError: with the reason.
    """
    left, top, width, height = (float(value) for value in values)
    roi = left, top, width, height
    if not (
        all(map(math.isfinite, roi)) and min(roi) >= 0 and width > 0 and height > 0 and max(roi) <= LONGEST_SIDE**2
    ):
        raise ValueError("left and top must not be negative, width and height must be positive")
    if max(roi) <= 1:
        if left + width > 1 + 1e-9 or top + height > 1 + 1e-9:
            raise ValueError("as shares of the image it must end at 1 at the latest")
    elif any(value != int(value) for value in roi):
        raise ValueError("it takes either whole pixels, or shares of the image from 0 to 1")
    return roi


def _numbers(name: str, values: Any, kind: type, count: int) -> list:
    """The list, if it is one of so many numbers of this very type."""
    if type(values) is not list or [type(value) for value in values] != [kind] * count:
        raise TypeError(f"{name} is {values!r}")
    return values


@functools.lru_cache(maxsize=4)  # an image's pixels each
def _inspected_image(view: View, image_size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = view.box(image_size)
    inspected = np.zeros(image_size[::-1], dtype=bool)
    inspected[top:bottom, left:right] = True
    if view.ignored is not None:
        mask = decode_ignored(view.ignored)
        inspected &= ~np.asarray(mask if mask.size == image_size else mask.resize(image_size))
    return inspected


@functools.lru_cache(maxsize=16)
def _inspected_input(view: View, image_size: tuple[int, int]) -> Tensor:
    left, top, right, bottom = view.box(image_size)
    x, y, width, height = view._place((right - left, bottom - top))
    inspected = torch.zeros(view.size, dtype=torch.bool)
    inspected[y : y + height, x : x + width] = True
    if view.ignored is not None:
        shares = Image.fromarray(_inspected_image(view, image_size)[top:bottom, left:right]).convert("L")
        shares = shares.resize((width, height), Image.Resampling.BILINEAR)
        inspected[y : y + height, x : x + width] = torch.from_numpy(np.asarray(shares) > 127)
    return inspected
