"""The user's choices for a training, and the plan that follows from them; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientad.system.errors import UserError

if TYPE_CHECKING:
    import torch

DEFAULT_STEPS = 70_000  # of the networks; the paper's
BATCH_SIZE, LR, WEIGHT_DECAY, CHECKPOINT_MINUTES = 1, 1e-4, 1e-5, 5.0  # defaults
AUTO, FAST, PAPER = "auto", "fast", "paper"
RECIPES = (FAST, PAPER)
NO_BORDER, MIRROR = "none", "mirror"
NATIVE, FULL = "native", "full"  # in place of a size
WINDOW, MAX_PIXELS = 256, 2**20
NONE, DRAWN = "none", "drawn"  # in place of paths of natural images
MEMORY_PATCHES = 8000
GLOBAL_WEIGHT = 0.7  # chosen of 0.35, 0.5, 0.7, 1, 1.4, 2, 2.5 and 3.5; see efficientad/README.md
FAST_BELOW = 10_000  # steps; with fewer, auto is fast
FEW_IMAGES_SEEN = 1000

# Settings that do not change the result, or whose effect is compared itself (images, teacher, steps)
MAY_DIFFER = {
    "cache_gb",
    "checkpoint_minutes",
    "command",
    "custom_dataset_path",
    "device",
    "epochs",
    "evaluate_every",
    "ignore",
    "image_files",
    "imagenet_train_path",
    "machine",
    "max_pixels",
    "mvtec_ad_path",
    "mvtec_loco_path",
    "num_workers",
    "on_error",
    "output_dir",
    "overwrite",
    "resume",
    "teacher",
    "train_steps",
    "visa_path",
    "weights",
}


@dataclass(frozen=True)
class TrainingOptions:
    """The user's choices; the names are those of train.py's flags. None: not given."""

    dataset: str  # the layout
    subdataset: str
    custom_dataset_path: Path
    mvtec_ad_path: Path
    mvtec_loco_path: Path
    visa_path: Path
    epochs: int | None  # at most one of epochs and train_steps
    train_steps: int | None
    batch_size: int | None
    model_size: str
    weights: Path | None  # of the teacher; None: the shipped one
    init_from: Path | None  # a trained model whose networks are trained further; None: new ones
    imagenet_train_path: list[Path] | None  # None: no penalty; or one of the words NONE and DRAWN
    image_size: list[str]  # as given; see sizes.choose_size
    max_pixels: int | None  # of the word NATIVE
    resize: str  # views.STRETCH or FIT
    roi: list[float] | None
    ignore: Path | None  # a mask
    bit_depth: str  # one of arguments.BIT_DEPTHS
    border: str | None  # NO_BORDER or MIRROR; None: the recipe's
    window: int | str | None  # pixels, or FULL
    recipe: str  # AUTO, or one of RECIPES
    memory: int | None  # patches; None: the recipe's
    global_weight: float | None  # of the global score; 0: none; None: the recipe's
    lr: float | None
    weight_decay: float | None
    target_fpr: float
    evaluate_every: int | None  # steps; None: never
    seed: int
    device: str
    precision: str
    num_workers: int
    cache_gb: float
    deterministic: bool
    output_dir: Path
    checkpoint_minutes: float | None
    on_error: str  # unreadable images: stop or skip
    resume: bool
    overwrite: bool
    command: str  # a command line that gives these options


_FOUND = {  # see run.collect_facts and converting
    "train_images",
    "validation_images",
    "image_files",
    "penalty",
    "steps",
    "ignored",
    "depth",
    "machine",
    "teacher",
    "processes",
    "converted_from",
    "networks_origin",
    "statistics_origin",
    "quantiles_origin",
    "threshold_origin",
}
NOTED = {field.name for field in fields(TrainingOptions)} | _FOUND  # the keys of an args.json


@dataclass(frozen=True)
class TrainingPlan:
    """Settings of the training loop."""

    steps: int
    batch_size: int  # of each process
    lr: float
    weight_decay: float
    device: torch.device
    precision: str  # resolved: fp32, bf16 or fp16
    seed: int
    window: int | None = None  # side of what a step sees of an image, in pixels; None: all of it
    cuda_graph: bool = True  # where one can be used


def choose_recipe(name: str, steps: int | None, has_networks: bool = False) -> str:
    """FAST or PAPER: the one that `name` gives, or for AUTO the one that suits the steps asked for, if any.

    Args:
        has_networks: student and autoencoder are there and are to be trained further.
    """
    if name != AUTO:
        return name
    return PAPER if has_networks or (steps is not None and steps >= FAST_BELOW) else FAST


def choose_memory(patches: int | None, recipe: str) -> int:
    """The patches of the memory: as asked for, or the recipe's own."""
    if patches is not None:
        return patches
    return MEMORY_PATCHES if recipe == FAST else 0


def choose_global_weight(weight: float | None, recipe: str) -> float:
    """The weight of the global score: as asked for, or the recipe's own; the paper has none."""
    if weight is not None:
        return weight
    return GLOBAL_WEIGHT if recipe == FAST else 0.0


