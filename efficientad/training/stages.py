"""What a training fits, stage by stage: statistics, networks, memory, map quantiles and the threshold."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from efficientad.detector.calibration import describe_calibration
from efficientad.detector.fused_pooling import compiled_pooling
from efficientad.detector.model import EfficientAD
from efficientad.system.devices import keep_freed_memory, release_freed_memory
from efficientad.system.distributed import say
from efficientad.training.cache import TeacherFeatures
from efficientad.training.fitting import (
    fit_calibration,
    fit_map_quantiles,
    fit_teacher_statistics,
    map_held_out,
    score_held_out,
)
from efficientad.training.global_fit import fit_global_score
from efficientad.training.inputs import TrainingImages
from efficientad.training.left_out import SCORES_FILE, GoodScore, describe_outliers, find_outliers, score_left_out
from efficientad.training.loop import Training
from efficientad.training.memory import fit_memory
from efficientad.training.options import TrainingOptions, TrainingPlan, map_weights
from efficientad.training.resuming import STATE_FILE

LOG_FILE = "log.csv"
_IMAGES_WORTH_COMPILING = 10_000  # on a GPU: starting Triton takes seconds


def fit_detector(
    model: EfficientAD,
    images: TrainingImages,
    options: TrainingOptions,
    plan: TrainingPlan,
    folder: Path,
    state: dict | None,
    about: dict[str, Any],
) -> list[GoodScore]:
    """Train the model's networks and fit its statistics, memory, quantiles and threshold.

    Args:
        options: settled.
        folder: of the log and the state.
        state: of the training to be resumed; None: begin.
        about: kept in the state.

    Returns:
        The scores of the good images, as far as nothing of an image itself was learnt.
    """
    model.to(plan.device, memory_format=torch.channels_last)
    teacher_features = TeacherFeatures(model, images.features_budget, plan.device, plan.precision)
    if not state:
        fit_teacher_statistics(model, images.images, images.train, teacher_features)
    if plan.steps:
        train_networks(model, images, teacher_features, plan, folder, state, about, 60 * options.checkpoint_minutes)
    has_student, owners, factors = bool(plan.steps), None, None
    if options.memory:
        owners = fit_memory(model, images.images, images.train, teacher_features, options.memory, plan.seed)
        if len(model.memory) < options.memory:
            say(f"Note: the memory holds {len(model.memory)} patches: the candidates have no more different ones")
    if options.global_weight:
        factors = fit_global_score(model, images.images, images.train, teacher_features, options.global_weight)
        if factors is None:
            say("Note: no global score: the images are too few, 20 different ones at least, or do not vary")
    model.map_weights.copy_(torch.tensor(map_weights(has_student, bool(options.memory))))
    if has_student:
        del teacher_features
        gc.collect()  # the step refers to itself; on a GPU it holds the memory of its graph
        release_freed_memory()  # holes of other sizes than needed next
    maps = map_held_out(model, images.images, images.held_out, plan.precision)
    fit_map_quantiles(model, maps)
    held_out, left_out = score_held_out(model, maps), []
    if not has_student:
        about = (teacher_features, owners, factors, plan.precision)
        left_out = score_left_out(model, images.images, images.train, *about)
    names = list(images.digests)
    scores = [
        *(GoodScore(*row, held_out=False) for row in zip(names, left_out, strict=False)),
        *(GoodScore(*row, held_out=True) for row in zip(names[len(images.train) :], held_out, strict=True)),
    ]
    # Whoever holds images out may know that the others are too much like each other
    counted = [row for row in scores if row.held_out or not images.held_out_is_given]
    if outliers := find_outliers(counted):
        say(describe_outliers(outliers, folder / SCORES_FILE))
        counted = [row for row in counted if row not in outliers]
    fit_calibration(
        model, [row.score for row in counted], sum(not row.held_out for row in counted), options.target_fpr
    )
    say(describe_calibration(model.calibration, len(images.held_out)))
    return scores


def train_networks(
    model: EfficientAD,
    images: TrainingImages,
    teacher_features: TeacherFeatures,
    plan: TrainingPlan,
    folder: Path,
    state: dict | None,
    about: dict[str, Any],
    save_every: float,
) -> None:
    """Train student and autoencoder, from the beginning or from the state; see Training."""
    log, file = folder / LOG_FILE, folder / STATE_FILE
    training = Training(
        model, images.images, images.train, teacher_features, plan, log, file, about, save_every, images.progress
    )
    if state:
        training.restore(state)
        say(f"Resuming after {state['step']} of {plan.steps} steps")
    # Not before: kept features and the memory of the passes over them would leave holes between each other.
    keep_freed_memory(plan.device)
    compiles = plan.steps * plan.batch_size >= _IMAGES_WORTH_COMPILING
    with compiled_pooling(plan.device) if compiles else nullcontext():
        training.run(images.penalty_batches)
