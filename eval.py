"""Evaluate a trained EfficientAD detector: scores, anomaly maps, metrics per class, probably wrong labels."""

import argparse
from pathlib import Path

from efficientad.system import arguments
from efficientad.system.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eval.py", description=__doc__)
    arguments.add_dataset_arguments(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "-w",
        "--weights_dir",
        type=Path,
        metavar="PATH",
        help="folder with model.pt, or with the six files that other EfficientAD scripts write (teacher_final.pth, "
        "...), or an exported file (default: where train.py puts the model for this --output_dir and data set)",
    )
    group.add_argument(
        "-m",
        "--model_size",
        choices=arguments.MODEL_SIZES,
        help="only to make sure; the model knows its size (default: not checked)",
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
    arguments.add_batch_argument(group)
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
    group.add_argument(
        "-o",
        "--output_dir",
        type=Path,
        default=Path("output/1"),
        metavar="DIR",
        help="results go to DIR/anomaly_maps/<data set>/test (default: %(default)s)",
    )
    group.add_argument(
        "--no_report",
        action="store_true",
        help="do not write report.html, the page with pictures, charts and an adjustable threshold",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing, so that --help and flag errors are instant.
    from efficientad.data.datasets import ALL_CATEGORIES, find_categories
    from efficientad.evaluation.summary import CSV_FILE, JSON_FILE, format_summary, write_summary
    from efficientad.system.distributed import each_category, process_group, raise_if_failed

    with process_group(args.device) as (rank, _):
        if args.subdataset != ALL_CATEGORIES or args.dataset == "custom":
            evaluate_category(args, args.subdataset)
            return
        if args.weights_dir:
            raise UserError("--weights_dir names one detector, but --subdataset all has one each; leave it out")
        names = find_categories(args.dataset, arguments.dataset_path(args))
        evaluations = each_category(names, lambda name: evaluate_category(args, name))
        if rank == 0:
            folder = args.output_dir / "anomaly_maps" / args.dataset
            write_summary(folder, evaluations)
            print(f"\n{format_summary(evaluations)}\n")
            print(f"The same as files: {folder / CSV_FILE} and {JSON_FILE}")
            raise_if_failed(names, evaluations)


def evaluate_category(args: argparse.Namespace, category: str):
    """Evaluate one detector on its category; returns the report.Evaluation on the first rank."""
    from dataclasses import fields

    from efficientad.data.datasets import open_dataset
    from efficientad.evaluation.run import EvaluationOptions, evaluate_detector

    options = EvaluationOptions(**{field.name: getattr(args, field.name) for field in fields(EvaluationOptions)})
    dataset = open_dataset(args.dataset, arguments.dataset_path(args), category)
    weights_dir = args.weights_dir or args.output_dir / "trainings" / dataset.name
    folder = args.output_dir / "anomaly_maps" / dataset.name / "test"
    own = argparse.Namespace(**{**vars(args), "subdataset": category})
    return evaluate_detector(dataset, weights_dir, folder, options, arguments.command_line(get_parser(), own))


if __name__ == "__main__":
    run_command(main, get_parser())
