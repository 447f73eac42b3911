"""Text tables that fit a terminal of 80 columns."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence

WIDTH = 80
_GAP = "  "
_NARROWEST_TEXT, _USUAL_NOTES = 12, 30


def number(value: float, digits: int = 4) -> str:
    """The value with that many decimals; "-" for nan, which means undefined."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """The rows below their headers and a rule.

    A name that is too long for its column gets a line of its own, and notes are wrapped between words.

    Args:
        headers: of one or more lines each.
        align: a letter for each column: "r" for numbers; "l" for names (first column) or notes (last column).
    """
    columns = [[header, *cells] for header, *cells in zip(headers, *rows, strict=True)]
    widths = [max(text_width(line) for cell in column for line in cell.split("\n")) for column in columns]
    if align[-1] == "l":
        widths[-1] = min(widths[-1], _USUAL_NOTES)
    for place in (0, len(align) - 1):
        if align[place] == "l":
            widths[place] = 0
            room = max(WIDTH - sum(widths) - len(_GAP) * (len(widths) - 1), _NARROWEST_TEXT)
            widths[place] = _text_column(columns[place], room, wraps=place > 0)
    lines = [_line(cells, widths, align) for cells in _header_lines(headers)]
    lines.append(_GAP.join("-" * width for width in widths))
    for row in rows:
        cells = list(row)
        if text_width(cells[0]) > widths[0]:
            lines.append(cells[0])
            cells[0] = ""
        first, *more = textwrap.wrap(cells[-1], widths[-1]) or [""]
        lines.append(_line([*cells[:-1], first], widths, align))
        lines += [_line([*[""] * (len(cells) - 1), note], widths, align) for note in more]
    return "\n".join(lines)


def text_width(text: str) -> int:
    """The columns that a terminal takes for it: two for each East Asian wide letter."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _text_column(cells: Sequence[str], room: int, wraps: bool) -> int:
    widths = [text_width(line) for cell in cells for line in cell.split("\n")]
    return min(room, max(widths)) if wraps else max(width for width in widths if width <= room)


def _header_lines(headers: Sequence[str]) -> list[list[str]]:
    split = [header.split("\n") for header in headers]
    most = max(map(len, split))
    return [list(line) for line in zip(*([""] * (most - len(parts)) + parts for parts in split), strict=True)]


def _line(cells: Sequence[str], widths: Sequence[int], align: str) -> str:
    padded = []
    for cell, width, side in zip(cells, widths, align, strict=True):
        space = " " * (width - text_width(cell))
        padded.append(cell + space if side == "l" else space + cell)
    return _GAP.join(padded).rstrip()
