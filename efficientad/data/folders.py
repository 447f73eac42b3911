"""Finds the image files of a folder. Imports nothing heavy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"})


def is_image_name(name: str) -> bool:
    """Whether the name is that of an image: a known suffix in any letter case, not hidden."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def is_data_folder(name: str) -> bool:
    """Whether a folder of this name holds data: it is neither hidden nor left by macOS' zip tool."""
    return not name.startswith(".") and name != "__MACOSX"


def find_images(folder: Path, others: list[Path] | None = None) -> list[Path]:
    """Every image under `folder` at any depth, in an order that does not depend on the file system.

    Hidden files and folders are skipped. Links to folders are followed, but never in circles, and no folder is
    listed twice.

    Args:
        others: takes the files that are not hidden and no images; see describe_others.

    Raises:
        OSError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:  # os.walk would ignore it
        raise error

    top = Path(os.path.realpath(folder))
    seen = {top}

    def is_new(path: str) -> bool:
        real = Path(os.path.realpath(path))
        new = real not in seen and not top.is_relative_to(real)
        seen.add(real)
        return new

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        data = sorted(filter(is_data_folder, folders))
        folders[:] = [name for name in data if is_new(os.path.join(parent, name))]
        found += [Path(parent, name) for name in names if is_image_name(name)]
        if others is not None:
            others += [Path(parent, name) for name in sorted(names) if not (is_image_name(name) or name[0] == ".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def describe_others(others: Sequence[Path]) -> list[str]:
    """A line for the user about the files that find_images did not take, if there are any."""
    if not others:
        return []
    if len(others) == 1:
        return [f"1 file is no image: {others[0]}"]
    kinds = Counter(path.suffix.lower() or "no suffix" for path in others).most_common()
    return [f"{len(others)} files are no images: {', '.join(f'{kind} ({count})' for kind, count in kinds)}"]


def leave_out_below(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """The paths that are not inside `folder`, links resolved."""
    top = Path(os.path.realpath(folder))
    inside: dict[Path, bool] = {}  # by parent
    kept = []
    for path in paths:
        if path.parent not in inside:
            inside[path.parent] = Path(os.path.realpath(path.parent)).is_relative_to(top)
        if not inside[path.parent]:
            kept.append(path)
    return kept
