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
    scaled = [index for index, frame in frames.items() if frame.size != headers[index].upright_size]
    takes_own = _settle_odd(odd, sources, frames)
    for index, frame in list(frames.items()):  # turned, but of the same width and height
        if headers[index].orientation != 1:
            turned.append(_Choice(index, frame, replace(frame, is_stored=True)))
    notes = _settle_turned(turned, sources, frames)
    stretched = [] if takes_own else [choice.index for choice in odd]
    own = [choice.index for choice in odd if takes_own] + odd_turned
    for indices, means in ((own, "taken as pixels of the file"), (stretched, "stretched to the file's size")):
        notes += _describe_odd(indices, means, sources, headers)
    notes += _describe_scaled(scaled, sources, headers)
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
    """Choose the stored or the upright picture for all images that EXIF turns; if both fit, as each states it."""
    counts = {False: 0, True: 0}  # annotations that fit, by Frame.is_stored
    for choice in choices:
        for frame in (choice.stated, choice.other):
            counts[frame.is_stored] += _count_fits(sources[choice.index], frame)
    is_stored = counts[True] > counts[False]
    if counts[True] == counts[False]:
        frames.update((choice.index, choice.stated) for choice in choices)
        return _describe_unsure(choices, sources) if counts[True] else []
    changed = [choice for choice in choices if choice.stated.is_stored != is_stored]
    for choice in choices:
        frames[choice.index] = choice.stated if choice.stated.is_stored == is_stored else choice.other
    if not changed:
        return []
    kinds = ("stored", "upright") if is_stored else ("upright", "stored")
    return [
        f"{_count_turned(changed, sources)}: of the annotations of all such images {counts[is_stored]} are inside "
        f"the {kinds[0]} picture and {counts[not is_stored]} inside the {kinds[1]} one, so they are taken to refer "
        f"to the {kinds[0]} one; check them with --preview"
    ]


def _describe_unsure(choices: Sequence[_Choice], sources: Sequence[SourceImage]) -> list[str]:
    """A line about images of which nothing tells whether the stored or the upright picture was annotated."""
    sized = [choice for choice in choices if choice.stated.size != choice.other.size]
    is_said = any(sources[choice.index].stated_size and not choice.stated.is_stored for choice in sized)
    if not choices or (is_said and not any(choice.stated.is_stored for choice in sized)):
        return []  # the exporter states upright sizes
    stored = sum(choice.stated.is_stored for choice in choices)
    readings = (
        (stored, "to the stored picture, as their size says"),
        (len(choices) - stored, "to the upright one"),
    )
    taken = ", ".join(f"{count} {reading}" for count, reading in readings if count)
    return [
        f"{_count_turned(choices, sources)}: the annotations would fit the stored and the upright picture; they "
        f"are taken to refer: {taken}; check them with --preview"
    ]


def _count_turned(choices: Sequence[_Choice], sources: Sequence[SourceImage]) -> str:
    first = printable(sources[choices[0].index].name)
    return f"{count_of(len(choices), 'image')} turned by EXIF data (first: {first})"


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


def _describe_scaled(
    indices: Sequence[int], sources: Sequence[SourceImage], headers: Sequence[ImageHeader]
) -> list[str]:
    """A line about images annotated in a larger or smaller copy, as their entries say."""
    if not indices:
        return []
    first, own = sources[indices[0]], headers[indices[0]].upright_size
    return [
        f"The stated size of {count_of(len(indices), 'image')} is another one than the file's (first: "
        f"{printable(first.name)}: {first.stated_size[0]} x {first.stated_size[1]}, the file has {own[0]} x "
        f"{own[1]}); the annotations are scaled with it"
    ]


def _count_fits(source: SourceImage, frame: Frame) -> int:
    return sum(fits(annotation, frame.size) for annotation in source.annotations)


def _count_extents(source: SourceImage) -> int:
    return sum(extent(annotation) is not None for annotation in source.annotations)


def _have_same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= _SAME_ASPECT
