"""Files that appear whole or not at all, CSV files, and the folder that a command writes into."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from efficientad.system.errors import UserError


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` after the block; after an error nothing has changed.

    Args:
        durable: wait until the disk has it, so that a power failure does no harm either. Not needed for files
            that are many and quickly made again, as maps are.

    Raises:
        OSError: it cannot be written, as on a full disk; the error names `path`.
    """
    part = part_of(path)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """The temporary file of atomic_file, left behind when the process is killed."""
    return path.with_name(f"{path.name}.part")


def write_text_atomically(path: Path, text: str) -> None:
    """Write the text to `path` as UTF-8; file names in it that are not valid UTF-8 keep their bytes."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))


_FORMULA = re.compile("'*[=+@\\t\\r\\n-]")  # a spreadsheet would compute a cell that begins like this


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a header line and the rows in UTF-8, by csv_cell; the file appears whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(map(csv_cell, row) for row in rows)
    write_text_atomically(path, text.getvalue())


def csv_cell(value: object) -> str:
    """The value as text that is safe to open anywhere.

    Text that a spreadsheet would take for a formula, and that is no number, gets an apostrophe in front; bytes of
    a file name that are not UTF-8 become escapes, as in \\udcff for the byte ff.
    """
    text = str(value).encode("utf-8", errors="backslashreplace").decode("utf-8")
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


FILE_LIST = "written_files.json"  # lists what the last run wrote here, so that the next one may remove it


def claim_files(folder: Path, names: Sequence[str]) -> set[str]:
    """Prepare to write `names` below `folder`, and list them so that a later run knows them as its own.

    Returns:
        The files of the last run that this one does not write again; remove them with release_files.

    Raises:
        UserError: a file to be written is there already and no run wrote it.
    """
    earlier = written_files(folder)
    foreign = [name for name in names if name not in earlier and (folder / name).exists()]
    if foreign:
        raise UserError(
            f"{folder} holds {len(foreign)} files that are not listed as this command's own and will not be "
            f"replaced, {foreign[0]} for one; move them away or choose another --output_dir"
        )
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    write_file_list(folder, earlier.union(names))
    return earlier.difference(names)


def release_files(folder: Path, stale: set[str], names: Sequence[str]) -> None:
    """Remove the stale files of an earlier run, and the folders that they leave empty."""
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    for name in stale.union(names):  # left by a killed run
        part_of(folder / name).unlink(missing_ok=True)
    for parent in {(folder / name).parent for name in stale}:
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    write_file_list(folder, names)


def written_files(folder: Path) -> set[str]:
    """The files and folders below `folder` that a command has written; none without a list of them.

    Raises:
        UserError: the list is damaged.
    """
    path = folder / FILE_LIST
    if not path.is_file():
        return set()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        # The list decides what may be removed, so it must not lead out of the folder.
        return {
            name
            for name in map(str, names)
            if not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        }
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged; remove it together with the old maps beside it") from None


def write_file_list(folder: Path, names: Iterable[str]) -> None:
    """Record what a command writes into the folder, with "/"; see written_files."""
    write_text_atomically(folder / FILE_LIST, json.dumps(sorted(names), indent=0) + "\n")
