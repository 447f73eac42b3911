"""Watch a folder for complete new images, and measure how long each waits for its result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efficientad.data.folders import is_data_folder, is_image_name
from efficientad.inference.results import Signature
from efficientad.system.errors import UserError
from efficientad.system.files import FILE_LIST, csv_cell, written_files

SETTLING_SECONDS = 0.5  # a file that has not changed for this long is complete
FULL_SCAN_SECONDS = 2.0  # between two scans that look at every file, at least
FULL_SCAN_COSTS = 20  # and at least this many times what the last one took


@dataclass(frozen=True)
class Arrival:
    """A complete image file."""

    path: Path
    signature: Signature
    noticed: float  # on the monotonic clock: when it was known to be complete


@dataclass
class _Listing:
    """A folder as it was last listed."""

    identity: tuple[int, ...]  # of the folder; differs once an entry is added, removed or renamed
    images: dict[str, int]  # inode by name
    folders: list[tuple[str, str]]  # paths of those to look into, and where they really are
    written: set[str]  # paths of what a command has written into it, which is not looked at
    is_final: bool  # listed again since the identity was first seen: clocks of file systems tick slowly


class FolderWatcher:
    """Finds image files of a folder, at any depth, that are complete and new or changed.

    A file is complete when it was last modified a while ago, as one that is moved in often is, or has not changed
    for that while between scans. A scan lists only the folders whose own time has changed and looks at their new
    files, which works on every file system, those of a network included. A file that is rewritten in place leaves
    its folder's time as it is, so from time to time a full scan looks at every file: after FULL_SCAN_SECONDS, or
    FULL_SCAN_COSTS times as long as the last one took.
    """

    def __init__(
        self,
        folder: Path,
        done: dict[str, Signature],
        warn: Callable[[OSError | UserError], None] = lambda error: None,
        warn_of_kind: Callable[[str], None] = lambda path: None,
    ) -> None:
        """
        Args:
            done: signatures by path as csv_cell writes it; a file with the same one is not new.
            warn: called when a folder cannot be listed, once until it can, and for each damaged list of what a
                command has written: then all in that folder counts as input.
            warn_of_kind: called with the path of the first file of each suffix that is no image's.
        """
        self._folder, self._done, self._warn, self._warn_of_kind = str(folder), dict(done), warn, warn_of_kind
        self._kinds: set[str] = set()  # suffixes of files that are no images
        self._listings: dict[str, _Listing] = {}  # by path
        self._troubles: set[str] = set()  # of the last scan
        self._damaged: set[str] = set()  # folders with damaged lists
        self._changing: dict[str, tuple[Signature, float]] = {}  # and since when the signature is the same
        self._full_scan_due = time.monotonic()

    def scan(self) -> list[Arrival]:
        """The files that have become complete since the last scan, oldest first; each is given once.

        None while the folder cannot be listed, as when a share is away for a while; a folder in it that cannot be
        is skipped.
        """
        now, changing, arrivals = time.monotonic(), {}, []
        is_full = now >= self._full_scan_due
        for path in {**self._changing, **dict.fromkeys(self._walk(is_full))}:
            try:
                stat = os.stat(path)
            except OSError:
                continue  # gone again
            signature = stat.st_size, stat.st_mtime_ns
            if self._done.get(csv_cell(path)) == signature:
                continue
            earlier, since = self._changing.get(path, (None, now))
            since = since if earlier == signature else now
            if max(time.time() - signature[1] / 1e9, now - since) >= SETTLING_SECONDS:
                self._done[csv_cell(path)] = signature
                arrivals.append(Arrival(Path(path), signature, now))
            else:
                changing[path] = signature, since
        self._changing = changing
        if is_full:
            ended = time.monotonic()
            self._full_scan_due = ended + max(FULL_SCAN_SECONDS, FULL_SCAN_COSTS * (ended - now))
        return sorted(arrivals, key=lambda arrival: arrival.signature[1])

    def _walk(self, is_full: bool) -> Iterator[str]:
        """The image files to look at: all, or the new ones of folders that have changed; see find_images."""
        listings: dict[str, _Listing] = {}
        troubles: list[OSError] = []
        top = os.path.realpath(self._folder)
        seen, waiting = {top}, [self._folder]
        written: set[str] = set()
        while waiting:
            path = waiting.pop()
            known = self._listings.get(path)
            try:
                listing = self._list(path, top, known, is_full, written)
            except OSError as error:
                troubles.append(error)
                continue
            listings[path] = listing
            written |= listing.written
            if is_full or known is None:
                yield from (os.path.join(path, name) for name in listing.images)
            elif listing is not known:
                new = (name for name, inode in listing.images.items() if known.images.get(name) != inode)
                yield from (os.path.join(path, name) for name in new)
            new_folders = {real: subfolder for subfolder, real in reversed(listing.folders) if real not in seen}
            seen.update(new_folders)
            waiting += new_folders.values()
        self._listings = listings
        for error in troubles:
            if str(error) not in self._troubles:
                self._warn(error)
        self._troubles = {str(error) for error in troubles}

    def _list(self, path: str, top: str, known: _Listing | None, is_full: bool, written: set[str]) -> _Listing:
        """The folder's listing, the known one if nothing can have changed."""
        stat = os.stat(path)
        identity = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        is_same = known is not None and known.identity == identity
        if is_same and known.is_final and not is_full:
            return known
        own = {os.path.normpath(os.path.join(path, name)) for name in self._written(path)}
        skipped = own | written
        earlier, images, folders = known.images if known else {}, {}, []
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if skipped and os.path.normpath(entry.path) in skipped:
                    continue
                if entry.is_dir():
                    if is_data_folder(name):
                        folders.append((entry.path, os.path.realpath(entry.path)))
                elif name in earlier or is_image_name(name):
                    images[name] = entry.inode()
                elif name != FILE_LIST and not name.startswith("."):
                    self._name_kind(entry.path)
        kept = [folder for folder in sorted(folders) if not _is_within(top, folder[1])]
        return _Listing(identity, images, kept, own, is_final=is_same)

    def _written(self, path: str) -> set[str]:
        """What a command has written into the folder; a damaged list must not stop the watching."""
        try:
            return written_files(Path(path))
        except UserError as error:
            if path not in self._damaged:
                self._damaged.add(path)
                self._warn(error)
            return set()

    def _name_kind(self, path: str) -> None:
        """Warn of a file that is no image, if it is the first of its kind."""
        kind = os.path.splitext(path)[1].lower()
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._warn_of_kind(path)


def _is_within(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


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
