"""Finds the image files of a folder. Imports nothing heavier than Pillow."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from efficientad.data.formats import IMAGE_SUFFIXES, PICTURE_SUFFIXES
from efficientad.system.files import FILE_LIST, written_files


def is_image_name(name: str) -> bool:
    """Whether the name is that of an image: a known suffix in any letter case, not hidden."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def is_data_folder(name: str) -> bool:
    """Whether a folder of this name holds data: it is neither hidden nor left by macOS' zip tool."""
    return not name.startswith(".") and name != "__MACOSX"


def find_images(folder: Path, others: list[Path] | None = None) -> list[Path]:
    """Every image under `folder` at any depth, in an order that does not depend on the file system.

    Hidden files and folders are skipped, and what a command wrote, such as anomaly maps. Links to folders are
    followed, but never in circles, and no folder is listed twice.

    Args:
        others: takes the files that are not hidden and no images, and the lists of what was written, for
            describe_others.

    Raises:
        OSError: a folder cannot be listed.
        UserError: the list of what was written into a folder is damaged.
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

    found: list[Path] = []
    rest: list[Path] = []
    written: set[Path] = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if FILE_LIST in names:
            written.update(Path(parent, name) for name in written_files(Path(parent)))
        folders[:] = [
            name
            for name in sorted(filter(is_data_folder, folders))
            if Path(parent, name) not in written and is_new(os.path.join(parent, name))
        ]
        for path in (Path(parent, name) for name in sorted(names)):
            if path not in written:
                (found if is_image_name(path.name) else rest).append(path)
    if others is not None:
        others += [path for path in rest if not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def leave_out_written(paths: Iterable[Path], others: list[Path]) -> list[Path]:
    """The paths but for what a command has written into one of the folders above them; see find_images."""
    written: dict[Path, set[str]] = {}  # by folder
    kept = []
    for path in paths:
        absolute = Path(os.path.abspath(path))
        for folder in absolute.parents:
            if folder not in written:
                written[folder] = written_files(folder)
            steps = absolute.relative_to(folder).parts
            if any("/".join(steps[:end]) in written[folder] for end in range(1, len(steps) + 1)):
                others.append(folder / FILE_LIST)
                break
        else:
            kept.append(path)
    return kept


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


def describe_others(others: Iterable[Path]) -> list[str]:
    """Lines for the user about the files that find_images did not take, if there are any."""
    lists = list(dict.fromkeys(path.parent for path in others if path.name == FILE_LIST))
    lines = []
    if lists:
        more = f" and {len(lists) - 1} more folders" if len(lists) > 1 else ""
        lines.append(f"The results of earlier runs in {lists[0]}{more} are no input")
    pictures, rest = [], []
    for path in others:
        if path.name != FILE_LIST:
            (pictures if path.suffix.lower() in PICTURE_SUFFIXES else rest).append(path)
    if pictures:
        what = "is a picture of a kind that is" if len(pictures) == 1 else "are pictures of kinds that are"
        lines.append(f"{_count(pictures, f'{what} not read')}; convert to PNG")
    if rest:
        lines.append(_count(rest, "is no image" if len(rest) == 1 else "are no images"))
    return lines


def _count(paths: Sequence[Path], what: str) -> str:
    if len(paths) == 1:
        return f"1 file {what}: {paths[0]}"
    kinds = Counter(path.suffix.lower() or "no suffix" for path in paths).most_common()
    return f"{len(paths)} files {what}: {', '.join(f'{kind} ({count})' for kind, count in kinds)}"
