"""SIGINT and SIGTERM as a request: what is under way is finished first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_NOTICE = "Stopping after this step; a second time stops at once"
ECHO_SECONDS = 2  # torchrun passes on to its processes what the system may have told them already


@contextmanager
def stop_requests(notice: str) -> Iterator[Callable[[], bool]]:
    """Within the block a first SIGINT or SIGTERM only asks to stop; a second one raises KeyboardInterrupt at once.

    Below torchrun a second one counts only after ECHO_SECONDS.

    Args:
        notice: printed at the first one.

    Yields:
        a function that tells whether it was asked to stop.
    """
    asked: list[float] = []  # when
    echo = ECHO_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0

    def ask(number: int, frame: object) -> None:
        if asked:
            if time.monotonic() - asked[0] < echo:
                return
            raise KeyboardInterrupt
        asked.append(time.monotonic())
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
