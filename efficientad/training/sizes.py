"""The view that a training gives its detector: the size from the flags or the images, and what it loses of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientad.data.ignored import read_ignored
from efficientad.data.images import UnreadableImageError, upright_size
from efficientad.data.views import (
    FIT,
    LONGEST_SIDE,
    MOST_PIXELS,
    SIDE_STEP,
    SMALLEST_SIDE,
    View,
    describe_bad_size,
    parse_roi,
)
from efficientad.system.errors import UserError
from efficientad.system.parallel import parallel_map
from efficientad.training.options import NATIVE, TrainingOptions

_SMALLEST_DEFECT = 4  # pixels of the input that a defect should cover, about
_SHRINKS, _DISTORTS = 2.0, 1.5  # factors from which on it is said
Size = tuple[int, int]


def begin_view(options: TrainingOptions) -> View:
    """The view that the flags ask for, not yet with its size.

    Raises:
        UserError: a flag that makes no sense, or a mask that cannot be used.
    """
    try:
        roi = None if options.roi is None else parse_roi(options.roi)
    except ValueError as error:
        raise UserError(f"--roi: {error}") from None
    if options.image_size != [NATIVE]:
        _parse_size(options.image_size)  # for its errors, before images are read
    elif options.max_pixels is not None and options.max_pixels < SMALLEST_SIDE**2:
        raise UserError(f"--max_pixels must be at least {SMALLEST_SIDE**2}, not {options.max_pixels}")
    ignored = None if options.ignore is None else read_ignored(options.ignore)
    return View(resize=options.resize, roi=roi, ignored=ignored)


def choose_size(view: View, options: TrainingOptions, images: Sequence[Path]) -> tuple[View, list[str]]:
    """The view with its size, and lines about it.

    Args:
        options: settled.
        images: of the training.

    Raises:
        UserError: their own size is asked for, and none can be read.
    """
    sizes = _part_sizes(view, images, options.num_workers)
    if options.image_size == [NATIVE]:
        height, width = native_size(sizes, options.max_pixels)
    else:
        height, width = _parse_size(options.image_size)
    view = replace(view, height=height, width=width)
    seen = [f"The networks see {view.describe()}"] if view.describe() else []
    return view, [*seen, *describe_loss(view, sizes)]


def native_size(sizes: Sequence[Size], most_pixels: int) -> Size:
    """Height and width of an input as large as the images, or as their median, within `most_pixels`.

    Args:
        sizes: width and height of each.

    Raises:
        UserError: there are none, as no image can be read.
    """
    if not sizes:
        raise UserError(f"--image_size {NATIVE}: no training image can be read")
    width, height = np.median(np.array(sizes), axis=0)
    most_pixels = min(most_pixels, MOST_PIXELS)
    scale = min(1.0, (most_pixels / (width * height)) ** 0.5)
    # Beside the smallest side, the limit holds only if the other one is cut, too
    longest = min(LONGEST_SIDE, most_pixels // SMALLEST_SIDE)
    sides = (min(int(scale * side), longest) // SIDE_STEP * SIDE_STEP for side in (height, width))  # rounded down
    return tuple(max(SMALLEST_SIDE, side) for side in sides)


def describe_loss(view: View, sizes: Sequence[Size]) -> list[str]:
    """A note where the networks see images much smaller, or with another aspect ratio.

    Args:
        sizes: width and height of what is inspected of each image.
    """
    if not sizes:
        return []
    width, height = (int(side) for side in np.median(np.array(sizes), axis=0))
    across, down = width / view.width, height / view.height
    shrinks, distorts = max(across, down), max(across / down, down / across)
    if view.resize == FIT:
        distorts = 1.0
    about = "" if len(set(sizes)) == 1 else "about "
    what = "images" if view.roi is None else "regions"
    resized = f"{what} {about}{height} high and {width} wide are resized to {view.height} x {view.width}"
    notes, advised = [], view.size
    if distorts >= _DISTORTS:
        notes.append(f"Note: {resized}, which changes their aspect ratio by a factor of {distorts:.1f}")
        scale = (view.height * view.width / (height * width)) ** 0.5
        like = tuple(round(scale * side / SIDE_STEP) * SIDE_STEP for side in (height, width))
        if not describe_bad_size(*like):
            advised = like
            notes[0] += f"; --image_size {like[0]} {like[1]} keeps it at the same cost"
    if shrinks >= _SHRINKS:
        larger = [
            min(2 * side, max(side, own // SIDE_STEP * SIDE_STEP))
            for side, own in zip(advised, (height, width), strict=True)
        ]
        flag = f"{larger[0]}" if larger[0] == larger[1] else f"{larger[0]} {larger[1]}"
        cost = larger[0] * larger[1] / (view.height * view.width)
        smallest = round(_SMALLEST_DEFECT * shrinks)
        start = "Note: at that size" if notes else f"Note: {resized}:"
        notes.append(
            f"{start} a defect below about {smallest} pixels is hardly seen; --image_size {flag} costs about "
            f"{cost:.0f} times as much in inference"
        )
    return notes


def _parse_size(words: Sequence[str]) -> Size:
    """Height and width of --image_size."""
    expected = f"one whole number for a square, two for height and width, or the word {NATIVE}"
    if len(words) > 2 or not all(word.isdecimal() for word in words):
        raise UserError(f"--image_size expects {expected}, not {' '.join(words)}")
    height, width = int(words[0]), int(words[-1])
    problem = describe_bad_size(height, width)
    if problem:
        raise UserError(f"--image_size {problem}")
    return height, width


def _part_sizes(view: View, images: Sequence[Path], workers: int) -> list[Size]:
    """Width and height of what the view takes of each image that has a readable header."""

    def part_size(path: Path) -> Size | None:
        try:
            left, top, right, bottom = view.box(upright_size(path), str(path))
        except UnreadableImageError:  # which is reported when the images are decoded
            return None
        return right - left, bottom - top

    return [size for size in parallel_map(part_size, images, workers) if size]
