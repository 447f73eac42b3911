"""A folder that images appear in: which of them are complete and new, and how long they had to wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efficientad.data.images import find_images, leave_out_below
from efficientad.inference.results import Signature, signature_of
from efficientad.system.files import csv_cell

SETTLING_SECONDS = 0.5  # a file that has not changed for so long is complete


@dataclass(frozen=True)
class Arrival:
    """A complete image file."""

    path: Path
    signature: Signature
    noticed: float  # on the monotonic clock: when it was known to be complete


class FolderWatcher:
    """Finds the image files of a folder, at any depth, that are complete and were not there before, or differ.

    A file is complete when it was last modified a while ago, as one that is moved in often is, or has not changed
    for that while under the watcher's eyes. The folder is listed again and again: that works on every file system,
    those of a network included.
    """

    def __init__(
        self,
        folder: Path,
        passed_over: Path,
        done: dict[str, Signature],
        warn: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        """
        Args:
            passed_over: a folder whose images do not count, such as the one that maps are written to.
            done: signatures by path as csv_cell writes it; a file with the same one is not new.
            warn: is told when a folder cannot be listed, once until it can.
        """
        self._folder, self._passed_over, self._done, self._warn = folder, passed_over, dict(done), warn
        self._troubles: set[str] = set()  # of the last scan
        self._changing: dict[Path, tuple[Signature, float]] = {}  # and since when the signature is the same

    def scan(self) -> list[Arrival]:
        """The files that have become complete since the last scan, oldest first; each is given once.

        None while the folder cannot be listed, as when a share is away for a while; a folder in it that cannot be
        is passed over.
        """
        now, changing, arrivals = time.monotonic(), {}, []
        troubles: list[OSError] = []
        paths = find_images(self._folder, troubles.append)
        self._tell(troubles)
        for path in leave_out_below(self._passed_over, paths):
            try:
                signature = signature_of(path)
            except OSError:
                continue  # gone again
            if self._done.get(csv_cell(path)) == signature:
                continue
            earlier, since = self._changing.get(path, (None, now))
            since = since if earlier == signature else now
            if max(time.time() - signature[1] / 1e9, now - since) >= SETTLING_SECONDS:
                self._done[csv_cell(path)] = signature
                arrivals.append(Arrival(path, signature, now))
            else:
                changing[path] = signature, since
        self._changing = changing
        return sorted(arrivals, key=lambda arrival: arrival.signature[1])

    def _tell(self, troubles: list[OSError]) -> None:
        for error in troubles:
            if str(error) not in self._troubles:
                self._warn(error)
        self._troubles = {str(error) for error in troubles}


class LatencyLog:
    """Percentiles of the time from a complete image to its result, printed at regular intervals."""

    def __init__(self, seconds: float, write_line: Callable[[str], None]) -> None:
        """
        Args:
            seconds: between two lines; an interval without images has none.
        """
        self._seconds, self._write_line = seconds, write_line
        self._due = time.monotonic() + seconds
        self._latencies: list[float] = []

    def add(self, arrival: Arrival) -> None:
        """Record that the image's result has just been written."""
        self._latencies.append(1000 * (time.monotonic() - arrival.noticed))

    def report_when_due(self) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._seconds
            self.report()

    def report(self) -> None:
        """Write the line now, if there were images."""
        if not self._latencies:
            return
        values = ", ".join(
            f"{name} {value:.0f}"
            for name, value in zip(
                ("median", "p95", "p99", "max"), np.percentile(self._latencies, (50, 95, 99, 100)), strict=True
            )
        )
        count = f"{len(self._latencies)} image" + "s" * (len(self._latencies) != 1)
        self._write_line(f"{time.strftime('%H:%M:%S')}  {count}, ms from complete to result: {values}")
        self._latencies = []
