"""Finds the image files of a folder. Imports nothing heavier than Pillow."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from efficientad.data.formats import IMAGE_SUFFIXES, PICTURE_SUFFIXES


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
    """Lines for the user about the files that find_images did not take: pictures of other kinds, and the rest."""
    pictures = [path for path in others if path.suffix.lower() in PICTURE_SUFFIXES]
    rest = [path for path in others if path.suffix.lower() not in PICTURE_SUFFIXES]
    lines = []
    if pictures:
        what = "is a picture of a kind that is" if len(pictures) == 1 else "are pictures of kinds that are"
        lines = [f"{_count(pictures, f'{what} not read')}; convert to PNG"]
    if rest:
        lines.append(_count(rest, "is no image" if len(rest) == 1 else "are no images"))
    return lines


def _count(paths: Sequence[Path], what: str) -> str:
    if len(paths) == 1:
        return f"1 file {what}: {paths[0]}"
    kinds = Counter(path.suffix.lower() or "no suffix" for path in paths).most_common()
    return f"{len(paths)} files {what}: {', '.join(f'{kind} ({count})' for kind, count in kinds)}"


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
