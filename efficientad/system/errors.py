"""Errors that a user can act on, and how they end a command."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

_LISTED = 10
_NEED_MEMORY = ("batch_size", "cache_gb", "num_workers")  # flags
# In messages of the CPU's allocator, of CUDA and of its libraries, for which torch has no class
_SHORTAGES = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


class UserError(Exception):
    """Something outside the program is wrong: a path, a flag, a file.

    The message is one sentence for the user: what is wrong, which file, what to do.
    """


class Interrupted(KeyboardInterrupt):
    """Ended by a signal; the message is one sentence on how to continue."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU ran out of memory, or the machine did and the system reports it."""
    # torch's class by its name: importing torch takes seconds, and prepare_dataset.py does not need it
    names = (kind.__name__ for kind in type(error).__mro__)
    reported = isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGES)
    return isinstance(error, MemoryError) or "OutOfMemoryError" in names or reported


def require_folder(path: Path, advice: str) -> None:
    """Raise a UserError with the advice unless `path` is a folder."""
    if not path.is_dir():
        raise UserError(f"{path} {'is not a folder' if path.exists() else 'does not exist'}; {advice}")


def count_of(number: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def list_files(problems: Sequence[str]) -> str:
    """The problems, one per line, indented; line breaks and the like in file names are escaped."""
    return "".join(f"\n  {printable(problem)}" for problem in problems)


def printable(text: str) -> str:
    """The text with line breaks, control characters and broken Unicode escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def list_some(problems: Sequence[str], where: str = "") -> str:
    """The first ten problems, one per line, indented, and how many more there are.

    Args:
        where: how to see these.
    """
    more = len(problems) - _LISTED
    return list_files([*problems[:_LISTED], *([f"... and {more} more{where}"] if more > 0 else [])])


def run_command(main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line, run main(args), and exit: what main returns or 0, 2 any error, 130 interrupted.

    A bug exits with 1 and its traceback, as Python itself does. An error is one line: a wrong flag does not print
    the usage.
    """
    parser.error = lambda message: sys.exit(_fail(parser, f"{message}; see --help", 2))
    args = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be valid Unicode
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file; our errors do
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unfinished files are removed, as on Ctrl-C
    try:
        status = main(args)
    except UserError as error:
        status = _fail(parser, str(error), 2)
    except KeyboardInterrupt as error:
        status = _fail(parser, str(error) or "interrupted", 130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # a full disk or a forbidden folder
            where = f": {Path(error.filename)}" if isinstance(error.filename, str) else ""
            status = _fail(parser, f"{error.strerror}{where}", 2)
        elif is_out_of_memory(error):
            flags = [f"--{name}" for name in _NEED_MEMORY if name in vars(args)]
            advice = f"try a smaller {' or '.join(flags)}" if flags else "close other programs"
            reason = re.split(r"\. |\n", str(error))[0] or "RAM"
            status = _fail(parser, f"not enough memory ({reason}); {advice}", 2)
        elif isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("efficientad"):
            advice = "activate the environment that has it, or pip install -r requirements.txt"
            status = _fail(parser, f"{error.name} is not installed for {sys.executable}; {advice}", 2)
        else:  # a bug
            traceback.print_exc()
            status = 1
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of torch's process groups that outlive their objects abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    if status:
        sys.exit(status)


def _fail(parser: argparse.ArgumentParser, message: str, status: int) -> int:
    lines = "\n".join(map(printable, message.split("\n")))  # a file name may contain terminal control codes
    rank = os.environ.get("RANK", "0")  # set by torchrun
    if rank == "0" or status != 130:  # all processes are interrupted together
        print(f"{parser.prog}: error: {f'(process {rank}) ' if rank != '0' else ''}{lines}", file=sys.stderr)
    return status
