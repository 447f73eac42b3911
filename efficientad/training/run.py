"""The training of one detector, from a data set to model.pt; an interrupted one is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from efficientad.data.datasets import Dataset, TrainingSplit
from efficientad.data.images import SKIPPED_FILE, UnreadableImageError, describe_skipped, write_skipped
from efficientad.data.views import View
from efficientad.detector.checkpoint import (
    MODEL_FILE,
    MOST_MEMORY_PATCHES,
    load_model,
    load_teacher_weights,
    save_model,
)
from efficientad.detector.model import EfficientAD
from efficientad.system.devices import (
    compute_deterministically,
    describe_device,
    resolve_device,
    resolve_precision,
)
from efficientad.system.distributed import rank, ranks, say, wait_for_ranks
from efficientad.system.errors import UserError, printable
from efficientad.system.files import require_no_links, write_text_atomically
from efficientad.system.random_streams import seed_torch
from efficientad.system.runs import lock_folder
from efficientad.system.torch_files import compare_images
from efficientad.training.inputs import find_images, load_images
from efficientad.training.left_out import SCORES_FILE, GoodScore, write_scores
from efficientad.training.log import draw_training
from efficientad.training.options import (
    TrainingOptions,
    TrainingPlan,
    describe_start,
    describe_unused,
    make_plan,
    settle,
)
from efficientad.training.penalty_images import PenaltyImages, find_penalty_images
from efficientad.training.progress import describe_use
from efficientad.training.resuming import (
    IMAGE_FILES,
    SETTINGS_FILE,
    STATE_FILE,
    compare_finished,
    digest_files,
    is_finished,
    naming_the_state,
    read_training_state,
)
from efficientad.training.sizes import begin_view, choose_size
from efficientad.training.stages import LOG_FILE, fit_detector

CHART_FILE = "training.png"
_FILES = (MODEL_FILE, STATE_FILE, SETTINGS_FILE, LOG_FILE, CHART_FILE, SCORES_FILE, SKIPPED_FILE)


@dataclass(frozen=True)
class TrainedDetector:
    """The result of a training."""

    model_file: Path
    images: int  # that it was trained on
    steps: int


def train_detector(dataset: Dataset, options: TrainingOptions) -> TrainedDetector | None:
    """Train a detector and write it below options.output_dir, with its log and settings.

    With several processes all must call it; the first one writes and prints.

    Returns:
        None if --resume finds it finished.

    Raises:
        UserError: a model or an interrupted training is in the way, the data cannot be used, or it is not the data
            that the training to be resumed began with.
        Interrupted: by a signal during the training; its state is saved.
    """
    below = f"trainings/{dataset.name}"
    folder = options.output_dir / below
    require_no_links(options.output_dir, [f"{below}/{name}" for name in _FILES])
    with lock_folder(folder) if rank() == 0 else nullcontext():
        wait_for_ranks()  # the first one has the lock, or has failed alone
        finished = is_finished(folder, options)
        wait_for_ranks()  # nothing changes in the folder before all have looked
        return train_in_folder(dataset, folder, options, finished)


def train_in_folder(
    dataset: Dataset, folder: Path, asked: TrainingOptions, finished: bool
) -> TrainedDetector | None:
    """Find, check and load everything, fit, and save; or only check it, if it is finished. See train_detector."""
    device = resolve_device(asked.device)
    if asked.deterministic:
        compute_deterministically()
    precision = resolve_precision(asked.precision, device)
    view = begin_view(asked)
    found = find_images(dataset, asked, view)
    options = settle(asked, len(found.split.train), ranks())
    plan = make_plan(options, device, precision)
    view, about_view = choose_size(found.view, options, found.split.train)
    model, teacher = start_model(options, view)
    penalty = find_penalty_images(options.imagenet_train_path)
    facts = collect_facts(dataset, found.split, penalty, teacher, view, options, plan)
    settings = json.loads(json.dumps({**asdict(asked), **facts}, default=str))
    if finished:
        compare_finished(folder, settings, model)
        say(f"{folder} already holds this trained model: nothing to resume")
        return None
    notes = [
        *describe_unused(asked, options.recipe),
        *describe_use(options.evaluate_every, found.test_samples),
        *(f"Note: {printable(note)}" for note in found.notes),
    ]
    say("\n".join([*describe_start(dataset.name, options, facts), *about_view, *found.about_depth, *notes]))

    state_file = folder / STATE_FILE
    state = read_training_state(state_file, settings, model, penalty) if asked.resume else None
    settings = state["settings"] if state else settings
    images = load_images(dataset, found, penalty, model, options, plan, state["step"] if state else 0)
    if reading_notes := view.notes.lines():
        say("\n".join(reading_notes))
    if state:
        compare_images(state["images"], images.digests, state_file)
    about = {"settings": settings, "images": images.digests, "penalty": penalty.digest}
    with naming_the_state(state_file):
        if not state and rank() == 0:
            state_file.unlink(missing_ok=True)  # of a run that is not resumed
            write_text_atomically(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
        scores = fit_detector(model, images, options, plan, folder, state, about)
        if rank() == 0:
            settings["memory_patches"] = len(model.memory)
            save_training(model, folder, settings, options, scores, found.skipped)
    wait_for_ranks()
    return TrainedDetector(folder / MODEL_FILE, settings["train_images"], settings["steps"])


def start_model(options: TrainingOptions, view: View) -> tuple[EfficientAD, Path]:
    """A model with its first weights, and the file that its teacher came from."""
    if options.memory > MOST_MEMORY_PATCHES:
        raise UserError(f"--memory {options.memory} is more than the {MOST_MEMORY_PATCHES} patches of a model")
    seed_torch(options.seed, "weights")
    model = EfficientAD(options.model_size, view, options.border, has_student=options.train_steps > 0)
    seed_torch(options.seed, "dropout", rank())
    if options.init_from is None:
        return model, load_teacher_weights(model, options.weights)
    return model, take_networks(model, options.init_from)


def take_networks(model: EfficientAD, path: Path) -> Path:
    """Give the model the teacher, student and autoencoder of a trained one; returns its file.

    Args:
        path: of the file, or of the training's folder.

    Raises:
        UserError: it has no student, or is of another size.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if file.name != MODEL_FILE or not file.is_file():
        raise UserError(f"--init_from {path}: there is no {MODEL_FILE}; give one, or the folder of a training")
    trained = load_model(file.parent, torch.device("cpu"))
    if trained.student is None:
        raise UserError(
            f"--init_from {path}: that model is a memory alone (--recipe fast), without networks to train further"
        )
    if trained.model_size != model.model_size:
        raise UserError(f"--init_from {path}: that is a {trained.model_size} model; add --model_size")
    for name in ("teacher", "student", "autoencoder"):
        model.get_submodule(name).load_state_dict(trained.get_submodule(name).state_dict())
    return file


