"""A run in its folder: one at a time, and asked to stop by a signal."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from efficientad.system.errors import UserError

LOCK_FILE = ".lock"
_CLOSE_FIRST = os.name == "nt"  # Windows removes no open file, and this one locks nothing there
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some network file systems


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` for the time of the block; the folder is made if it is missing.

    The system releases the lock with the process, however that ends: a lock file that was left behind locks
    nothing. A folder that was made and is empty at the end is removed again.

    Raises:
        UserError: another run has the folder; the message names its process and host.
        OSError: the folder cannot be made or written to.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    try:
        descriptor = _acquire(path)
        try:
            yield
        finally:
            if _CLOSE_FIRST:
                os.close(descriptor)
                with suppress(OSError):  # another run has it open
                    path.unlink(missing_ok=True)
            else:
                path.unlink(missing_ok=True)  # before it is released: whoever gets it next must make a new one
                os.close(descriptor)
    finally:
        for made in missing:
            try:
                made.rmdir()
            except OSError:  # not empty, or gone
                break


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{path.parent} is in use by another run ({holder or 'which has just begun'}); wait for it, "
                "stop it, or choose another --output_dir"
            ) from None
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its owner removed it between our opening and our locking it
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {started}\n".encode())
    return descriptor


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: without locks
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
