"""What becomes of image files that cannot be read: all named at once, or passed over and listed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from efficientad.images import UnreadableImageError
from efficientad.system.errors import list_some
from efficientad.system.files import csv_cell, write_csv
from efficientad.system.parallel import parallel_map

SKIPPED_FILE = "skipped_files.csv"


def find_unreadable(
    paths: Sequence[Path], check: Callable[[Path], object], workers: int, quiet: bool = False
) -> list[UnreadableImageError]:
    """The files on which `check` raises UnreadableImageError, in their order.

    Args:
        check: images.check_file, which is quick, or images.read_image, which sees all damage.
        workers: threads that check.
        quiet: without a progress bar.
    """

    def problem(path: Path) -> UnreadableImageError | None:
        try:
            check(path)
        except UnreadableImageError as error:
            return error
        return None

    problems = parallel_map(problem, paths, workers)
    return [error for error in tqdm(problems, "Checking images", len(paths), unit="image", disable=quiet) if error]


def write_skipped(folder: Path, skipped: Sequence[UnreadableImageError]) -> None:
    """skipped_files.csv: the path of each file and the reason."""
    write_csv(folder / SKIPPED_FILE, ["path", "reason"], ([error.name, error.reason] for error in skipped))


def were_skipped(folder: Path, paths: Sequence[Path]) -> set[str]:
    """Those of the paths that skipped_files.csv in the folder names; none where there is no such file."""
    file = folder / SKIPPED_FILE
    if not file.is_file():
        return set()
    with file.open(newline="", encoding="utf-8") as opened:
        named = {row["path"] for row in csv.DictReader(opened)}
    return {str(path) for path in paths if csv_cell(path) in named}


def describe_skipped(folder: Path, skipped: Sequence[UnreadableImageError]) -> str:
    """A sentence with the first of them, for the terminal."""
    if not skipped:
        return "No file had to be skipped"
    count = f"{len(skipped)} files that cannot be read" if len(skipped) > 1 else "1 file that cannot be read"
    names = list_some([str(error) for error in skipped])
    return f"Skipped {count}, see {folder / SKIPPED_FILE}:{names}"
