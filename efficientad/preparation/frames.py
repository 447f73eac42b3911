"""Decides what the coordinates of annotations refer to: the file as stored, upright, or a copy of another size.

Exporters state a width and a height for each image, which are not always those of the picture that their
coordinates refer to. One exporter wrote the whole file, so it is decided for all of its images at once, by which
reading has more annotations inside their images. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from efficientad.preparation.orientation import Frame, ImageHeader
from efficientad.preparation.shapes import extent, fits
from efficientad.preparation.sources import SourceImage
from efficientad.system.errors import count_of, printable

_SAME_ASPECT = 0.02  # ratio of aspect ratios, so that rounded sizes of small copies are still copies


@dataclass(frozen=True)
class _Choice:
    """An image of which two readings are possible."""

    index: int
    stated: Frame  # as the file's stated size has it
    other: Frame


def settle_frames(
    sources: Sequence[SourceImage], headers: Sequence[ImageHeader]
) -> tuple[list[SourceImage], list[str]]:
    """The sources, the annotated ones with the frame of their annotations, and notes for the user."""
    frames: dict[int, Frame] = {}
    turned: list[_Choice] = []
    odd: list[_Choice] = []
    odd_turned: list[int] = []
    for index, (source, header) in enumerate(zip(sources, headers, strict=True)):
        if not source.annotations:
            continue
        if header.upright_size != header.stored_size:
            turned.append(_turned_choice(index, source.stated_size, header))
            if source.stated_size and source.stated_size not in (turned[-1].stated.size, turned[-1].other.size):
                odd_turned.append(index)
        elif _is_odd(source, header.upright_size):
            odd.append(_Choice(index, Frame(source.stated_size, False), Frame(header.upright_size, False)))
        else:
            frames[index] = Frame(source.stated_size or header.upright_size, is_stored=False)
    notes = _settle_turned(turned, sources, frames)
    takes_own = _settle_odd(odd, sources, frames)
    stretched = [] if takes_own else [choice.index for choice in odd]
    own = [choice.index for choice in odd if takes_own] + odd_turned
    for indices, means in ((own, "taken as pixels of the file"), (stretched, "stretched to the file's size")):
        notes += _describe_odd(indices, means, sources, headers)
    return [replace(source, frame=frames.get(index)) for index, source in enumerate(sources)], notes


def _is_odd(source: SourceImage, size: tuple[int, int]) -> bool:
    """Whether the stated size is neither that of the file nor that of a copy with these annotations."""
    stated = source.stated_size
    if stated in (None, size):
        return False
    if not _have_same_aspect(stated, size):
        return True
    stated_fits, own_fits = (_count_fits(source, Frame(each, False)) for each in (stated, size))
    return own_fits > stated_fits and own_fits == _count_extents(source)


def _turned_choice(index: int, stated: tuple[int, int] | None, header: ImageHeader) -> _Choice:
    """The readings of an image that EXIF lays on its side: its stored and its upright picture."""
    upright, stored = header.upright_size, header.stored_size
    is_stored = False
    if stated is not None and stated != upright:
        if _have_same_aspect(stated, stored):
            upright, stored, is_stored = stated[::-1], stated, True
        elif _have_same_aspect(stated, upright):
            upright, stored = stated, stated[::-1]
    readings = Frame(upright, is_stored=False), Frame(stored, is_stored=True)
    return _Choice(index, readings[is_stored], readings[not is_stored])


def _settle_turned(
    choices: Sequence[_Choice], sources: Sequence[SourceImage], frames: dict[int, Frame]
) -> list[str]:
    counts = {False: 0, True: 0}  # annotations that fit, by Frame.is_stored
    for choice in choices:
        for frame in (choice.stated, choice.other):
            counts[frame.is_stored] += _count_fits(sources[choice.index], frame)
    is_tie = counts[False] == counts[True]
    wins_stored = counts[True] > counts[False]
    changed = []
    for choice in choices:
        keep = is_tie or choice.stated.is_stored == wins_stored
        frames[choice.index] = choice.stated if keep else choice.other
        if not keep:
            changed.append(choice.index)
    if changed:
        kinds = ("stored", "upright") if wins_stored else ("upright", "stored")
        first = printable(sources[changed[0]].name)
        return [
            f"{count_of(len(changed), 'image')} turned by EXIF data (first: {first}): more annotations lie inside "
            f"the {kinds[0]} picture ({counts[wins_stored]}) than inside the {kinds[1]} one "
            f"({counts[not wins_stored]}), so they are taken to refer to that, whatever size the file states; "
            "check them with --preview"
        ]
    unsure = [
        choice.index for choice in choices if choice.stated.is_stored or sources[choice.index].stated_size is None
    ]
    if is_tie and counts[True] and unsure:
        reading = (
            "the stored picture, whose size the file states" if frames[unsure[0]].is_stored else "the upright one"
        )
        first = printable(sources[unsure[0]].name)
        return [
            f"{count_of(len(unsure), 'image')} turned by EXIF data (first: {first}): the annotations would fit the "
            f"stored and the upright picture; they are taken to refer to {reading}; check them with --preview"
        ]
    return []


def _settle_odd(choices: Sequence[_Choice], sources: Sequence[SourceImage], frames: dict[int, Frame]) -> bool:
    """Whether the annotations of all these images refer to the file's own size rather than to the stated one."""
    stated_fits = sum(_count_fits(sources[choice.index], choice.stated) for choice in choices)
    own_fits = sum(_count_fits(sources[choice.index], choice.other) for choice in choices)
    takes_own = own_fits >= stated_fits
    for choice in choices:
        frames[choice.index] = choice.other if takes_own else choice.stated
    return takes_own


def _describe_odd(
    indices: Sequence[int], means: str, sources: Sequence[SourceImage], headers: Sequence[ImageHeader]
) -> list[str]:
    if not indices:
        return []
    first, header = sources[indices[0]], headers[indices[0]]
    (width, height), (own_width, own_height) = first.stated_size, header.upright_size
    return [
        f"The stated width and height of {count_of(len(indices), 'image')} do not go with the file (first: "
        f"{printable(first.name)}: {width} x {height}, the file has {own_width} x {own_height}); the "
        f"annotations are {means}"
    ]


def _count_fits(source: SourceImage, frame: Frame) -> int:
    return sum(fits(annotation, frame.size) for annotation in source.annotations)


def _count_extents(source: SourceImage) -> int:
    return sum(extent(annotation) is not None for annotation in source.annotations)


def _have_same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= _SAME_ASPECT
