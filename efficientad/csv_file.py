"""The one way in which CSV files are written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from efficientad.atomic_file import write_text_atomically


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A header line and the rows; the file appears whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())
