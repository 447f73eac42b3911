"""The flags that several commands share. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

BIT_DEPTHS = ("auto", "8", "10", "12", "14", "16", "float255", "float1")  # as in data.depth
MODEL_SIZES = ("small", "medium")
_Options = TypeVar("_Options")


def _number(kind: type, expected: str, fits: Callable[[float], bool]) -> Callable[[str], Any]:
    """A type for argparse: numbers for which `fits` holds; the error for other text says what is expected."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            value = kind(text)
            if math.isfinite(value) and fits(value):
                return value
        raise argparse.ArgumentTypeError(f"expects {expected}, not {text!r}")

    return parse


positive_int = _number(int, "a whole number >= 1", lambda value: value >= 1)
non_negative_int = _number(int, "a whole number >= 0", lambda value: value >= 0)
seed = _number(int, f"a whole number >= 0 and < {2**32}", lambda value: 0 <= value < 2**32)
finite_float = _number(float, "a number", lambda value: True)
non_negative_float = _number(float, "a number >= 0", lambda value: value >= 0)
positive_float = _number(float, "a number > 0", lambda value: value > 0)
ratio = _number(float, "a number > 0 and <= 1", lambda value: 0 < value <= 1)
factor = _number(float, "a number >= 1", lambda value: value >= 1)
side = _number(int, "a multiple of 4 from 64 on", lambda value: value >= 64 and value % 4 == 0)
rate = _number(float, "a number > 0 and < 1", lambda value: 0 < value < 1)
_threshold = _number(float, "a number or auto", lambda value: True)


def threshold(text: str) -> float | None:
    """A number, or None for "auto"."""
    return None if text == "auto" else _threshold(text)


def device(text: str) -> str:
    """auto, cpu, cuda, mps, or one certain GPU as in cuda:1."""
    if not re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"expects auto, cpu, cuda, a GPU as in cuda:1, or mps, not {text!r}")
    return text


def usable_cores() -> int:
    """The cores that this process may run on, which may be fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_options(kind: type[_Options], args: argparse.Namespace, **given: object) -> _Options:
    """The dataclass `kind` whose fields are the flags of these names, or those given."""
    names = {field.name for field in fields(kind)}.difference(given)
    return kind(**{name: getattr(args, name) for name in names}, **given)


def name(text: str) -> str:
    """The name of a file or folder; not the empty word that an unset shell variable leaves, as for this folder."""
    if not text:
        raise argparse.ArgumentTypeError("expects a name, not an empty word; for this folder write .")
    return text


def named_path(text: str) -> Path:
    """A path; see name."""
    return Path(name(text))


def training_folder(path: str | Path) -> Path:
    """The folder of a training, of which `path` may be the model.pt; any other path as it is."""
    path = named_path(str(path))
    return path.parent if path.name == "model.pt" and path.is_file() else path


def command_line(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The shortest command line that gives these arguments: every flag whose value is not the default."""
    words, program = [], parser.prog if parser.prog.startswith("python ") else f"python {parser.prog}"
    for action in parser._actions:
        if not hasattr(args, action.dest):  # --help
            continue
        value, default = getattr(args, action.dest), action.default
        if value == (parser._get_value(action, default) if isinstance(default, str) else default):
            continue
        words.append(max(action.option_strings, key=len))
        if action.nargs != 0:
            words += map(str, value if isinstance(value, (list, tuple)) else [value])
    return f"{program} {shlex.join(words)}".rstrip()


