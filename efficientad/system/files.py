"""Files that appear whole or not at all, CSV files, and the folder that a command writes into."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from efficientad.system.errors import UserError, count_of


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` after the block; after an error nothing has changed.

    Args:
        durable: wait until the disk has it, so that a power failure does no harm either. Not needed for files
            that are many and quickly made again, as maps are.

    Raises:
        OSError: it cannot be written, as on a full disk; the error names `path`.
    """
    try:
        with _create_part(path) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(part_of(path), path)
    except BaseException as error:
        remove_file(part_of(path))
        if not isinstance(error, OSError) or error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def part_of(path: Path) -> Path:
    """The temporary file of atomic_file, left behind when the process is killed; its name is nobody else's."""
    return path.with_name(f".{path.name}.part")


def _create_part(path: Path) -> BinaryIO:
    """The temporary file for `path`, new: what is there may be a link, or another name of a file elsewhere."""
    part = part_of(path)
    remove_file(part)
    try:
        return part.open("xb")
    except FileExistsError:
        raise UserError(f"{part} is in the way of {path.name}, and is no file of this tool's; remove it") from None


def remove_file(path: Path) -> None:
    """Remove the file if it is there; links and folders stay."""
    try:
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    except FileNotFoundError:
        pass


def open_not_followed(path: str | Path, flags: int) -> int:
    """An opener for open(): a link is an error (but on Windows)."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


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
_LONGEST_LIST = 2**28  # bytes
_LONGEST_NAME = 249  # bytes of one part of a path: the 255 of most file systems, less those that part_of adds
_LONGEST_FOLDER = 2000  # bytes of a file's folder below the output folder; a whole path has 4096
_DEEPEST = 100  # folders
_HASH_DIGITS = 16


def fitting_name(name: str) -> str:
    """The path of a file below an output folder, or a shorter one where file systems would refuse it.

    The shorter one ends like it and has a part of its hash, so that two remain two.

    Args:
        name: with "/".
    """
    *parents, last = name.split("/")
    if len(parents) > _DEEPEST or len(os.fsencode("/".join(parents))) > _LONGEST_FOLDER:
        parents = parents[:1]
    elif len(os.fsencode(last)) <= _LONGEST_NAME:
        return name
    path = PurePosixPath(last)
    end = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:_HASH_DIGITS]}{path.suffix}"
    stem = path.stem
    while len(os.fsencode(stem + end)) > _LONGEST_NAME:
        stem = stem[:-1]
    return "/".join([*parents, stem + end])


def require_no_links(folder: Path, names: Iterable[str]) -> None:
    """Check that neither `names` below `folder` nor the folders on the way there are links.

    The folder itself may be one, or lie below one: that is where the user wants it.

    Args:
        names: with "/"; they need not exist.

    Raises:
        UserError: there is a link, which could lead writing and removing anywhere.
    """
    steps: set[str] = set()
    for name in names:
        while name and name not in steps:
            steps.add(name)
            name = name.rpartition("/")[0]
    links = [step for step in sorted(steps) if (folder / step).is_symlink()]
    if links:
        raise UserError(
            f"{folder / links[0]} is a link, and below an output folder nothing is written or removed through "
            "links; remove it, or choose another output folder (which may be a link itself)"
        )


def file_below(folder: Path, name: str) -> Path:
    """The path to write the file `name` to; the folders on the way there are made.

    Raises:
        UserError: see require_no_links.
        OSError: they cannot be made.
    """
    require_no_links(folder, [name])
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def claim_files(folder: Path, names: Sequence[str]) -> set[str]:
    """Prepare to write `names` below `folder`, and list them so that a later run knows them as its own.

    Returns:
        The files of the last run that this one does not write again; remove them with release_files.

    Raises:
        UserError: a file to be written is there already and no run wrote it; there are links on the way; or a name
            would have to be a file and a folder.
    """
    require_no_links(folder, [*names, FILE_LIST])
    earlier = written_files(folder)
    require_no_links(folder, earlier.difference(names))
    files = {*names, FILE_LIST}
    for parent in {parent for name in names for parent in PurePosixPath(name).parents}:
        if str(parent) in files:
            raise UserError(
                f"{folder / parent} would have to be a file of the results and the folder of others; rename what "
                f"gave the folder its name, a class or a folder of images named {parent.name}"
            )
    foreign = [
        name for name in names if (folder / name).exists() and (name not in earlier or (folder / name).is_dir())
    ]
    if foreign:
        raise UserError(
            f"{folder} holds {count_of(len(foreign), 'file')} not listed as this command's own, which will not be "
            f"replaced, {foreign[0]} for one; move them away or choose another --output_dir"
        )
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    write_file_list(folder, earlier.union(names))
    return earlier.difference(names)


def adopt_files(folder: Path, subfolder: str) -> None:
    """Make what a run wrote into the subfolder, if there is its list, files of the last run in `folder`.

    Raises:
        UserError: there are links on the way to a list, or it is damaged.
    """
    require_no_links(folder, [f"{subfolder}/{FILE_LIST}", FILE_LIST])
    if not (folder / subfolder / FILE_LIST).is_file():
        return
    names = {FILE_LIST, *written_files(folder / subfolder)}
    write_file_list(folder, written_files(folder).union(f"{subfolder}/{name}" for name in names))


def release_files(folder: Path, stale: set[str], names: Sequence[str]) -> None:
    """Remove the stale files of an earlier run, and the folders that they leave empty.

    Raises:
        UserError: links have appeared on the way to them.
    """
    require_no_links(folder, stale.union(names))
    for name in stale:
        remove_file(folder / name)
    for name in stale.union(names):  # left by a killed run
        remove_file(part_of(folder / name))
    parents = {parent for name in stale for parent in PurePosixPath(name).parents} - {PurePosixPath()}
    for parent in (folder / name for name in sorted(parents, reverse=True)):  # the inner ones first
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    write_file_list(folder, names)


def written_files(folder: Path) -> set[str]:
    """The files and folders below `folder` that a command has written; none without a list of them.

    Raises:
        UserError: the list is damaged. It decides what may be removed and what is no input, so it must not lead out
            of the folder.
    """
    path = folder / FILE_LIST
    if not path.is_file():
        return set()
    try:
        if path.stat().st_size > _LONGEST_LIST:
            raise ValueError
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, list) or not all(map(_is_below, names)):
            raise ValueError
    except (ValueError, RecursionError):
        raise UserError(
            f"{path} is damaged: it does not list files beside it; remove it, and what a command wrote there"
        ) from None
    return set(names)


def _is_below(name: object) -> bool:
    """Whether it is the plain relative path of something that can be in a folder."""
    if not isinstance(name, str) or "\0" in name or name.count("/") > _DEEPEST + 1:
        return False
    try:
        os.fsencode(name)  # surrogates other than those for bytes that are not UTF-8 name nothing
    except UnicodeEncodeError:
        return False
    return all(part not in ("", ".", "..") for part in name.split("/")) and not Path(name).is_absolute()


def write_file_list(folder: Path, names: Iterable[str]) -> None:
    """Record what a command writes into the folder, with "/"; see written_files."""
    write_text_atomically(folder / FILE_LIST, json.dumps(sorted(names), indent=0) + "\n")
