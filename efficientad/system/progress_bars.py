"""Progress bars, for people alone: a log file gets none."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(
    iterable: Iterable | None = None,
    desc: str | None = None,
    total: int | None = None,
    *,
    unit: str = "it",
    initial: int = 0,
    disable: bool = False,
) -> tqdm:
    """A tqdm bar that is silent where the error output is no terminal, but a file or a pipe.

    Args:
        disable: silent everywhere.
    """
    return tqdm(iterable, desc, total, unit=unit, initial=initial, disable=disable or None)