def add_machine_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--device, --precision and --num_workers; returns the group, for more of its kind."""
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--device",
        type=device,
        default="auto",
        metavar="NAME",
        help="where to compute: cpu, cuda, one of several GPUs as in cuda:1, or mps, Apple's GPUs; auto: on a CUDA "
        "GPU if there is one, else on the CPU (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the arithmetic; auto: bf16 where the hardware has it, else fp32 (default: %(default)s)",
    )
    add_workers_argument(group)
    return group


def add_threshold_argument(group: argparse._ArgumentGroup) -> None:
    """-T, None for "auto"."""
    group.add_argument(
        "-T",
        "--threshold",
        type=threshold,
        default="auto",
        metavar="X",
        help="an image is anomalous when its score is above it; auto: the model's own, calibrated by train.py on "
        "held-out good images, or 80 if it has none. The scale: 0.5 %% of the pixels of "
        "held-out good images exceed 25.5 in a map (default: %(default)s)",
    )


def add_batch_size_argument(group: argparse._ArgumentGroup, help: str, default: int | None = None) -> None:
    """-b; `help` names the default."""
    group.add_argument("-b", "--batch_size", type=positive_int, default=default, metavar="N", help=help)


def add_scoring_batch_size_argument(group: argparse._ArgumentGroup) -> None:
    """-b of a command that only scores images."""
    add_batch_size_argument(
        group, "most images at once; changes speed and memory, not results (default: %(default)s)", 16
    )


def add_global_weight_argument(group: argparse._ArgumentGroup, default: float) -> None:
    group.add_argument(
        "--global_weight",
        type=non_negative_float,
        metavar="X",
        help="how much it counts what there is in each row and column of the whole image, beside how its patches "
        "look; 0: nothing. 2.5 where parts may be missing, doubled or exchanged (default: "
        f"{default:g} with --recipe fast, 0 with paper)",
    )


def add_target_fpr_argument(group: argparse._ArgumentGroup) -> None:
    """--target_fpr."""
    group.add_argument(
        "--target_fpr",
        type=rate,
        default=0.01,
        metavar="X",
        help="the share of good images above the model's threshold (default: %(default)s)",
    )


def add_model_size_argument(group: argparse._ArgumentGroup, help: str, default: str | None = "small") -> None:
    """-m; `help` names the default."""
    group.add_argument("-m", "--model_size", choices=MODEL_SIZES, default=default, help=help)


def add_lr_argument(group: argparse._ArgumentGroup, help: str, default: float | None = None) -> None:
    """--lr; `help` names the default."""
    group.add_argument("--lr", type=positive_float, default=default, metavar="X", help=help)


def add_weight_decay_argument(group: argparse._ArgumentGroup, help: str, default: float | None = None) -> None:
    """--weight_decay; `help` names the default."""
    group.add_argument("--weight_decay", type=non_negative_float, default=default, metavar="X", help=help)


def add_seed_argument(group: argparse._ArgumentGroup, decides: str) -> None:
    """--seed; `decides` is what depends on it."""
    group.add_argument(
        "--seed", type=seed, default=42, metavar="N", help=f"decides {decides} (default: %(default)s)"
    )


def add_output_dir_argument(group: argparse._ArgumentGroup, help: str, default: str = "output/1") -> None:
    """-o, a folder; its default is added to `help`."""
    group.add_argument(
        "-o",
        "--output_dir",
        type=named_path,
        default=Path(default),
        metavar="DIR",
        help=f"{help} (default: %(default)s)",
    )


def add_output_file_argument(group: argparse._ArgumentGroup, help: str, required: bool = False) -> None:
    """-o, a file."""
    group.add_argument("-o", "--output", type=named_path, required=required, metavar="FILE", help=help)


def add_workers_argument(group: argparse._ArgumentGroup) -> None:
    """--num_workers."""
    group.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=min(8, usable_cores()),
        metavar="N",
        help="threads that read images; 0: none beside the main one (default: %(default)s here)",
    )


def add_max_megapixels_argument(group: argparse._ArgumentGroup) -> None:
    """--max_megapixels."""
    group.add_argument(
        "--max_megapixels",
        type=positive_float,
        default=200.0,
        metavar="X",
        help="largest image that is decoded, in millions of pixels; larger ones count as unreadable, as a file "
        "of a few kB can claim to be one that fills the memory (default: %(default)g)",
    )


def add_on_error_argument(group: argparse._ArgumentGroup) -> None:
    """--on_error."""
    group.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="unreadable images; stop: report all of them and end; skip: go on without them, and list them at the "
        "end and in skipped_files.csv (default: %(default)s)",
    )


def add_cache_argument(group: argparse._ArgumentGroup, default: float, keeps: str) -> None:
    """--cache_gb."""
    group.add_argument(
        "--cache_gb",
        type=non_negative_float,
        default=default,
        metavar="X",
        help=f"memory of each process, in GB, for {keeps}; what does not fit is computed again, with the same "
        "results (default: %(default)s)",
    )
