"""Whether a training may begin in its folder, and the state from which an interrupted one is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from efficientad.detector.checkpoint import MODEL_FILE, load_model, read_training
from efficientad.detector.model import EfficientAD
from efficientad.system.distributed import say
from efficientad.system.errors import UserError
from efficientad.system.torch_files import read_state
from efficientad.training.options import MAY_DIFFER, TrainingOptions
from efficientad.training.penalty_images import PenaltyImages

STATE_FILE = "checkpoint.pt"
IMAGE_FILES = "image_files"  # a setting: digest_files of the training images
SETTINGS_FILE = "args.json"


def is_finished(folder: Path, options: TrainingOptions) -> bool:
    """Whether --resume finds a finished training in the folder, which this run has locked; see compare_finished.

    Raises:
        UserError: a model or an interrupted training is in the way.
    """
    model_file, state_file = folder / MODEL_FILE, folder / STATE_FILE
    if options.resume and not state_file.exists():
        if model_file.exists() and _is_of_the_last_run(folder):
            return True
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
        refuse_foreign_settings(folder, "choose another --output_dir")
    return False


def refuse_foreign_settings(folder: Path, advice: str) -> None:
    """Raise a UserError with the advice if there is an args.json that no training has left."""
    file = folder / SETTINGS_FILE
    if not file.exists():
        return
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict) or "train_images" not in settings:
        raise UserError(f"{file} is not of a training with this toolkit; move it away, or {advice}")


def _is_of_the_last_run(folder: Path) -> bool:
    """Whether the model comes from the training that last began there, as far as its settings show."""
    try:
        begun = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return _without_found(begun) == _without_found(read_training(folder))


def _without_found(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings but for the size of the memory, which is found on the way; models of old say it as "memory"."""
    return {key: value for key, value in settings.items() if key not in ("memory", "memory_patches")}


def compare_finished(folder: Path, settings: Mapping[str, Any], model: EfficientAD) -> None:
    """Make sure that the finished training in the folder is the one that is asked for.

    Args:
        settings: those asked for.
        model: with the teacher asked for.

    Raises:
        UserError: it was made with other settings, images or another teacher.
    """
    advice = f"to go on from it use --init_from {folder / MODEL_FILE} and another --output_dir, or --overwrite"
    then = read_training(folder)
    known = settings.keys() & then.keys()  # fewer than all for models of earlier versions
    known -= MAY_DIFFER if "memory_patches" in then else {*MAY_DIFFER, "memory"}
    differing = [
        f"{key} {then[key]}, now {value}"
        for key, value in settings.items()
        if key in known and str(then[key]) != str(value)
    ]
    if differing:
        raise UserError(f"{folder} holds a model that is trained otherwise ({'; '.join(differing)}); {advice}")
    if then.get(IMAGE_FILES, settings[IMAGE_FILES]) != settings[IMAGE_FILES]:
        raise UserError(f"{folder} holds a model that is trained on other images; {advice}")
    kept = load_model(folder, torch.device("cpu")).teacher.state_dict()
    if any(not torch.equal(tensor, kept[name]) for name, tensor in model.teacher.state_dict().items()):
        raise UserError(f"{folder} holds a model with another teacher than {settings['teacher']}; {advice}")


def digest_files(root: Path, paths: Iterable[Path]) -> str:
    """A short digest of the names below `root` and the sizes of files, to tell data sets apart."""

    def size(path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError:  # which is reported when it is read
            return -1

    files = sorted((path.relative_to(root).as_posix(), size(path)) for path in paths)
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


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
