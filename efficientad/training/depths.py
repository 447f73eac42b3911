"""The bit depth that a training gives its detector, from the flag or from the values of all its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efficientad.data.depth import AUTO, Depth, Scale, asked_whites, describe_white
from efficientad.data.images import UnreadableImageError, read_deep
from efficientad.system.errors import count_of, printable
from efficientad.system.parallel import parallel_map

_MIXED = 16  # a white this many times lower than that of the data set makes an image nearly black


@dataclass(frozen=True)
class _DeepImage:
    path: Path
    is_float: bool
    peak: float  # its largest value
    white: float  # the lowest that holds it


def choose_depth(choice: str, images: Sequence[Path], workers: int) -> tuple[Depth, list[str]]:
    """The depth for a data set, and lines about it.

    Only images of more than 8 bits are decoded, and those that cannot be read are left out here.

    Args:
        choice: one of arguments.BIT_DEPTHS.
        images: of the training, those held out, too.
        workers: threads that read.
    """

    def look(path: Path) -> _DeepImage | None:
        try:
            deep = read_deep(path)
            return None if deep is None else _DeepImage(path, deep.is_float, *deep.own_white())
        except (UnreadableImageError, ValueError):  # which is reported when all images are decoded
            return None

    found = [image for image in parallel_map(look, images, workers) if image]
    scales, lines = [], []
    for is_float, asked in zip((False, True), asked_whites(choice), strict=True):
        own = [image for image in found if image.is_float == is_float]
        lowest = min((image.white for image in own), default=None)
        white = asked or max((image.white for image in own), default=None)
        scales.append(None if white is None else Scale(white, lowest))
        lines += _describe(white, own, choice) if own else []
    if choice != AUTO and not found:
        lines.append(
            f"Note: --bit_depth {choice} makes no difference to the training: no image has more than 8 bits"
        )
    return Depth(*scales), lines


def _describe(white: float, own: Sequence[_DeepImage], choice: str) -> list[str]:
    is_float = own[0].is_float
    low, high = (f"{choose(image.peak for image in own):g}" for choose in (min, max))
    peaks = f"values up to {high}" if low == high else f"largest values from {low} to {high}"
    count = f"{count_of(len(own), 'image')} of {'floats' if is_float else 'more than 8 bits'}"
    origin = "--bit_depth chooses another" if choice == AUTO else f"as --bit_depth {choice} says"
    lines = [f"Bit depth: {describe_white(white, is_float)} ({peaks} in {count}); {origin}"]
    dark = [image for image in own if _MIXED * (image.white + 1) <= white + 1]
    if dark:
        lines.append(
            f"Note: {count_of(len(dark), 'image')} of these will be nearly black, with values up to "
            f"{max(image.peak for image in dark):g}, perhaps because of fewer bits: {printable(str(dark[0].path))}"
            f"{', ...' if len(dark) > 1 else ''}"
        )
    return lines
