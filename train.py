"""Train an EfficientAD anomaly detector on images of good parts (arXiv 2303.14535)."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from efficientad.system import arguments, dataset_arguments
from efficientad.system.args_file import Parser
from efficientad.system.errors import run_command
from efficientad.system.startup import import_torch
from efficientad.training.options import (
    AUTO,
    BATCH_SIZE,
    CHECKPOINT_MINUTES,
    DEFAULT_STEPS,
    DRAWN,
    FAST_BELOW,
    FULL,
    GLOBAL_WEIGHT,
    LR,
    MAX_PIXELS,
    MEMORY_PATCHES,
    MIRROR,
    NATIVE,
    NO_BORDER,
    NONE,
    NOTED,
    RECIPES,
    WEIGHT_DECAY,
    WINDOW,
    settings_of_that_run,
)

if TYPE_CHECKING:
    from efficientad.data.choices import Choice


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train.py",
        noted=NOTED,
        leave_out=settings_of_that_run,
        description=__doc__,
        epilog="Annotations are not needed. 10 % of the good images, or the set's own validation/good, are held "
        "out: they normalize the maps and set the threshold. eval.py evaluates the result. On several GPUs: "
        "torchrun --nproc_per_node=N train.py ...",
    )
    dataset_arguments.add_dataset_arguments(parser, several=True)
    add_view_arguments(parser.add_argument_group("images"))
    add_training_arguments(parser.add_argument_group("training"))
    group = arguments.add_machine_arguments(parser)
    arguments.add_cache_argument(
        group,
        2.0,
        "decoded images (at 256 x 256 0.2 MB each), the teacher's features of them (2.4 MB) and penalty images (on "
        "a GPU: of its memory, but for the penalty images, which take up to a quarter of that in the machine's)",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits for the same seed on a CUDA GPU, too, but slower; on a CPU it is always so, with the "
        "same flags, machine and number of threads (default: no)",
    )
    group = parser.add_argument_group("output")
    arguments.add_output_dir_argument(group, "the model goes to DIR/trainings/<data set>")
    group.add_argument(
        "--checkpoint_minutes",
        type=arguments.positive_float,
        metavar="X",
        help="time between two saves of the training's state for --resume; --recipe fast saves none "
        f"(default: {CHECKPOINT_MINUTES:g})",
    )
    arguments.add_on_error_argument(group)
    existing = group.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted training with the same flags and images, at most --checkpoint_minutes back; "
        "folders may move, and flags that do not change the result may differ; a finished training is left alone, "
        "and an error if it was another one",
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="replace a finished model there (default: refuse)"
    )
    return parser


def add_view_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--image_size",
        nargs="+",
        default=["256"],
        metavar="PIXELS",
        help="what images are resized to: a square, or height and width, multiples of 4 from 64 on; "
        f"{NATIVE}: the size of the training images, or their median. Larger sizes show smaller defects and take "
        "longer (default: 256, as in the paper)",
    )
    group.add_argument(
        "--max_pixels",
        type=arguments.positive_int,
        metavar="N",
        help=f"of --image_size {NATIVE}, at most; larger images are made smaller (default: {MAX_PIXELS})",
    )
    group.add_argument(
        "--resize",
        choices=("stretch", "fit"),
        default="stretch",
        help="stretch: to that size whatever the aspect ratio, as in the paper; fit: keep it; what is added around "
        "the image does not count (default: %(default)s)",
    )
    group.add_argument(
        "--roi",
        nargs=4,
        type=arguments.non_negative_float,
        metavar=("LEFT", "TOP", "WIDTH", "HEIGHT"),
        help="inspect this part of each image only: pixels of the upright image, or shares of it from 0 to 1 "
        "(default: all of it)",
    )
    group.add_argument(
        "--ignore",
        type=arguments.named_path,
        metavar="MASK",
        help="an image of the size of yours, in which white is what is not inspected, such as fixtures and printed "
        "dates (default: nothing)",
    )
    group.add_argument(
        "--bit_depth",
        choices=arguments.BIT_DEPTHS,
        default="auto",
        help="of the values in files of more than 8 bits, for all images alike. A number: white is the largest "
        "value of so many bits; float255, float1: white is 255 or 1 in files of floats; auto: the fewest bits that "
        "hold the values of all training images (default: %(default)s)",
    )
    arguments.add_max_megapixels_argument(group)
    group.add_argument(
        "--border",
        choices=(NO_BORDER, MIRROR),
        help="none: the outer 10 pixels of the resized image are hardly seen, as in the paper; mirror: images are "
        "extended by mirrored pixels, so that they are (default: mirror with --recipe fast, none with paper)",
    )


def add_training_arguments(group: argparse._ArgumentGroup) -> None:
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "-e",
        "--epochs",
        type=arguments.positive_int,
        metavar="N",
        help="passes of student and autoencoder over the training images",
    )
    length.add_argument(
        "--train_steps",
        type=arguments.positive_int,
        metavar="N",
        help=f"optimizer steps, instead of --epochs (default of --recipe paper: {DEFAULT_STEPS}, as published)",
    )
    arguments.add_batch_size_argument(
        group,
        f"images per step and process; the last step of an epoch takes the remaining ones (default: {BATCH_SIZE})",
    )
    arguments.add_model_size_argument(
        group,
        "small: EfficientAD-S; medium: EfficientAD-M, 3 times the work; its shipped teacher answers as the small "
        "one does (default: %(default)s)",
    )
    group.add_argument(
        "-w",
        "--weights",
        type=arguments.named_path,
        metavar="FILE",
        help="pretrained teacher, a state_dict; teachers of other EfficientAD tools fit, too (default: the one of "
        "that size in efficientad/weights)",
    )
    group.add_argument(
        "--init_from",
        type=arguments.named_path,
        metavar="MODEL",
        help="begin with the networks of this model.pt of --recipe paper, for more steps or after new good images; "
        "statistics, quantiles and threshold are fitted anew (default: new networks)",
    )
    group.add_argument(
        "-i",
        "--imagenet_train_path",
        type=arguments.named_path,
        nargs="+",
        metavar="PATH",
        help="folders or tar files of natural images for the penalty term, which keeps the student from predicting "
        f"the teacher on other images; {DRAWN}: images drawn by a program; {NONE}: no penalty (default: {NONE})",
    )
    group.add_argument(
        "--recipe",
        choices=(AUTO, *RECIPES),
        default=AUTO,
        help="fast: no steps, only a memory of the teacher's features of good parts; paper: student and "
        f"autoencoder as published, for tens of thousands of steps; {AUTO}: paper if {FAST_BELOW} steps or more "
        "are asked for, else fast (default: %(default)s)",
    )
    group.add_argument(
        "--window",
        type=lambda text: text if text == FULL else arguments.side(text),
        metavar="PIXELS",
        help="side of the part of each image that a step of student and autoencoder sees, so that it takes as long "
        f"at any --image_size; {FULL}: all of it (default: {WINDOW})",
    )
    group.add_argument(
        "--memory",
        type=arguments.non_negative_int,
        metavar="PATCHES",
        help="size of the memory; 0: none. With --recipe paper it is added to the networks, and its map counts "
        f"half (default: {MEMORY_PATCHES} with --recipe fast, 0 with paper)",
    )
    arguments.add_global_weight_argument(group, GLOBAL_WEIGHT)
    arguments.add_lr_argument(
        group, f"learning rate of Adam, a tenth of it for the last 5%% of the steps (default: {LR:g})"
    )
    arguments.add_weight_decay_argument(group, f"weight decay of Adam; 0: off (default: {WEIGHT_DECAY:g})")
    arguments.add_target_fpr_argument(group)
    group.add_argument(
        "--evaluate_every",
        type=arguments.positive_int,
        metavar="STEPS",
        help="print the AUROC of the networks (without a memory) on the test images every STEPS steps and after "
        "the last one, also in log.csv and training.png. It uses their labels: for studying a training, not for "
        "choosing when to stop. The model does not depend on it (default: never)",
    )
    arguments.add_seed_argument(
        group, "the split, the first weights, the order of the images, their augmentation and the memory"
    )


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import_torch()
    from efficientad.data.choices import Choice, choose_several
    from efficientad.data.formats import limit_megapixels
    from efficientad.system.distributed import each_dataset, process_group

    limit_megapixels(args.max_megapixels)
    with process_group(args.device):
        paths = dataset_arguments.dataset_paths(args)
        several = choose_several(args.dataset, paths, args.subdataset)
        if not several:
            train_choice(args, Choice(args.dataset, paths[0], args.subdataset))
            return
        each_dataset(
            list(several),
            lambda name: train_choice(args, several[name]),
            lambda trained: print_trainings(args, several, trained),
        )


def train_choice(args: argparse.Namespace, choice: Choice) -> tuple[int, int, float] | None:
    """Train one detector; returns the numbers of images and steps and the seconds, or None if it was finished."""
    from efficientad.system.distributed import say
    from efficientad.training.options import TrainingOptions
    from efficientad.training.run import train_detector

    start = time.monotonic()
    own = dataset_arguments.with_dataset(args, choice.path, choice.category)
    command = arguments.command_line(get_parser(), args if choice.name else own)
    dataset = choice.open()
    for line in dataset_arguments.describe_unused_category(args):
        say(line)
    trained = train_detector(dataset, arguments.read_options(TrainingOptions, own, command=command))
    if trained is None:
        return None
    seconds = time.monotonic() - start
    advice = "" if choice.name else f"; evaluate it with: {evaluation_command(own)}"
    say(f"Trained in {seconds:.0f} s and wrote {trained.model_file}{advice}")
    return trained.images, trained.steps, seconds


def print_trainings(
    args: argparse.Namespace, several: dict[str, Choice], trained: dict[str, tuple[int, int, float] | None]
) -> None:
    """Print a table of the trained data sets, without those that were finished before, and how to evaluate all."""
    from tabulate import tabulate

    rows = [[name, *values] for name, values in trained.items() if values]
    if rows:
        means = [sum(column) / len(rows) for column in list(zip(*rows, strict=True))[1:]]
        headers = ["Data set", "Images", "Steps", "Seconds"]
        print(f"\n{tabulate([*rows, ['mean', *means]], headers=headers, floatfmt='.0f')}\n")
    else:
        print(f"Trained before, nothing to do: {', '.join(trained)}")
    weights_dir = None
    if args.dataset == "custom":
        args = dataset_arguments.with_dataset(args, [several[name].path for name in trained], args.subdataset)
        if len(trained) == 1:  # alone it would be looked for elsewhere
            weights_dir = args.output_dir / "trainings" / several[next(iter(trained))].name
    elif len(trained) < len(several):
        return  # each one's own line says it
    print(f"Evaluate {'it' if weights_dir else 'them'} with: {evaluation_command(args, weights_dir)}")


def evaluation_command(args: argparse.Namespace, weights_dir: Path | None = None) -> str:
    """The eval.py command line for what was trained with these arguments."""
    words = ["python", "eval.py", "--dataset", args.dataset]
    words += [
        f"--{dataset_arguments.path_argument(args.dataset)}",
        *map(str, dataset_arguments.dataset_paths(args)),
    ]
    if args.dataset != "custom":
        words += ["--subdataset", args.subdataset]
    if weights_dir:
        words += ["--weights_dir", str(weights_dir)]
    return shlex.join([*words, "--output_dir", str(args.output_dir)])


if __name__ == "__main__":
    run_command(main, get_parser())
