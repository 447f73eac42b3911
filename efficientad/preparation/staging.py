"""Folders that appear whole or not at all, and are replaced only if this tool wrote them. Imports no torch."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from efficientad.data.images import SKIPPED_FILE
from efficientad.system.errors import UserError
from efficientad.system.files import csv_cell, write_csv
from efficientad.system.runs import lock_output, replaced_name, unfinished_folder

MANIFEST_FILE = "manifest.csv"
COUNTS_FILE = "image_counts.csv"
_MANIFEST_HEADER = ["source", "destination", "sha256"]


@dataclass(frozen=True)
class ManifestRow:
    """One written image: its source, its path below the folder (with "/"), the SHA-256 of its bytes."""

    source: Path
    destination: str
    sha256: str


def mask_name(destination: str) -> str | None:
    """The mask of test/<class>/<image>: ground_truth/<class>/<stem>_mask.png; None for other images."""
    path = PurePosixPath(destination)
    if path.parts[0] != "test":
        return None
    return f"ground_truth/{path.parent.relative_to('test').as_posix()}/{path.stem}_mask.png"


def write_manifest(folder: Path, rows: Iterable[ManifestRow]) -> None:
    """Write the manifest.csv of a finished folder."""
    lines = ([row.source, row.destination, row.sha256] for row in rows)
    write_csv(folder / MANIFEST_FILE, _MANIFEST_HEADER, lines)


def require_free(folder: Path, overwrite: bool, flag: str, apart_from: Iterable[Path | None] = ()) -> None:
    """Check that the folder is missing, empty, or may be overwritten since this tool wrote every file in it.

    Args:
        flag: the flag that names the folder, for messages.
        apart_from: other folders in use, which must neither contain the folder nor be inside it.

    Raises:
        UserError: it is none of these.
    """
    output = Path(os.path.realpath(folder))
    for path in filter(None, apart_from):
        other = Path(os.path.realpath(path))
        if output.is_relative_to(other) or other.is_relative_to(output):
            raise UserError(f"{flag} {folder} and {path} are one inside the other; choose a {flag} outside")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another {flag}")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{folder} is not empty; choose another {flag}, or --overwrite if this tool made it")
    own = _own_files(folder)
    if own is None:
        raise UserError(f"{folder} was not made by this tool and is not overwritten; choose another {flag}")
    cells: dict[str, list[str]] = {}  # as in the manifest
    links = []  # this tool makes none
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            links.append(name)
        elif not path.is_dir():
            cells.setdefault(csv_cell(name), []).append(name)
    foreign = sorted(links + [names[-1] for cell, names in cells.items() if cell not in own or len(names) > 1])
    if foreign:
        raise UserError(
            f"{folder} is not overwritten: this tool did not write {len(foreign)} of its files, for example "
            f"{foreign[0]}; move them away or choose another {flag}"
        )


def _own_files(folder: Path) -> set[str] | None:
    """The files that the folder's manifest lists, as csv_cell writes them; None without a manifest."""
    try:
        with (folder / MANIFEST_FILE).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error):
        return None
    if not rows or rows[0] != _MANIFEST_HEADER or any(len(row) != len(_MANIFEST_HEADER) for row in rows):
        return None
    images = {row[1] for row in rows[1:]}
    return {*images, *filter(None, map(mask_name, images)), MANIFEST_FILE, COUNTS_FILE, SKIPPED_FILE}


@contextmanager
def staged_folder(folder: Path, overwrite: bool, flag: str) -> Iterator[Path]:
    """A new folder to fill, beside `folder`; renamed to it when the block ends without an exception.

    After an exception (also Ctrl-C) everything is as before. A replaced folder is removed last.

    Raises:
        UserError: see require_free; or another run is writing the same folder.
    """
    final = Path(os.path.realpath(folder))
    with lock_output(final, flag), unfinished_folder(final) as staging:
        yield staging
        require_free(final, overwrite, flag)  # again: filling may have taken long
        _replace(final, staging)


def _replace(final: Path, staging: Path) -> None:
    replaced = replaced_name(final)
    try:
        if final.exists():
            final.rename(replaced)
        staging.rename(final)
    except BaseException:
        if replaced.exists():
            replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
