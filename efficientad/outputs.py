"""The folder an evaluation writes into: it replaces its own files of last time, and touches no others."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from efficientad.atomic_file import part_of, write_text_atomically
from efficientad.datasets import Sample
from efficientad.errors import UserError

FILE_LIST = "written_files.json"  # what the last evaluation wrote here, so that the next one may remove it


def map_names(samples: Sequence[Sample], suffix: str) -> list[str]:
    """The file below the output folder for each sample's map: <class>/<image without its suffix><suffix>.

    A class with two images that differ only in the suffix (a.jpg, a.png) keeps all suffixes (a.jpg.tiff).
    """
    stems: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        stems[sample.class_name].append(_stem(sample).casefold())
    keeps_suffix = {name for name, inside in stems.items() if len(set(inside)) < len(inside)}
    return [
        f"{sample.class_name}/"
        + (sample.image_name if sample.class_name in keeps_suffix else _stem(sample))
        + suffix
        for sample in samples
    ]


def _stem(sample: Sample) -> str:
    return PurePosixPath(sample.image_name).with_suffix("").as_posix()


def claim_files(folder: Path, names: Sequence[str]) -> set[str]:
    """Make ready to write `names` below `folder`, and note them so that a later evaluation knows them as its own.

    Returns:
        The files of the last evaluation that this one does not write again; remove them with release_files.

    Raises:
        UserError: a file to be written is there already and no evaluation wrote it.
    """
    earlier = _read_list(folder)
    foreign = [name for name in names if name not in earlier and (folder / name).exists()]
    if foreign:
        raise UserError(
            f"{folder} holds {len(foreign)} files that are not listed as this command's own and will not be "
            f"replaced, {foreign[0]} for one; move them away or choose another --output_dir"
        )
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    _write_list(folder, earlier.union(names))
    return earlier.difference(names)


def release_files(folder: Path, stale: set[str], names: Sequence[str]) -> None:
    """Remove the stale files of an earlier evaluation, and the folders that they leave empty."""
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    for name in stale.union(names):  # what a killed evaluation had in hand
        part_of(folder / name).unlink(missing_ok=True)
    for parent in {(folder / name).parent for name in stale}:
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    _write_list(folder, names)


def _read_list(folder: Path) -> set[str]:
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


def _write_list(folder: Path, names: Iterable[str]) -> None:
    write_text_atomically(folder / FILE_LIST, json.dumps(sorted(names), indent=0) + "\n")
