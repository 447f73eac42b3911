"""What a user chooses for a training, and what follows from it before the first step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientad.distributed import rank, ranks
from efficientad.recipes import DEFAULT_EPOCHS, RECIPES, choose_penalty, choose_recipe
from efficientad.training import TrainingPlan

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
    imagenet_train_path: list[Path] | None  # None: as choose_penalty has it; or one word of recipes.py
    recipe: str  # auto, or a key of RECIPES
    lr: float | None  # None: the recipe's
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


def settle(options: TrainingOptions, images: int) -> TrainingOptions:
    """The options with steps, recipe and penalty that follow from so many training images on all ranks."""
    steps_per_epoch = math.ceil(images / (options.batch_size * ranks()))
    steps = options.train_steps or (options.epochs or DEFAULT_EPOCHS) * steps_per_epoch
    recipe = choose_recipe(options.recipe, steps)
    sources = options.imagenet_train_path or [Path(choose_penalty(options.recipe, steps))]
    return replace(options, epochs=None, train_steps=steps, recipe=recipe, imagenet_train_path=sources)


def make_plan(options: TrainingOptions, compute: torch.device, precision: str) -> TrainingPlan:
    """The plan of settled options."""
    recipe = RECIPES[options.recipe]
    return TrainingPlan(
        steps=options.train_steps,
        batch_size=options.batch_size,
        lr=options.lr or recipe.lr,
        autoencoder_lr=recipe.autoencoder_lr * (options.lr or recipe.lr),
        weight_decay=options.weight_decay,
        schedule=recipe.schedule,
        device=compute,
        precision=precision,
        seed=options.seed,
        cuda_graph=not options.no_cuda_graph,
    )


def report_start(name: str, options: TrainingOptions, facts: Mapping[str, Any]) -> None:
    """Print what is going to happen, and a warning where it will be too little."""
    say(f"Data set {name}: {facts['train_images']} good images, {facts['validation_images']} more held out")
    steps = f"{facts['steps']} steps of batch size {options.batch_size}"
    if ranks() > 1:
        steps += f" on each of {ranks()} processes"
    say(f"EfficientAD {options.model_size}, {steps}, penalty {facts['penalty']}, recipe {options.recipe}")
    say(f"Using {facts['machine']}")
    say(f"Teacher {facts['teacher']}")
    seen = facts["steps"] * min(options.batch_size * ranks(), facts["train_images"])
    if seen < FEW_IMAGES_SEEN:
        advice = "raise --epochs or --train_steps"
        if options.recipe == "paper":
            advice = f"below {FEW_IMAGES_SEEN} the maps stay weak; {advice}, or take --recipe fast"
        else:
            advice = f"if defects are missed, {advice}"
        say(f"Note: only about {seen} images will be seen; {advice}")


def say(line: str) -> None:
    """Print a line, if this is the first rank."""
    if rank() == 0:
        print(line, flush=True)
