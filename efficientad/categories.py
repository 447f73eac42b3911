"""Every category of a data set, one after another or spread over ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from efficientad.distributed import alone, gather_objects, rank, ranks
from efficientad.errors import UserError, is_out_of_memory

_Result = TypeVar("_Result")


def each_category(names: Sequence[str], work: Callable[[str], _Result]) -> dict[str, _Result]:
    """What `work` returns for each category; of several ranks each takes its share of them, and all get all.

    A category that fails does not stop the others: its error is printed, and it has no result.

    Raises:
        UserError: all failed.
    """
    results: dict[str, _Result] = {}
    own = list(names)[rank() :: ranks()]
    with alone():
        for name in own:
            try:
                results[name] = work(name)
            except Exception as error:
                if not isinstance(error, (UserError, OSError)) and not is_out_of_memory(error):
                    raise  # a bug
                print(f"{name} failed: {error}", file=sys.stderr, flush=True)
    everywhere = {name: result for part in gather_objects(results) for name, result in part.items()}
    if not everywhere:
        raise UserError(f"all {len(names)} categories failed; their messages stand above")
    return {name: everywhere[name] for name in names if name in everywhere}


def raise_if_failed(names: Sequence[str], results: dict[str, object]) -> None:
    """Raise a UserError that names the categories without results."""
    failed = [name for name in names if name not in results]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(names)} categories failed: {', '.join(failed)}; their messages stand above"
        )
