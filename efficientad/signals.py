"""SIGINT and SIGTERM as a request: what is under way is finished first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_NOTICE = "Stopping after this step; a second time stops at once"


@contextmanager
def stop_requests(notice: str) -> Iterator[Callable[[], bool]]:
    """Within the block a first SIGINT or SIGTERM only asks to stop; a second one raises KeyboardInterrupt at once.

    Args:
        notice: printed at the first one.

    Yields:
        a function that tells whether it was asked to stop.
    """
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        if notice:
            os.write(2, f"\n{notice}\n".encode())  # print might be in the middle of a line

    if threading.current_thread() is not threading.main_thread():  # only the main one may handle signals
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
