"""Evaluate a trained EfficientAD detector: scores, anomaly maps, metrics per class, probably wrong labels."""

import argparse
from pathlib import Path

from efficientad.system import arguments
from efficientad.system.args_file import Parser
from efficientad.system.errors import UserError, run_command
from efficientad.system.startup import import_torch


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="eval.py", description=__doc__, leave_out=lambda settings: ["batch_size"])
    arguments.add_dataset_arguments(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "-w",
        "--weights_dir",
        type=arguments.named_path,
        metavar="PATH",
        help="folder with model.pt, or with the six files that other EfficientAD scripts write (teacher_final.pth, "
        "...), or an exported file (default: where train.py puts the model for this --output_dir and data set)",
    )
    arguments.add_model_size_argument(
        group, "refuse a model of another size; the model knows its own (default: not checked)", None
    )
    group = parser.add_argument_group("evaluation")
    arguments.add_threshold_argument(group)
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
    arguments.add_output_dir_argument(group, "results go to DIR/anomaly_maps/<data set>/test")
    group.add_argument(
        "--no_report",
        action="store_true",
        help="do not write report.html, the page with pictures, charts and an adjustable threshold",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing, so that --help and flag errors are instant.
    import_torch()
    from efficientad.data.datasets import ALL_CATEGORIES, find_categories
    from efficientad.data.formats import limit_megapixels
    from efficientad.system.distributed import each_category, process_group

    limit_megapixels(args.max_megapixels)
    with process_group(args.device):
        if args.subdataset != ALL_CATEGORIES or args.dataset == "custom":
            evaluate_category(args, args.subdataset)
            return
        if args.weights_dir:
            raise UserError("--weights_dir names one detector, but --subdataset all has one each; leave it out")
        names = find_categories(args.dataset, arguments.dataset_path(args))
        folder = args.output_dir / "anomaly_maps" / args.dataset
        each_category(
            names, lambda name: evaluate_category(args, name), lambda results: print_summary(folder, results)
        )


def print_summary(folder: Path, evaluations: dict) -> None:
    """Print the table of all categories, and write it to the folder."""
    from efficientad.evaluation.summary import CSV_FILE, JSON_FILE, format_summary, write_summary

    write_summary(folder, evaluations)
    print(f"\n{format_summary(evaluations)}\n")
    print(f"The same as files: {folder / CSV_FILE} and {JSON_FILE}")


def evaluate_category(args: argparse.Namespace, category: str):
    """Evaluate one detector on its category; returns the report.Evaluation on the first rank."""
    from efficientad.data.datasets import open_dataset
    from efficientad.evaluation.run import EvaluationOptions, evaluate_detector
    from efficientad.system.distributed import say
    from efficientad.system.files import require_no_links

    options = arguments.read_options(EvaluationOptions, args)
    dataset = open_dataset(args.dataset, arguments.dataset_path(args), category)
    for line in arguments.describe_unused_category(args):
        say(line)
    weights_dir = args.weights_dir or args.output_dir / "trainings" / dataset.name
    below = f"anomaly_maps/{dataset.name}/test"
    require_no_links(args.output_dir, [below])
    folder = args.output_dir / below
    own = argparse.Namespace(**{**vars(args), "subdataset": category})
    return evaluate_detector(dataset, weights_dir, folder, options, arguments.command_line(get_parser(), own))


if __name__ == "__main__":
    run_command(main, get_parser())
