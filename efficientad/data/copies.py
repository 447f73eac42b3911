"""Finds files with the same content. Reads only those of equal size."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

from efficientad.data.images import UnreadableImageError, read_bytes
from efficientad.system.parallel import parallel_map

_THREADS = 8  # that read


def group_copies(paths: Sequence[Path]) -> list[list[int]]:
    """The indices of the paths in groups of byte-identical files, each in order, ordered by their first ones.

    A file that cannot be read is alone in its group.
    """
    by_size = defaultdict(list)
    for index, path in enumerate(paths):
        by_size[_size(path)].append(index)
    alike = sorted(index for size, same in by_size.items() if size and len(same) > 1 for index in same)
    digests = dict(zip(alike, parallel_map(_digest, (paths[index] for index in alike), _THREADS), strict=True))
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(len(paths)):
        groups[digests.get(index) or index].append(index)
    return list(groups.values())


def _size(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0  # an empty file is no copy of another: neither is an image


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(read_bytes(path)).digest()
    except UnreadableImageError:
        return None
