"""A run's log and state: saved when due, and before a signal ends the run, on all processes alike."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from efficientad.system.distributed import largest_over_ranks, rank, wait_for_ranks
from efficientad.system.errors import Interrupted, UserError
from efficientad.system.files import open_not_followed, write_csv
from efficientad.system.random_streams import VERSION
from efficientad.system.runs import STOP_NOTICE, stop_requests
from efficientad.system.torch_files import write_atomically


class CsvLog:
    """Rows in a CSV file with a column "step"; a file that is removed meanwhile comes back whole."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self._columns = path, columns
        self._rows: list[list] = []

    def restore(self, step: int) -> None:
        """Keep the rows of the file up to this step; cells of columns that it lacks are empty, damaged rows go."""
        if rank() == 0 and self.path.exists():
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
            with open(self.path, "a", newline="", encoding="utf-8", opener=open_not_followed) as file:
                csv.writer(file).writerow(row)

    def set_last(self, column: str, value: object) -> None:
        """Change a cell of the last row."""
        self._rows[-1][self._columns.index(column)] = value
        self.write()

    def write(self) -> None:
        """Write the whole file, on the first process."""
        if rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_csv(self.path, self._columns, self._rows)


class StateSaver:
    """Saves the state of a run, and stops it after the step under way when a signal asks for that."""

    def __init__(
        self, path: Path, network: nn.Module, collect: Callable[[], dict[str, Any]], seconds: float
    ) -> None:
        """
        Args:
            network: checked before it is saved: a step can break weights that only the next loss would show.
            collect: returns the state; called on all processes.
            seconds: between two saves that nobody asks for.
        """
        self._path, self._network, self._collect, self._seconds = path, network, collect, seconds

    @contextmanager
    def watching(self, not_finite: Callable[[], UserError]) -> Iterator[None]:
        """Listen for signals during the block; `not_finite` returns the error for broken weights."""
        self._saved, self._not_finite = time.monotonic(), not_finite
        with stop_requests("" if rank() else STOP_NOTICE) as self._asked_to_stop:
            yield

    def save(self) -> None:
        """Save now, or raise the error for weights that are not finite; then the last state stays."""
        if not all(parameter.isfinite().all() for parameter in self._network.parameters()):
            raise self._not_finite()
        state = {**self._collect(), "streams": VERSION}
        if rank() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)  # removed meanwhile: nothing else is lost
            write_atomically(state, self._path)
        self._saved = time.monotonic()

    def after_step(self, step: int, save: bool = False) -> None:
        """Save if it is time, or if `save` is true on any process; after a signal save and raise Interrupted."""
        due = save or (rank() == 0 and time.monotonic() - self._saved > self._seconds)
        wanted = largest_over_ranks(2 if self._asked_to_stop() else int(due))  # all do what one is asked to do
        if wanted:
            self.save()
        if wanted == 2:
            wait_for_ranks()  # when the first one ends, torchrun ends the others
            raise Interrupted(f"interrupted after step {step}; continue with --resume")
