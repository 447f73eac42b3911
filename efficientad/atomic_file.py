"""Files that appear whole or not at all, whenever the process or the machine ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write in binary; after the block it takes the place of `path`, after an error nothing has changed.

    Args:
        durable: wait until the disk has it, so that a power failure does no harm either. What is quickly made
            again in great numbers, as maps are, need not wait.

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
    """The file that atomic_file writes, which is left over when the process is killed."""
    return path.with_name(f"{path.name}.part")


def write_text_atomically(path: Path, text: str) -> None:
    """`path` with this text as UTF-8; file names in it that are not valid UTF-8 keep their bytes."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))
