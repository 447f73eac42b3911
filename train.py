"""Train an EfficientAD anomaly detector on images of good parts (arXiv 2303.14535)."""

import argparse
import json
import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from efficientad import arguments
from efficientad.errors import UserError, run_command

DEFAULT_EPOCHS = 10
FEW_IMAGES_SEEN = 1000
NATURAL_CACHE_SHARE = 0.25  # of what the training images leave; the teacher's answers save more and get the rest


@dataclass(frozen=True)
class Recipe:
    """How the networks begin and how they learn."""

    lr: float
    autoencoder_lr: float  # in learning rates of the student
    schedule: str
    solved_start: bool  # He initialization and the student's output layer solved; else PyTorch's initial weights
    weighed_maps: bool  # by how much the autoencoder has learnt; else half each


RECIPES = {
    "paper": Recipe(lr=1e-4, autoencoder_lr=1, schedule="step", solved_start=False, weighed_maps=False),
    "fast": Recipe(lr=1e-4, autoencoder_lr=10, schedule="cosine", solved_start=True, weighed_maps=True),
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=__doc__,
        epilog="Annotations are not needed. eval.py evaluates the result.",
    )
    arguments.add_dataset_arguments(parser)
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "-e",
        "--epochs",
        type=arguments.positive_int,
        metavar="N",
        help=f"passes over the training images (default: {DEFAULT_EPOCHS})",
    )
    length.add_argument(
        "--train_steps",
        type=arguments.positive_int,
        metavar="N",
        help="optimizer steps, instead of --epochs; the paper takes 70000 of batch size 1",
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
        default=[],
        metavar="PATH",
        help="folders or tar files of natural images for the penalty term (default: none, penalty off)",
    )
    group.add_argument(
        "--recipe",
        choices=RECIPES,
        default="paper",
        help="paper: a low learning rate, for tens of thousands of steps; fast: He initialization, and a high "
        "rate that falls to zero, for hundreds or a few thousand steps (default: %(default)s)",
    )
    group.add_argument(
        "--lr",
        type=arguments.positive_float,
        metavar="X",
        help="learning rate of Adam; paper: a tenth of it for the last 5%% of the steps; fast: its peak "
        f"(default: {', '.join(f'{name} {recipe.lr:g}' for name, recipe in RECIPES.items())})",
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
        "--seed",
        type=arguments.non_negative_int,
        default=42,
        metavar="N",
        help="of the split, the initial weights, the order and the augmentation (default: %(default)s)",
    )
    group = arguments.add_machine_arguments(parser)
    arguments.add_cache_argument(group, 2.0, "decoded images and the teacher's answers")
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output_dir",
        type=Path,
        default=Path("output/1"),
        metavar="DIR",
        help="the model goes to DIR/trainings/<data set> (default: %(default)s)",
    )
    arguments.add_on_error_argument(group)
    group.add_argument("--overwrite", action="store_true", help="replace a finished model there (default: refuse)")
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import torch

    from efficientad import bad_files, checkpoint, device, normalization, training
    from efficientad.calibration import describe_calibration
    from efficientad.datasets import find_training_images, open_dataset
    from efficientad.image_set import ImageSet
    from efficientad.images import read_image
    from efficientad.initialization import initialize_network, solve_student
    from efficientad.natural import natural_batches
    from efficientad.networks import EfficientAD
    from efficientad.stored_images import find_stored_images
    from efficientad.teacher_answers import TeacherAnswers
    from efficientad.training_chart import draw_training

    start = time.monotonic()
    dataset = open_dataset(args.dataset, arguments.dataset_path(args), args.subdataset)
    folder = args.output_dir / "trainings" / dataset.name
    if (folder / checkpoint.MODEL_FILE).exists() and not args.overwrite:
        raise UserError(f"{folder} already holds a trained model; add --overwrite, or choose another --output_dir")
    compute = device.resolve_device(args.device)
    precision = device.resolve_precision(args.precision, compute)
    split = find_training_images(dataset, args.seed)
    torch.manual_seed(args.seed)
    model = EfficientAD(args.model_size)
    recipe = RECIPES[args.recipe]
    if recipe.solved_start:
        initialize_network(model.student)
        initialize_network(model.autoencoder)
    teacher_file = checkpoint.load_teacher_weights(model, args.weights)
    stored = find_stored_images(args.imagenet_train_path)
    skipped = []
    if args.on_error == "skip":
        skipped = bad_files.find_unreadable([*split.train, *split.validation], read_image, args.num_workers)
        split = find_training_images(dataset, args.seed, leave_out={problem.name for problem in skipped})
    plan = training.TrainingPlan(
        steps=args.train_steps or (args.epochs or DEFAULT_EPOCHS) * math.ceil(len(split.train) / args.batch_size),
        batch_size=args.batch_size,
        lr=args.lr or recipe.lr,
        autoencoder_lr=recipe.autoencoder_lr * (args.lr or recipe.lr),
        weight_decay=args.weight_decay,
        schedule=recipe.schedule,
        device=compute,
        precision=precision,
        seed=args.seed,
    )
    facts = {
        "train_images": len(split.train),
        "validation_images": len(split.validation),
        "natural_images": len(stored),
        "steps": plan.steps,
        "lr": plan.lr,
        "machine": device.describe(compute, precision),
        "teacher": str(teacher_file),
        "command": arguments.command_line(get_parser(), args),
    }
    report_start(dataset.name, args, facts)

    budget = args.cache_gb * 1e9
    images = ImageSet([*split.train, *split.validation], model.image_size, budget, args.num_workers, compute)
    train_indices, held_out = range(len(split.train)), range(len(split.train), len(images))
    budget -= images.kept_bytes
    natural = None
    if stored:
        share = NATURAL_CACHE_SHARE * budget
        natural = natural_batches(stored, args.batch_size, model.image_size, share, args.num_workers, args.seed)
        budget -= share
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({**vars(args), **facts}, indent=2, default=str)
    (folder / "args.json").write_text(settings + "\n")
    model.to(compute, memory_format=torch.channels_last)
    answers = TeacherAnswers(model, budget, compute, precision)
    normalization.fit_teacher_statistics(model, images, train_indices, answers)
    if recipe.solved_start:
        solve_student(model, images, train_indices, answers, precision, args.seed)
    training.train(model, images, train_indices, answers, natural, plan, folder / "log.csv")
    normalization.fit_map_quantiles(model, images, held_out, precision)
    if recipe.weighed_maps:
        normalization.fit_map_weights(model, images, held_out, precision)
    normalization.fit_calibration(model, images, held_out, precision, args.target_fpr)
    print(describe_calibration(model.calibration, len(split.validation)))
    checkpoint.save_model(model, folder / checkpoint.MODEL_FILE, json.loads(settings))
    draw_training(folder / "log.csv", folder / "training.png")
    if args.on_error == "skip":
        bad_files.write_skipped(folder, skipped)
        print(bad_files.describe_skipped(folder, skipped))
    else:
        (folder / bad_files.SKIPPED_FILE).unlink(missing_ok=True)  # of the training that this one replaces
    print(
        f"Trained in {time.monotonic() - start:.0f} s and wrote {folder / checkpoint.MODEL_FILE}; "
        f"evaluate it with: {evaluation_command(args)}"
    )


def report_start(name: str, args: argparse.Namespace, facts: dict) -> None:
    """Print what is going to happen, and a warning where it will be too little."""
    penalty = f"{facts['natural_images']} natural images" if facts["natural_images"] else "off"
    print(f"Data set {name}: {facts['train_images']} good images, {facts['validation_images']} more held out")
    steps = f"{facts['steps']} steps of batch size {args.batch_size}"
    print(f"EfficientAD {args.model_size}, {steps}, penalty {penalty}, recipe {args.recipe}")
    print(f"Using {facts['machine']}")
    print(f"Teacher {facts['teacher']}", flush=True)
    seen = facts["steps"] * min(args.batch_size, facts["train_images"])
    if seen < FEW_IMAGES_SEEN:
        advice = f"below {FEW_IMAGES_SEEN} the maps stay weak; raise --epochs or --train_steps"
        if args.recipe == "paper":
            advice += ", or take --recipe fast"
        print(f"Note: only about {seen} images will be seen; {advice}", flush=True)


def evaluation_command(args: argparse.Namespace) -> str:
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
        words += ["--subdataset", args.subdataset]
    return shlex.join([*words, "--output_dir", str(args.output_dir)])


if __name__ == "__main__":
    run_command(main, get_parser())