def map_weights(has_student: bool, has_memory: bool) -> tuple[float, float, float]:
    """Of the student-teacher, autoencoder-student and memory map: the paper's two count alike (section 3.4)."""
    if not has_memory:
        return 0.5, 0.5, 0.0
    return (0.25, 0.25, 0.5) if has_student else (0.0, 0.0, 1.0)


def settle(options: TrainingOptions, images: int, processes: int) -> TrainingOptions:
    """The options without None: recipe, steps, memory and penalty for this number of training images.

    Raises:
        UserError: options that exclude each other.
    """
    batch_size = options.batch_size or BATCH_SIZE
    steps = options.train_steps
    if options.epochs is not None:
        steps = options.epochs * math.ceil(images / (batch_size * processes))
    recipe = choose_recipe(options.recipe, steps, options.init_from is not None)
    memory = choose_memory(options.memory, recipe)
    sources = options.imagenet_train_path or [Path(NONE)]
    if options.init_from is not None and options.weights is not None:
        raise UserError("--init_from and --weights: a model brings its teacher along; leave out one of them")
    if recipe == FAST:
        if options.init_from is not None:
            raise UserError(
                "--init_from: --recipe fast has no networks to train further, and collects its memory anew in "
                "seconds; leave it out, or take --recipe paper"
            )
        if steps is not None and options.recipe == FAST:
            raise UserError(
                "--recipe fast takes no steps: leave out --epochs and --train_steps, or take --recipe paper"
            )
        if options.evaluate_every is not None:
            raise UserError("--evaluate_every: --recipe fast takes no steps; add --recipe paper")
        if memory == 0:
            raise UserError("--memory 0 leaves nothing of --recipe fast; add --recipe paper")
        steps, sources = 0, [Path(NONE)]
    elif steps is None:
        steps = DEFAULT_STEPS
    return replace(
        options,
        epochs=None,
        train_steps=steps,
        batch_size=batch_size,
        max_pixels=options.max_pixels or MAX_PIXELS,
        imagenet_train_path=sources,
        recipe=recipe,
        memory=memory,
        global_weight=choose_global_weight(options.global_weight, recipe),
        border=options.border or (MIRROR if recipe == FAST else NO_BORDER),
        window=options.window or WINDOW,
        lr=LR if options.lr is None else options.lr,
        weight_decay=WEIGHT_DECAY if options.weight_decay is None else options.weight_decay,
        checkpoint_minutes=options.checkpoint_minutes or CHECKPOINT_MINUTES,
    )


def make_plan(options: TrainingOptions, device: torch.device, precision: str) -> TrainingPlan:
    """The plan of settled options."""
    return TrainingPlan(
        steps=options.train_steps,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        device=device,
        precision=precision,
        seed=options.seed,
        window=None if options.window == FULL else options.window,
    )


_OF_STEPS = (
    "epochs",
    "train_steps",
    "batch_size",
    "imagenet_train_path",
    "window",
    "lr",
    "weight_decay",
    "checkpoint_minutes",
)


def settings_of_that_run(settings: Mapping[str, Any]) -> set[str]:
    """Settings in an args.json that another training should not take over: those of its folder, or not used.

    The size that "native" led to is in image_size.
    """
    of_the_folder = {"resume", "overwrite", "max_pixels"}
    return of_the_folder.union(_OF_STEPS if settings.get("recipe") == FAST else ())


def describe_unused(asked: TrainingOptions, recipe: str) -> list[str]:
    """Notes on given flags that the recipe does not use."""
    notes = []
    given = [f"--{name}" for name in _OF_STEPS if getattr(asked, name) is not None]
    if recipe == FAST and given:
        steps = asked.epochs or asked.train_steps
        few = f", and fewer than {FAST_BELOW:,} are too few for student and autoencoder" if steps else ""
        advice = "--recipe paper trains these all the same" if few else "--recipe paper does"
        notes.append(f"Note: {', '.join(given)} not used: the memory takes no steps{few}; {advice}")
    if asked.max_pixels is not None and asked.image_size != [NATIVE]:
        notes.append(f"Note: --max_pixels not used: it limits --image_size {NATIVE}")
    return notes


def describe_start(name: str, options: TrainingOptions, facts: Mapping[str, Any]) -> list[str]:
    """Lines about the training to come, with a warning where it will be too short."""
    processes = facts["processes"]
    parts = [f"memory of {options.memory} patches"] if options.memory else []
    if facts["steps"]:
        steps = f"{facts['steps']} steps of batch size {options.batch_size}"
        if processes > 1:
            steps += f" on each of {processes} processes"
        parts = [steps, f"penalty {facts['penalty']}", *parts]
    lines = [
        f"Data set {name}: {facts['train_images']} good images, {facts['validation_images']} more held out",
        f"EfficientAD {options.model_size}, {', '.join(parts)}, recipe {options.recipe}",
        f"Using {facts['machine']}",
        f"Teacher {facts['teacher']}",
    ]
    seen = facts["steps"] * min(options.batch_size * processes, facts["train_images"])
    if 0 < seen < FEW_IMAGES_SEEN:
        lines.append(
            f"Note: only about {seen} images will be seen; below {FEW_IMAGES_SEEN} the maps of student and "
            "autoencoder stay weak: raise --epochs or --train_steps, or take --recipe fast"
        )
    return lines