def collect_facts(
    dataset: Dataset,
    split: TrainingSplit,
    penalty: PenaltyImages,
    teacher: Path,
    view: View,
    options: TrainingOptions,
    plan: TrainingPlan,
) -> dict[str, Any]:
    """The settings that were found or settled, beside those that were given."""
    return {
        "train_images": len(split.train),
        "validation_images": len(split.validation),
        IMAGE_FILES: digest_files(dataset.root, [*split.train, *split.validation]),
        "penalty": str(penalty),
        "steps": plan.steps,
        "image_size": list(view.size),
        "ignored": None if view.ignored is None else hashlib.sha256(view.ignored).hexdigest()[:16],
        "depth": view.depth.as_dict(),
        "border": options.border,
        "window": options.window,
        "recipe": options.recipe,
        "memory": options.memory,
        "global_weight": options.global_weight,
        "batch_size": plan.batch_size,
        "lr": plan.lr,
        "weight_decay": plan.weight_decay,
        "checkpoint_minutes": options.checkpoint_minutes,
        "machine": describe_device(plan.device, plan.precision),
        "teacher": str(teacher),
        "processes": ranks(),
    }


def save_training(
    model: EfficientAD,
    folder: Path,
    settings: Mapping[str, Any],
    options: TrainingOptions,
    scores: Sequence[GoodScore],
    skipped: list[UnreadableImageError],
) -> None:
    """Write the model, the scores, the chart of the training and the list of skipped images; remove the state."""
    save_model(model, folder / MODEL_FILE, settings)
    write_scores(folder / SCORES_FILE, scores)
    if options.train_steps:
        draw_training(folder / LOG_FILE, folder / CHART_FILE)
    if options.on_error == "skip":
        write_skipped(folder, skipped)
        say(describe_skipped(folder, skipped))
    of_the_replaced = [] if options.train_steps else [LOG_FILE, CHART_FILE]
    of_the_replaced += [] if options.on_error == "skip" else [SKIPPED_FILE]
    for name in [*of_the_replaced, STATE_FILE]:  # the state last: until then everything can be made again
        (folder / name).unlink(missing_ok=True)
