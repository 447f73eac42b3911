"""What a user chooses for a training, and what follows from it before the first step; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientad.system.errors import UserError

if TYPE_CHECKING:
    import torch

DEFAULT_STEPS = 70_000  # of the networks; the paper's
AUTO, FAST, PAPER = "auto", "fast", "paper"
RECIPES = (FAST, PAPER)
NONE, DRAWN = "none", "drawn"  # in place of paths of natural images
MEMORY_PATCHES = 8000
FAST_BELOW = 10_000  # steps, of a training that asks for some and for no recipe


def choose_recipe(name: str, steps: int | None) -> str:
    """FAST or PAPER, of what a user asked for: one of them, or AUTO, which depends on the steps, if any."""
    if name != AUTO:
        return name
    return FAST if steps is None or steps < FAST_BELOW else PAPER


def choose_memory(patches: int | None, recipe: str) -> int:
    """The patches of the memory: as asked for, or the recipe's own."""
    if patches is not None:
        return patches
    return MEMORY_PATCHES if recipe == FAST else 0


def map_weights(has_student: bool, has_memory: bool) -> tuple[float, float, float]:
    """Of the student-teacher, autoencoder-student and memory map: the paper's two count alike (section 3.4)."""
    if not has_memory:
        return 0.5, 0.5, 0.0
    return (0.25, 0.25, 0.5) if has_student else (0.0, 0.0, 1.0)


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
    "machine",
    "mvtec_ad_path",
    "mvtec_loco_path",
    "no_cuda_graph",
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
    """What a user can choose; the names are those of train.py's flags."""

    epochs: int | None  # at most one of epochs and train_steps
    train_steps: int | None
    batch_size: int
    model_size: str
    weights: Path | None  # of the teacher; None: the shipped one
    imagenet_train_path: list[Path] | None  # None: no penalty; or one word of recipes.py
    recipe: str  # auto, or one of RECIPES
    memory: int | None  # patches; None: the recipe's
    lr: float
    weight_decay: float
    target_fpr: float
    evaluate_every: int | None  # steps; None: never
    seed: int
    device: str
    precision: str
    num_workers: int
    cache_gb: float
    checkpoint_minutes: float
    deterministic: bool
    no_cuda_graph: bool
    on_error: str  # stop or skip, at images that cannot be read
    resume: bool
    overwrite: bool


@dataclass(frozen=True)
class TrainingPlan:
    """What the loop needs to know beside model and images."""

    steps: int
    batch_size: int  # of each rank
    lr: float
    weight_decay: float
    device: torch.device
    precision: str  # resolved: fp32, bf16 or fp16
    seed: int
    cuda_graph: bool = True  # where one can be used


def settle(options: TrainingOptions, images: int, processes: int) -> TrainingOptions:
    """The options with recipe, steps, memory and penalty that follow from so many training images.

    Raises:
        UserError: wishes that exclude each other.
    """
    asked = options.train_steps
    if options.epochs is not None:
        asked = options.epochs * math.ceil(images / (options.batch_size * processes))
    recipe = choose_recipe(options.recipe, asked)
    memory = choose_memory(options.memory, recipe)
    sources = options.imagenet_train_path or [Path(NONE)]
    if recipe == FAST:
        if asked is not None and options.recipe == FAST:
            raise UserError(
                "--recipe fast takes no steps: leave out --epochs and --train_steps, or take --recipe paper"
            )
        if options.evaluate_every is not None:
            raise UserError("--evaluate_every: --recipe fast takes no steps; add --recipe paper")
        if memory == 0:
            raise UserError("--memory 0 leaves nothing of --recipe fast; add --recipe paper")
        asked, sources = 0, [Path(NONE)]
    elif asked is None:
        asked = DEFAULT_STEPS
    return replace(
        options, epochs=None, train_steps=asked, recipe=recipe, memory=memory, imagenet_train_path=sources
    )


def make_plan(options: TrainingOptions, compute: torch.device, precision: str) -> TrainingPlan:
    """The plan of settled options."""
    return TrainingPlan(
        steps=options.train_steps,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        device=compute,
        precision=precision,
        seed=options.seed,
        cuda_graph=not options.no_cuda_graph,
    )


def describe_unused(asked: TrainingOptions, settled: TrainingOptions) -> str:
    """A note for whoever asked for steps that the recipe does without; else nothing."""
    flags = {"--epochs": asked.epochs, "--train_steps": asked.train_steps}
    flags |= {"--imagenet_train_path": asked.imagenet_train_path}
    given = [flag for flag, value in flags.items() if value is not None]
    if settled.recipe != FAST or not given:
        return ""
    return (
        f"Note: {' and '.join(given)} not used: the memory takes no steps, and fewer than {FAST_BELOW:,} are taken "
        "for too few for student and autoencoder; --recipe paper trains these all the same"
    )


def describe_start(name: str, options: TrainingOptions, facts: Mapping[str, Any]) -> list[str]:
    """Lines about what is going to happen, and a warning where it will be too little."""
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
