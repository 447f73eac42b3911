"""Whether a training may begin in its folder, and the state from which an interrupted one is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from efficientad.detector.checkpoint import MODEL_FILE, read_training
from efficientad.detector.model import EfficientAD
from efficientad.system.distributed import say
from efficientad.system.errors import UserError
from efficientad.system.torch_files import read_state
from efficientad.training.options import MAY_DIFFER, TrainingOptions
from efficientad.training.penalty_images import PenaltyImages

STATE_FILE = "checkpoint.pt"
SETTINGS_FILE = "args.json"


def may_begin(folder: Path, options: TrainingOptions) -> bool:
    """Whether there is anything to do in the folder, which this run has locked.

    Raises:
        UserError: a model or an interrupted training is in the way.
    """
    model_file, state_file = folder / MODEL_FILE, folder / STATE_FILE
    if options.resume and not state_file.exists():
        if model_file.exists() and _is_of_the_last_run(folder):
            say(f"{folder} already holds a trained model: nothing to resume")
            return False
        older = ", only a model that an interrupted training was to replace" if model_file.exists() else ""
        say(f"{folder} holds no {STATE_FILE}{older}: nothing to resume, beginning anew")
    elif not options.resume and not options.overwrite:
        if state_file.exists():
            raise UserError(
                f"{folder} holds an interrupted training; continue it with --resume, begin anew with --overwrite, "
                "or choose another --output_dir"
            )
        if model_file.exists():
            raise UserError(
                f"{folder} already holds a trained model; add --overwrite, or choose another --output_dir"
            )
    return True


def _is_of_the_last_run(folder: Path) -> bool:
    """Whether the model comes from the training that last began there, as far as its settings show."""
    try:
        begun = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    made = read_training(folder)
    return {**begun, "memory": None} == {**made, "memory": None}  # its size is found on the way


def read_training_state(
    state_file: Path, settings: Mapping[str, Any], model: EfficientAD, penalty: PenaltyImages
) -> dict | None:
    """The state of the interrupted training, or None where there is none.

    Raises:
        UserError: it began with other settings, another teacher or other penalty images.
    """
    if not state_file.exists():
        return None
    compared = {key: value for key, value in settings.items() if key not in MAY_DIFFER}
    state = read_state(state_file, "a training", "augmentation", compared)
    for name, tensor in model.teacher.state_dict().items():
        if not torch.equal(tensor, state["model"][f"teacher.{name}"]):
            raise UserError(
                f"{state_file} was made with another teacher than {settings['teacher']}; give that one with "
                "--weights, or begin anew with --overwrite"
            )
    if state["penalty"] != penalty.digest:
        raise UserError(
            f"{state_file} was made with other images for the penalty; give the same ones with "
            "--imagenet_train_path, or begin anew with --overwrite"
        )
    return state


@contextmanager
def naming_the_state(state_file: Path) -> Iterator[None]:
    """Add to an error of the file system, such as a full disk, that the saved state is whole."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not state_file.exists():
            raise
        raise UserError(
            f"{error.strerror}: {error.filename}; {state_file} is whole: solve that and continue with --resume"
        ) from None
