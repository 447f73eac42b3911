"""Train an EfficientAD anomaly detector on images of good parts (arXiv 2303.14535)."""

import argparse
import shlex
import time
from pathlib import Path

from efficientad.system import arguments
from efficientad.system.errors import run_command
from efficientad.training.options import AUTO, DEFAULT_STEPS, DRAWN, FAST_BELOW, MEMORY_PATCHES, NONE, RECIPES


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=__doc__,
        epilog="Annotations are not needed. eval.py evaluates the result. On several GPUs: "
        "torchrun --nproc_per_node=N train.py ...",
    )
    arguments.add_dataset_arguments(parser)
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "-e",
        "--epochs",
        type=arguments.positive_int,
        metavar="N",
        help="of student and autoencoder: passes over the training images",
    )
    length.add_argument(
        "--train_steps",
        type=arguments.positive_int,
        metavar="N",
        help=f"optimizer steps, instead of --epochs (default of --recipe paper: {DEFAULT_STEPS}, as published)",
    )
    group.add_argument(
        "-b",
        "--batch_size",
        type=arguments.positive_int,
        default=1,
        metavar="N",
        help="images per step (default: %(default)s)",
    )
    group.add_argument(
        "-m",
        "--model_size",
        choices=arguments.MODEL_SIZES,
        default="small",
        help="small: EfficientAD-S; medium: EfficientAD-M, 3 times the work (default: %(default)s)",
    )
    group.add_argument(
        "-w",
        "--weights",
        type=Path,
        metavar="FILE",
        help="pretrained teacher, a state_dict (default: the teacher of that size in efficientad/weights)",
    )
    group.add_argument(
        "-i",
        "--imagenet_train_path",
        type=Path,
        nargs="+",
        metavar="PATH",
        help=f"folders or tar files of natural images for the penalty term; {DRAWN}: images drawn by a program; "
        f"{NONE}: no penalty (default: {NONE})",
    )
    group.add_argument(
        "--recipe",
        choices=(AUTO, *RECIPES),
        default=AUTO,
        help="fast: no steps at all, a memory of what the teacher says of good parts; paper: student and "
        f"autoencoder as published, which want tens of thousands of steps; {AUTO}: paper if at least {FAST_BELOW} "
        "steps are asked for, else fast (default: %(default)s)",
    )
    group.add_argument(
        "--memory",
        type=arguments.non_negative_int,
        metavar="PATCHES",
        help="size of the memory; 0: none; with --recipe paper it stands beside the networks (default: "
        f"{MEMORY_PATCHES} with --recipe fast, 0 with paper)",
    )
    group.add_argument(
        "--lr",
        type=arguments.positive_float,
        default=1e-4,
        metavar="X",
        help="learning rate of Adam, a tenth of it for the last 5%% of the steps (default: %(default)s)",
    )
    group.add_argument(
        "--weight_decay",
        type=arguments.non_negative_float,
        default=1e-5,
        metavar="X",
        help="of Adam; 0: off (default: %(default)s)",
    )
    group.add_argument(
        "--target_fpr",
        type=arguments.rate,
        default=0.01,
        metavar="X",
        help="share of good images above the threshold that eval.py will take (default: %(default)s)",
    )
    group.add_argument(
        "--evaluate_every",
        type=arguments.positive_int,
        metavar="STEPS",
        help="every so many steps, and after the last one, tell the AUROC on the test images, in log.csv and "
        "training.png, too; it looks at their labels: for studying a training, not for choosing when to stop. The "
        "model does not depend on it (default: never)",
    )
    group.add_argument(
        "--seed",
        type=arguments.seed,
        default=42,
        metavar="N",
        help="of the split, the initial weights, the order and the augmentation (default: %(default)s)",
    )
    group = arguments.add_machine_arguments(parser)
    arguments.add_cache_argument(group, 2.0, "decoded images and the teacher's answers")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="the same result for the same seed on a CUDA GPU, too, slower; on a CPU it always is (default: no)",
    )
    group.add_argument(
        "--no_cuda_graph",
        action="store_true",
        help="launch every operation of a step from Python, if a driver cannot replay them (default: replay)",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output_dir",
        type=Path,
        default=Path("output/1"),
        metavar="DIR",
        help="the model goes to DIR/trainings/<data set> (default: %(default)s)",
    )
    group.add_argument(
        "--checkpoint_minutes",
        type=arguments.positive_float,
        default=5.0,
        metavar="X",
        help="how often the state of the training is saved there for --resume (default: %(default)s)",
    )
    arguments.add_on_error_argument(group)
    existing = group.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue an interrupted training there, with the same flags and data"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="replace a finished model there (default: refuse)"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    from tabulate import tabulate

    from efficientad.data.datasets import ALL_CATEGORIES, find_categories
    from efficientad.system.distributed import each_category, process_group, raise_if_failed

    with process_group(args.device) as (rank, _):
        if args.subdataset != ALL_CATEGORIES or args.dataset == "custom":
            train_category(args, args.subdataset)
            return
        names = find_categories(args.dataset, arguments.dataset_path(args))
        trained = each_category(names, lambda name: train_category(args, name))
        if rank == 0:
            rows = [[name, *values] for name, values in trained.items() if values]  # without those finished before
            means = [sum(column) / len(rows) for column in list(zip(*rows, strict=True))[1:]]
            headers = ["Category", "Images", "Steps", "Seconds"]
            print(f"\n{tabulate([*rows, ['mean', *means]], headers=headers, floatfmt='.0f')}\n")
            raise_if_failed(names, trained)
            print(f"Evaluate them with: {evaluation_command(args, ALL_CATEGORIES)}")


def train_category(args: argparse.Namespace, category: str) -> tuple[int, int, float] | None:
    """Train one detector; returns the numbers of images and steps and the seconds, or None if it was finished."""
    from dataclasses import fields

    from efficientad.data.datasets import open_dataset
    from efficientad.detector.checkpoint import MODEL_FILE
    from efficientad.system.distributed import say
    from efficientad.training.options import TrainingOptions
    from efficientad.training.run import train_detector

    start = time.monotonic()
    options = TrainingOptions(**{field.name: getattr(args, field.name) for field in fields(TrainingOptions)})
    dataset = open_dataset(args.dataset, arguments.dataset_path(args), category)
    folder = args.output_dir / "trainings" / dataset.name
    own = argparse.Namespace(**{**vars(args), "subdataset": category})
    command = arguments.command_line(get_parser(), own)
    settings = train_detector(dataset, folder, options, {**vars(own), "command": command})
    if settings is None:
        return None
    seconds = time.monotonic() - start
    say(
        f"Trained in {seconds:.0f} s and wrote {folder / MODEL_FILE}; "
        f"evaluate it with: {evaluation_command(args, category)}"
    )
    return settings["train_images"], settings["steps"], seconds


def evaluation_command(args: argparse.Namespace, category: str) -> str:
    """The eval.py command line for what was trained with these arguments."""
    words = [
        "python",
        "eval.py",
        "--dataset",
        args.dataset,
        f"--{arguments.path_argument(args.dataset)}",
        str(arguments.dataset_path(args)),
    ]
    if args.dataset != "custom":
        words += ["--subdataset", category]
    return shlex.join([*words, "--output_dir", str(args.output_dir)])


if __name__ == "__main__":
    run_command(main, get_parser())
