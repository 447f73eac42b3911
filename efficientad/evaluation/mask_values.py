"""Reads masks: which pixels are defective, also in masks that were written in another way than usual."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from efficientad.data.mask_files import is_lossy, read_mask_values
from efficientad.system.errors import count_of
from efficientad.system.parallel import parallel_map

_LOOKED_AT = 32  # masks, unless they look inverted: then all
_THREADS = 8
_WHOLE_BORDER = 0.99


class _Look(NamedTuple):
    """What a mask looks like, taken as it is."""

    marked: float  # share of its pixels
    border: float  # share of its outermost pixels that are marked
    in_alpha: bool

    @property
    def is_large(self) -> bool:
        """Marks more than half of the image, but not all: that would be the whole part, or nothing inverted."""
        return 0.5 < self.marked < 1

    @property
    def seems_inverted(self) -> bool:
        return self.is_large and self.border >= _WHOLE_BORDER

    @property
    def seems_upright(self) -> bool:
        return 0 < self.marked < 0.5 and self.border < 0.5


def read_mask(path: Path, inverted: bool = False) -> np.ndarray:
    """The mask, H x W; 0 where there is no defect. Palette images give their indices.

    Where all that is visible has one colour and the transparency varies, the transparency counts.

    Args:
        inverted: the mask is 0 where a defect is, and has its highest value elsewhere; the answer then is bools.

    Raises:
        UserError: it cannot be read.
    """
    values, _ = read_mask_values(path)
    if not inverted:
        return values
    if is_lossy(path):
        return values == 0
    return (values == 0) | (values < values.max())  # soft edges belong to the defect, as they do upright


def describe_values(paths: Sequence[Path], may_be_inverted: bool) -> tuple[bool, list[str]]:
    """Whether the masks of a data set are inverted, and notes for the user about unusual ones.

    They are inverted if most mark more than half of their image, with its whole border, and none looks upright.
    Only some of the masks are read, spread evenly, unless these look inverted.

    Args:
        may_be_inverted: False where pixel values have a meaning of their own.

    Raises:
        UserError: one of those read is damaged.
    """
    step = -(-len(paths) // _LOOKED_AT)
    looks = [_look(path) for path in paths[::step]]
    notes, alpha = [], sum(look.in_alpha for look in looks)
    if alpha:
        count = f"{alpha} of {count_of(len(looks), 'mask')} looked at"
        notes.append(f"{count} {'is' if alpha == 1 else 'are'} drawn in the alpha channel, which is taken")
    if not may_be_inverted:
        return False, notes
    notes += _describe_whole(looks)
    if not _most_are_large(looks):
        return False, [*notes, *_describe_odd(paths[::step], looks)]
    if step > 1 and _most_seem_inverted(looks):
        looks = list(parallel_map(_look, paths, _THREADS))
    large = sum(look.is_large for look in looks)
    about = f"{large} of {count_of(len(looks), 'mask')} looked at mark more than half of their image"
    if _most_seem_inverted(looks):
        return True, [*notes, f"{about} and its border: all masks are taken as inverted, defects black on white"]
    return False, [*notes, f"{about}; if they are inverted, defects black on white, invert them all"]


def _describe_whole(looks: Sequence[_Look]) -> list[str]:
    """A line if all masks mark everything, as those with a background that is not quite 0 do."""
    if not all(look.marked == 1 for look in looks):
        return []
    start = f"all {len(looks)} masks looked at mark" if len(looks) > 1 else "the only mask marks"
    return [f"{start} the whole image; what is not 0 counts as defective, so make the background 0"]


def _describe_odd(paths: Sequence[Path], looks: Sequence[_Look]) -> list[str]:
    """A line if some masks seem inverted among others that do not."""
    odd = [path for path, look in zip(paths, looks, strict=True) if look.seems_inverted]
    if not odd:
        return []
    verb = "marks more than half of its image" if len(odd) == 1 else "mark more than half of their image"
    return [
        f"{len(odd)} of {count_of(len(looks), 'mask')} looked at {verb} and the whole border, for example "
        f"{odd[0]}; inverted? Taken as they are"
    ]


def _most_are_large(looks: Sequence[_Look]) -> bool:
    return 2 * sum(look.is_large for look in looks) > sum(0 < look.marked < 1 for look in looks)


def _most_seem_inverted(looks: Sequence[_Look]) -> bool:
    inverted, partly = sum(look.seems_inverted for look in looks), sum(0 < look.marked < 1 for look in looks)
    return 2 * inverted > partly and not any(look.seems_upright for look in looks)


def _look(path: Path) -> _Look:
    values, in_alpha = read_mask_values(path)
    marked = values != 0
    border = np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]])
    return _Look(float(marked.mean()), float(border.mean()), in_alpha)
