"""What users should know about images that can be read: collected while reading, told at the end."""

from __future__ import annotations

from efficientad.system.errors import count_of, printable

PAGES = "with several pages or frames: the first one counts"
CONSTANT_ALPHA = "with the same transparency everywhere, which is ignored"
ALPHA = "with transparent parts, which are put on black"
SHALLOW = (
    "with values of fewer bits than the detector was trained for, so nearly black to it; save them as the training "
    "images were saved, or train with such images, too"
)
_NAMED = 3


class ReadingNotes:
    """Names of images by what is to be said of them, each once; may be filled by several threads."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}  # by kind
        self._told: set[str] = set()

    def add(self, kind: str, name: str) -> None:
        """Note that this is so of an image; kind: one of this module's."""
        self._names.setdefault(kind, {})[name] = None  # each is one step, which no thread sees halfway

    def merge(self, other: ReadingNotes) -> None:
        """Take in the notes of another process."""
        for kind, names in other._names.items():
            self._names.setdefault(kind, {}).update(names)

    def lines(self) -> list[str]:
        """A line for each kind of note, with the number of images and the first names."""
        return [_line(kind, list(self._names[kind])) for kind in sorted(self._names)]

    def new_lines(self) -> list[str]:
        """The lines of the kinds for which this has not yet given one."""
        new = sorted(set(self._names) - self._told)
        self._told.update(new)
        return [_line(kind, list(self._names[kind])) for kind in new]


def _line(kind: str, names: list[str]) -> str:
    first = sorted(names)[:_NAMED]
    more = ", ..." if len(names) > _NAMED else ""
    return f"Note: {count_of(len(names), 'image')} {kind}: {printable(', '.join(first))}{more}"
