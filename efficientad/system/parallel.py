"""A parallel map() for work that waits for the disk or decodes images."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def parallel_map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, more_ahead: int = 0
) -> Iterator[_Result]:
    """map() with `workers` threads, in order, never more than a few results ahead of the consumer.

    0 workers means no threads. `items` may be endless. An exception raised by `function` is raised in its turn.

    Args:
        more_ahead: items taken ahead besides two for each thread. Where they come in batches, a batch: the threads
            then work on all of it while the next one is made.
    """
    if workers == 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque(pool.submit(function, item) for item in itertools.islice(remaining, 2 * workers + more_ahead))
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
                yield result
        finally:  # the consumer may stop early
            for future in ahead:
                future.cancel()
