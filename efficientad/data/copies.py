"""Finds files with the same content. Reads only those of equal size."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from efficientad.data.images import UnreadableImageError, read_bytes
from efficientad.system.parallel import parallel_map

_THREADS = 8  # that read
_LOOKED_AT = 4096  # bytes


def group_copies(paths: Sequence[Path]) -> list[list[int]]:
    """The indices of the paths in groups of byte-identical files, each in order, ordered by their first ones.

    A file that cannot be read is alone in its group.
    """
    groups = [list(range(len(paths)))]
    for key in (_size, _middle, _digest):  # each is looked at only for files that were alike so far
        groups = _split(groups, paths, key)
    return sorted(groups)


def _split(groups: Sequence[list[int]], paths: Sequence[Path], key: Callable[[Path], Hashable]) -> list[list[int]]:
    """The groups, divided by a key of the files; without a key (None) a file is alone."""
    alike = [index for group in groups if len(group) > 1 for index in group]
    keys = dict(zip(alike, parallel_map(key, (paths[index] for index in alike), _THREADS), strict=True))
    divided = []
    for group in groups:
        by_key: dict[Hashable, list[int]] = defaultdict(list)
        for index in group:
            by_key[index if keys.get(index) is None else (keys[index],)].append(index)
        divided += by_key.values()
    return divided


def _size(path: Path) -> int | None:
    try:
        return os.path.getsize(path) or None  # an empty file is no copy of another: neither is an image
    except OSError:
        return None


def _middle(path: Path) -> bytes | None:
    """Some bytes of the file, since images of one size may all be equally large files."""
    try:
        if not path.is_file():  # reading a pipe might never end
            return None
        with path.open("rb") as file:
            file.seek(os.path.getsize(path) // 2)
            return file.read(_LOOKED_AT)
    except OSError:
        return None


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(read_bytes(path)).digest()
    except UnreadableImageError:
        return None
