"""The flags that choose data sets, and what they were given. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from efficientad.system.arguments import name, named_path

DATASETS = ("mvtec_ad", "mvtec_loco", "visa", "custom")
_CATEGORY = "bottle"  # of --subdataset, unless another is given


def add_dataset_arguments(
    parser: argparse.ArgumentParser,
    layout: str | None = "mvtec_ad",
    help: str = "layout of the data set (default: %(default)s)",
    several: bool = False,
) -> None:
    """-d, whose default is `layout`, -s and the path of each layout; with `several` -c takes any number of sets."""
    group = parser.add_argument_group("data set")
    group.add_argument(
        "-d",
        "--dataset",
        choices=DATASETS,
        default=layout,
        help=help,
    )
    group.add_argument(
        "-s",
        "--subdataset",
        type=category,
        default=_CATEGORY,
        metavar="NAME",
        help="category of mvtec_ad, mvtec_loco or visa; all: each of them; a custom set has none "
        "(default: %(default)s)",
    )
    for flags, default, help in (
        (
            ["-c", "--custom_dataset_path"],
            "custom_dataset",
            "folder with train/good and test/<class>" + (", or several such folders" if several else ""),
        ),
        (["--mvtec_ad_path"], "dataset/original/mvtec_anomaly_detection", "folder of the MVTec AD categories"),
        (["--mvtec_loco_path"], "mvtec_loco_anomaly_detection", "folder of the MVTec LOCO categories"),
        (
            ["--visa_path"],
            "VisA_pytorch/1cls",
            "folder of the VisA categories, as downloaded or prepared (1cls)",
        ),
    ):
        more = {"nargs": "+"} if several and "-c" in flags else {}
        help = f"{help} (default: ./%(default)s)"
        group.add_argument(*flags, type=named_path, default=Path(default), metavar="DIR", help=help, **more)


def category(text: str) -> str:
    """The name of a category, which is that of a folder; a path could lead anywhere."""
    if name(text) in (".", "..") or set(text) & set("/\\\0"):
        raise argparse.ArgumentTypeError(f"expects the name of a category, not a path as {text!r}")
    return text


def path_argument(layout: str) -> str:
    """The name of the argument that takes a layout's path, as in "mvtec_ad_path"."""
    return "custom_dataset_path" if layout == "custom" else f"{layout}_path"


def dataset_path(args: argparse.Namespace) -> Path:
    """The path given for the chosen layout."""
    return getattr(args, path_argument(args.dataset))


def dataset_paths(args: argparse.Namespace) -> list[Path]:
    """The paths given for the chosen layout; several only of custom sets."""
    paths = dataset_path(args)
    return paths if isinstance(paths, list) else [paths]


def with_dataset(args: argparse.Namespace, path: Path | list[Path], category: str) -> argparse.Namespace:
    """The arguments for one data set of the chosen layout, or for several custom ones."""
    return argparse.Namespace(**{**vars(args), path_argument(args.dataset): path, "subdataset": category})


def describe_unused_category(args: argparse.Namespace) -> list[str]:
    """A line for the user if --subdataset is given for a custom set."""
    if args.dataset != "custom" or args.subdataset == _CATEGORY:
        return []
    return [f"Note: --subdataset {args.subdataset} is not used: a custom set has no categories"]
