"""The command-line flags that several commands share. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from pathlib import Path

DATASETS = ("mvtec_ad", "mvtec_loco", "visa", "custom")
MODEL_SIZES = ("small", "medium")


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def non_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:  # streams of random numbers are numbered by multiples of it, below 2**64
        raise argparse.ArgumentTypeError(f"must be 0 or more and below {2**32}, not {text}")
    return value


def finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
    return value


def non_negative_float(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"must be a number of 0 or more, not {text}")
    return value


def positive_float(text: str) -> float:
    value = non_negative_float(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def ratio(text: str) -> float:
    value = positive_float(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


def factor(text: str) -> float:
    value = positive_float(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def rate(text: str) -> float:
    value = positive_float(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, not {text}")
    return value


def threshold(text: str) -> float | None:
    """A number, or None for "auto". Scores are 0 or more, so below 0 every image is anomalous."""
    return None if text == "auto" else finite_float(text)


# argparse names these in "invalid ... value"
positive_int.__name__ = non_negative_int.__name__ = "whole number"
for _kind in (finite_float, non_negative_float, positive_float, ratio, rate):
    _kind.__name__ = "number"
threshold.__name__ = "threshold"


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """-d, -s and the path of each layout."""
    group = parser.add_argument_group("data set")
    group.add_argument(
        "-d",
        "--dataset",
        choices=DATASETS,
        default="mvtec_ad",
        help="layout of the data set (default: %(default)s)",
    )
    group.add_argument(
        "-s",
        "--subdataset",
        default="bottle",
        metavar="NAME",
        help="category of mvtec_ad, mvtec_loco or visa, or all for each of them; a custom set has none "
        "(default: %(default)s)",
    )
    group.add_argument(
        "-c",
        "--custom_dataset_path",
        type=Path,
        default=Path("custom_dataset"),
        metavar="DIR",
        help="folder with train/good and test/<class> (default: ./%(default)s)",
    )
    group.add_argument(
        "--mvtec_ad_path",
        type=Path,
        default=Path("dataset/original/mvtec_anomaly_detection"),
        metavar="DIR",
        help="folder of the MVTec AD categories (default: ./%(default)s)",
    )
    group.add_argument(
        "--mvtec_loco_path",
        type=Path,
        default=Path("mvtec_loco_anomaly_detection"),
        metavar="DIR",
        help="folder of the MVTec LOCO categories (default: ./%(default)s)",
    )
    group.add_argument(
        "--visa_path",
        type=Path,
        default=Path("VisA_pytorch/1cls"),
        metavar="DIR",
        help="folder of the VisA categories, prepared in its one-class layout (default: ./%(default)s)",
    )


def path_argument(layout: str) -> str:
    """The name of the argument that takes a layout's path, as in "mvtec_ad_path"."""
    return "custom_dataset_path" if layout == "custom" else f"{layout}_path"


def dataset_path(args: argparse.Namespace) -> Path:
    """The path given for the chosen layout."""
    return getattr(args, path_argument(args.dataset))


def command_line(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """A script's command line that gives these arguments: every flag whose value is not the default."""
    words = []
    defaults = parser.parse_args([])
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if value == getattr(defaults, action.dest, None):
            continue
        words.append(max(action.option_strings, key=len))
        if action.nargs != 0:
            words += map(str, value if isinstance(value, (list, tuple)) else [value])
    return shlex.join(["python", parser.prog, *words])


def add_machine_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--device, --precision and --num_workers; returns the group, for more of its kind."""
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="where to compute; auto takes a CUDA GPU if there is one (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the networks' arithmetic; auto takes bf16 where the hardware has it and fp32 elsewhere "
        "(default: %(default)s)",
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
        help="an image is called anomalous when its score is above it; auto: the one that train.py calibrated on "
        "held-out good images. Scores start at 0, 25.5 is what 0.5%% of the pixels of good images exceed "
        "(default: %(default)s)",
    )


def add_batch_argument(group: argparse._ArgumentGroup) -> None:
    """-b, of what only scores images."""
    group.add_argument(
        "-b",
        "--batch_size",
        type=positive_int,
        default=16,
        metavar="N",
        help="images at once, at most; changes speed and memory, not results (default: %(default)s)",
    )


def add_workers_argument(group: argparse._ArgumentGroup) -> None:
    """--num_workers."""
    group.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="threads that read images; 0: none beside the main one (default: %(default)s on this machine)",
    )


def add_on_error_argument(group: argparse._ArgumentGroup) -> None:
    """--on_error."""
    group.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="at images that cannot be read; stop: name them all and end; skip: go on as if they were not there, "
        "and list them at the end and in skipped_files.csv (default: %(default)s)",
    )


def add_cache_argument(group: argparse._ArgumentGroup, default: float, keeps: str) -> None:
    """--cache_gb."""
    group.add_argument(
        "--cache_gb",
        type=non_negative_float,
        default=default,
        metavar="X",
        help=f"memory of each process for {keeps}; beyond it they are made again, with the same results "
        "(default: %(default)s)",
    )
