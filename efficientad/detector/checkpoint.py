"""Read and write detectors and teacher weights: one self-describing file, or the six of other tools.

Nothing here ever unpickles code: every file is read by torch_files.
"""

from __future__ import annotations

import reprlib
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import efficientad
from efficientad.data.views import SIDE, View
from efficientad.detector.anomaly_maps import LOCAL_MAPS, UNFITTED_QUANTILES
from efficientad.detector.calibration import Calibration
from efficientad.detector.foreign_networks import load_network, load_state, read_network
from efficientad.detector.model import MIRROR, NO_BORDER, EfficientAD
from efficientad.detector.networks import FEATURE_CHANNELS
from efficientad.detector.other_tools import NETWORK_FILES, STATISTICS_FILES, build, read_folder, require_sound
from efficientad.system.arguments import training_folder
from efficientad.system.errors import UserError
from efficientad.system.torch_files import read_torch_file, require_weights, write_atomically

MODEL_FILE = "model.pt"
FORMAT = "efficientad-detector"
# 5 had no global score; 4 knew no bit depth; 3 saw whole images at 256 x 256; 2 had no memory and always a student;
# 1 neither map_weights nor a calibration
FORMAT_VERSION = 6
_PLAIN = {"view": View().as_dict(), "border": NO_BORDER}  # of the versions before 4
_PLAIN_VALUES = (str, int, float, bool, type(None))
MOST_MEMORY_PATCHES = 200_000  # 154 MB in model.pt
_SHIPPED_WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


def save_model(model: EfficientAD, path: Path, training: Mapping[str, Any]) -> None:
    """Write the whole detector to `path`, which appears complete or not at all.

    Args:
        training: plain numbers, strings and lists that say how it was trained.
    """
    contents = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": {
            "model_size": model.model_size,
            "view": model.view.as_dict(),
            "border": model.border,
            "has_student": model.student is not None,
            "memory_patches": len(model.memory),
            "has_global_score": model.global_score is not None,
        },
        "state_dict": {
            key: (tensor.half() if key == "memory" else tensor).cpu().contiguous()  # it came from half precision
            for key, tensor in model.state_dict().items()
        },
        "calibration": asdict(model.calibration) if model.calibration else None,
        "training": dict(training),
        "versions": {"efficientad": efficientad.__version__, "torch": str(torch.__version__)},
    }
    write_atomically(contents, path)


def load_model(folder: Path, device: torch.device) -> EfficientAD:
    """The detector of a training's folder, in eval mode on `device`.

    Reads model.pt or, where there is none, the six files of other EfficientAD scripts.

    Args:
        folder: or its model.pt.

    Raises:
        UserError: neither is there, or a file is damaged, pickled, of another format or incomplete.
    """
    folder = training_folder(folder)
    if not folder.is_dir():
        if folder.is_file():
            raise UserError(
                f"{folder} is not a folder; name the training's folder with --weights_dir, or, if another tool "
                f"trained it, make one with: {conversion_command(folder)}"
            )
        raise UserError(f"{folder} does not exist; train first, or name the training's folder with --weights_dir")
    if (folder / MODEL_FILE).is_file():
        model = _load_own(folder / MODEL_FILE)
    elif (folder / NETWORK_FILES["teacher"]).is_file():
        model = _load_six_files(folder)
    else:
        raise UserError(
            f"{folder} holds no {MODEL_FILE}; train first, or name the training's folder with --weights_dir"
        )
    require_sound(model, f"{folder} holds a detector whose statistics are degenerate; train it again")
    return model.to(device, memory_format=torch.channels_last).eval()


def conversion_command(path: Path) -> str:
    """The command line that makes a training's folder of what another tool left."""
    return f"python -m efficientad.convert --input {shlex.quote(str(path))} --images GOOD --output DIR"


def read_training(folder: Path) -> dict[str, Any]:
    """The facts of the training in model.pt of `folder`; empty for the six files of other scripts."""
    folder = training_folder(folder)
    if not (folder / MODEL_FILE).is_file():
        return {}
    contents = read_torch_file(folder / MODEL_FILE)
    training = contents.get("training") if isinstance(contents, dict) else None
    return dict(training) if isinstance(training, dict) else {}


def load_teacher_weights(model: EfficientAD, path: Path | None) -> Path:
    """Load pretrained teacher weights into model.teacher; returns the file they came from.

    Args:
        path: a state_dict with keys "0.weight", ... or "conv1.weight", ..., one below "state_dict", anomalib's
            checkpoint, or a whole pickled nn.Sequential; None for the shipped one.

    Raises:
        UserError: the file is missing, has pickled objects of other kinds, or no teacher of the model's size.
    """
    if path is None:
        path = _SHIPPED_WEIGHTS / f"teacher_{model.model_size}.pth"
        if not path.is_file():
            raise UserError(
                f"{path} is missing, so this copy of the toolkit is incomplete; get it again, or name pretrained "
                "weights with --weights FILE"
            )
    teacher = read_network(path)
    if teacher.model_size not in (None, model.model_size):
        raise UserError(f"{path} is a {teacher.model_size} teacher but --model_size is {model.model_size}")
    load_network(model.teacher, teacher, f"{model.model_size} teacher", padded_too=True)
    return path


