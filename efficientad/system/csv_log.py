"""The log of a run as a CSV file that a resumed run continues."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from efficientad.system.distributed import rank
from efficientad.system.files import write_csv


class CsvLog:
    """Rows in a CSV file, of which the first column is the step; only the first process writes.

    The file is begun by `write`. When it is removed meanwhile, perhaps with its folder, it comes back whole.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self._columns = path, columns
        self._rows: list[list] = []

    def restore(self, step: int) -> None:
        """Keep the rows of the file up to this step; those of a column that it lacks are empty, damaged rows go."""
        if rank() > 0 or not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            whole = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
        known = [row for row in whole if row.get("step", "").isdecimal() and int(row["step"]) <= step]
        self._rows = [[row.get(column, "") for column in self._columns] for row in known]

    def add(self, row: Sequence[object]) -> None:
        """Append a row, its cells in the order of the columns."""
        self._rows.append(list(row))
        if not self.path.exists():
            self.write()
        elif rank() == 0:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(row)

    def set_last(self, column: str, value: object) -> None:
        """Change a cell of the last row."""
        self._rows[-1][self._columns.index(column)] = value
        self.write()

    def write(self) -> None:
        """Write the whole file."""
        if rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_csv(self.path, self._columns, self._rows)
