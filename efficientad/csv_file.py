"""The one way in which CSV files are written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from efficientad.atomic_file import write_text_atomically

_FORMULA = re.compile("'*[=+@\\t\\r\\n-]")  # a cell that begins so would be computed by a spreadsheet


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A header line and the rows, in UTF-8, by csv_cell; the file appears whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(map(csv_cell, row) for row in rows)
    write_text_atomically(path, text.getvalue())


def csv_cell(value: object) -> str:
    """The value as text that is safe to open anywhere.

    What a spreadsheet would take for a formula gets an apostrophe in front, numbers excepted, and bytes of a file
    name that are no UTF-8 become escapes, as in \\udcff for the byte ff.
    """
    text = str(value).encode("utf-8", errors="backslashreplace").decode("utf-8")
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