def teacher_size(path: Path) -> str:
    """Whether a file holds a small or a medium teacher.

    Raises:
        UserError: the file is missing, has pickled objects of other kinds, or holds neither.
    """
    size = read_network(path).model_size
    if size is None:
        raise UserError(f"{path} holds no small or medium teacher")
    return size


def _load_own(path: Path) -> EfficientAD:
    contents = read_torch_file(path)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise UserError(f"{path} is not a detector saved by train.py")
    version = contents.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(f"{path} was saved by a newer version of this toolkit; update to read it")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path} is damaged: its version is {reprlib.repr(version)}")
    state = require_weights(contents.get("state_dict"), path)
    try:
        config = contents["config"] if version >= 4 else _upgraded_config(**contents["config"])
        model = _build(**config)
        if contents.get("calibration") is not None:
            model.calibration = Calibration.from_dict(contents["calibration"])
        model.provenance = _read_provenance(contents)
    except (KeyError, TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 200)
        raise UserError(f"{path} is damaged: no complete description of a detector ({reason})") from None
    if version < 4:
        state["rim_weights"] = torch.ones(LOCAL_MAPS)
    if version < 3:
        _upgrade(state)
        model.calibration = None  # its scores were maxima of maps, not means of the highest values
    load_state(model, state, path, f"{model.model_size} detector")
    return model


def _upgraded_config(
    model_size: str, image_size: int, has_student: bool = True, memory_patches: int = 0
) -> dict[str, Any]:
    """The config of a detector of a version before 4 as one of version 4."""
    if type(image_size) is not int or image_size != SIDE:
        raise ValueError(f"image_size is {image_size}")
    return {"model_size": model_size, "has_student": has_student, "memory_patches": memory_patches, **_PLAIN}


def _build(
    model_size: str,
    view: dict[str, Any],
    border: str,
    has_student: bool,
    memory_patches: int,
    has_global_score: bool = False,  # as before version 6
) -> EfficientAD:
    if border not in (NO_BORDER, MIRROR):
        raise ValueError(f"border is {border!r}")
    for name, value in (("has_student", has_student), ("has_global_score", has_global_score)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
    if type(memory_patches) is not int or not 0 <= memory_patches <= MOST_MEMORY_PATCHES:
        raise ValueError(f"memory_patches is {memory_patches}")
    if not has_student and memory_patches == 0:
        raise ValueError("there is neither a student nor a memory")
    return EfficientAD(model_size, View.from_dict(view), border, has_student, memory_patches, has_global_score)


def _upgrade(state: dict[str, Tensor]) -> None:
    """Turn the state_dict of a detector of version 1 or 2 into one of version 3."""
    state.setdefault("map_weights", torch.tensor((0.5, 0.5)))  # version 1 had none
    state["memory"], state["memory_weights"] = torch.zeros(0, FEATURE_CHANNELS), torch.zeros(0)
    for key, row in (("map_weights", torch.zeros(1)), ("quantiles", torch.tensor([UNFITTED_QUANTILES]))):
        if key in state and state[key].shape == (2, *row.shape[1:]):  # else _load_state says that it is damaged
            state[key] = torch.cat([state[key], row])


def _read_provenance(contents: Mapping[str, Any]) -> dict[str, Any]:
    """How the detector was trained, and with which versions; see EfficientAD.provenance.

    Raises:
        ValueError: that is not plain values by name.
    """
    training, versions = ({} if contents.get(key) is None else contents[key] for key in ("training", "versions"))
    if not (_is_plain(training) and isinstance(training, dict) and isinstance(training.get("dataset", ""), str)):
        raise ValueError("it does not say how it was trained, or not in plain values")
    if not (
        isinstance(versions, dict) and all(isinstance(text, str) for pair in versions.items() for text in pair)
    ):
        raise ValueError("its versions are not texts")
    return {**training, "versions": versions}


def _is_plain(value: Any) -> bool:
    """Whether it is a number, text, None, or a list or dict of these; read_torch_file bounds how deep they are."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN_VALUES)


def _load_six_files(folder: Path) -> EfficientAD:
    found = read_folder(folder)
    if found.statistics is None or found.quantiles is None:
        missing = [name for name in STATISTICS_FILES if not (folder / name).is_file()]
        raise UserError(f"{folder} lacks {', '.join(missing)}; fit that with: {conversion_command(folder)}")
    return build(found)
