"""One run at a time in a folder, and how a signal asks it to stop."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from efficientad.system.errors import UserError
from efficientad.system.files import open_not_followed

LOCK_FILE = ".lock"
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some network file systems
_HOLDER_START = 1  # in a lock file: Windows lets nobody read the first byte, which is the one that is locked
_HOLDER = re.compile(rb"process [0-9]+ on .+, since [0-9]{4}-")


@contextmanager
def lock_folder(folder: Path, flag: str = "--output_dir") -> Iterator[None]:
    """Keep other runs out of `folder` during the block; the folder is made if it is missing.

    Folders that were made and are empty at the end are removed again.

    Args:
        flag: what the user chose the folder with.

    Raises:
        UserError: another run has the folder, and the message names its process and host; or a file of the user's
            has the name of the lock file, or of the folder or one that it lies in.
        OSError: the folder cannot be made or written to.
    """
    with _existing(folder, flag), _lock(folder / LOCK_FILE, folder, flag):
        yield


@contextmanager
def lock_output(output: Path, flag: str) -> Iterator[None]:
    """Keep other runs from writing `output`, a file or a folder that need not exist; otherwise as lock_folder."""
    with _existing(output.parent, flag), _lock(output.parent / f".{output.name}{LOCK_FILE}", output, flag):
        yield


@contextmanager
def _existing(folder: Path, flag: str) -> Iterator[None]:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        kind = "a file" if there.exists() else "a link to nothing"
        raise UserError(f"{there} is {kind}, not a folder; choose another {flag}") from None
    try:
        yield
    finally:
        for made in missing:
            try:
                made.rmdir()
            except OSError:  # not empty, or gone
                break


@contextmanager
def _lock(path: Path, output: Path, flag: str) -> Iterator[None]:
    """The system releases the lock with the process, however that ends: a lock file left behind locks nothing."""
    is_others = _is_others_file(path, flag)
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{output} is in use by another run ({_read_holder(path) or 'which has just begun'}); wait for it, "
            f"stop it, or choose another {flag}"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        if not is_others:
            path.unlink(missing_ok=True)
        yield  # without a lock
        return
    try:
        _write_holder(path, f"process {os.getpid()} on {socket.gethostname()}, since {_now()}\n")
        yield
    finally:
        if is_others:
            _write_holder(path, "")
        else:
            with suppress(PermissionError):  # on Windows, where filelock removes it after the release
                path.unlink(missing_ok=True)  # before the release: whoever comes next must make a new one
        lock.release()


def _is_others_file(path: Path, flag: str) -> bool:
    """Whether an empty file is there, which may be anybody's, so that it stays.

    Raises:
        UserError: there is something else than an empty file or one that a run has left.
    """
    advice = f"is in the way of this run's lock; move it away or choose another {flag}"
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UserError(f"{path} is a link or no file, which {advice}")
        with open(path, "rb", opener=open_not_followed) as file:
            content = file.read(200)  # at once: another run may be writing it
    except OSError:  # not there, or being read is refused as locking it will be
        return False
    if content and not _HOLDER.match(content[_HOLDER_START:]):
        raise UserError(f"{path}, which no run has left, {advice}")
    return not content


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _write_holder(path: Path, text: str) -> None:
    with open(path, "r+b", opener=open_not_followed) as file:
        file.truncate(0)
        if text:
            file.seek(_HOLDER_START)
            file.write(text.encode())


def _read_holder(path: Path) -> str:
    try:
        with open(path, "rb", opener=open_not_followed) as file:
            file.seek(_HOLDER_START)
            return file.readline(200).decode(errors="replace").strip()
    except OSError:  # just removed
        return ""


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """A new hidden folder beside `output`, removed after the block; first those that killed runs have left.

    The caller holds the lock of lock_output.
    """
    _remove_leftovers(output)
    folder = output.with_name(f".{output.name}.unfinished-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replaced_name(output: Path) -> Path:
    """The name that a folder has while another takes its place."""
    return output.with_name(f".{output.name}.replaced-{os.getpid()}")


def _remove_leftovers(output: Path) -> None:
    """Remove what killed runs have left beside `output`, but for a replaced folder that nothing has replaced."""
    kinds = "unfinished|replaced" if output.exists() else "unfinished"
    name = re.compile(rf"\.{re.escape(output.name)}\.(?:{kinds})-([0-9]{{1,9}})")
    for path in output.parent.iterdir():
        found = name.fullmatch(path.name)
        if found and _is_gone(int(found[1])) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _is_gone(process: int) -> bool:
    """Whether there is no such process, apart from this one, which has only begun."""
    if process == os.getpid():
        return True
    if os.name == "nt":  # where os.kill ends it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        return False
    return False


STOP_NOTICE = "Stopping after this step; press Ctrl-C again to stop at once"
ECHO_SECONDS = 2  # torchrun forwards to its processes signals that they may already have had


@contextmanager
def stop_requests(notice: str) -> Iterator[Callable[[], bool]]:
    """Within the block a first SIGINT or SIGTERM only asks to stop; a second one raises KeyboardInterrupt at once.

    Below torchrun a second one counts only after ECHO_SECONDS.

    Args:
        notice: printed at the first one.

    Yields:
        a function that returns whether a stop was requested.
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
