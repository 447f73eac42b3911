"""Evaluate a trained EfficientAD detector: scores, anomaly maps, metrics per class, probably wrong labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from efficientad.system import arguments, dataset_arguments
from efficientad.system.args_file import Parser
from efficientad.system.errors import UserError, run_command
from efficientad.system.startup import import_torch
from efficientad.training.options import NOTED

if TYPE_CHECKING:
    from efficientad.data.choices import Choice
    from efficientad.evaluation.report import Evaluation


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="eval.py", description=__doc__, noted=NOTED, leave_out=lambda settings: ["batch_size"])
    dataset_arguments.add_dataset_arguments(parser, several=True)
    group = parser.add_argument_group("model")
    group.add_argument(
        "-w",
        "--weights_dir",
        type=arguments.training_folder,
        metavar="PATH",
        help="folder with model.pt, or with the six files that other EfficientAD scripts write (teacher_final.pth, "
        "...), or an exported file (default: where train.py puts the model for this --output_dir and data set)",
    )
    arguments.add_model_size_argument(
        group, "refuse a model of another size; the model knows its own (default: not checked)", None
    )
    group = parser.add_argument_group("evaluation")
    decision = group.add_mutually_exclusive_group()
    arguments.add_threshold_argument(decision)
    decision.add_argument(
        "--target_recall",
        type=arguments.ratio,
        metavar="X",
        help="in place of --threshold: the highest that finds at least this share of the defective test images. It "
        "is chosen with their labels, so new images will do worse; the colours of .jpg maps are those of the "
        "model's own threshold (default: none)",
    )
    group.add_argument(
        "--thresholds",
        type=arguments.finite_float,
        nargs="+",
        default=[],
        metavar="X",
        help="also print the tables for each of these (default: none)",
    )
    arguments.add_scoring_batch_size_argument(group)
    arguments.add_max_megapixels_argument(group)
    arguments.add_machine_arguments(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "-f",
        "--map_format",
        choices=("tiff", "jpg", "none"),
        default="tiff",
        help="tiff: float32 maps at each image's size; jpg: the image beside its heat map; none: no maps "
        "(default: %(default)s)",
    )
    arguments.add_on_error_argument(group)
    arguments.add_output_dir_argument(group, "results go to DIR/anomaly_maps/<data set>")
    group.add_argument(
        "--no_report",
        action="store_true",
        help="do not write report.html, the page with pictures, charts and an adjustable threshold",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing, so that --help and flag errors are instant.
    import_torch()
    from efficientad.data.choices import CUSTOM_SETS, Choice, choose_several
    from efficientad.data.formats import limit_megapixels
    from efficientad.system.distributed import each_dataset, process_group

    limit_megapixels(args.max_megapixels)
    with process_group(args.device):
        paths = dataset_arguments.dataset_paths(args)
        several = choose_several(args.dataset, paths, args.subdataset)
        if not several:
            evaluate_choice(args, Choice(args.dataset, paths[0], args.subdataset))
            return
        if args.weights_dir:
            raise UserError("--weights_dir names one detector, but each of several sets has its own; leave it out")
        folder = args.output_dir / "anomaly_maps" / (CUSTOM_SETS if args.dataset == "custom" else args.dataset)
        each_dataset(
            list(several),
            lambda name: evaluate_choice(args, several[name]),
            lambda results: print_summary(folder, results),
        )


def print_summary(folder: Path, evaluations: dict) -> None:
    """Print the table of all data sets, and write it to the folder."""
    from efficientad.evaluation.summary import CSV_FILE, JSON_FILE, format_summary, write_summary

    write_summary(folder, evaluations)
    print(f"\n{format_summary(evaluations)}\n")
    print(f"The same as files: {folder / CSV_FILE} and {JSON_FILE}")


def evaluate_choice(args: argparse.Namespace, choice: Choice) -> Evaluation | None:
    """Evaluate one detector on its data set; returns the evaluation on the first rank."""
    from efficientad.evaluation.run import EvaluationOptions, evaluate_detector
    from efficientad.system.distributed import say
    from efficientad.system.files import require_no_links

    options = arguments.read_options(EvaluationOptions, args)
    dataset = choice.open()
    for line in dataset_arguments.describe_unused_category(args):
        say(line)
    weights_dir = args.weights_dir or args.output_dir / "trainings" / dataset.name
    below = f"anomaly_maps/{dataset.name}"
    require_no_links(args.output_dir, [below])
    folder = args.output_dir / below
    own = args if choice.name else dataset_arguments.with_dataset(args, choice.path, choice.category)
    return evaluate_detector(dataset, weights_dir, folder, options, arguments.command_line(get_parser(), own))


if __name__ == "__main__":
    run_command(main, get_parser())
