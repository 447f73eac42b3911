"""Read and write detectors and teacher weights: one self-describing file, or the six of other tools.

Nothing here ever unpickles code: every file is read by torch_files.
"""

from __future__ import annotations

import re
import reprlib
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import efficientad
from efficientad.data.views import SIDE, View
from efficientad.detector.calibration import Calibration
from efficientad.detector.model import MIRROR, NO_BORDER, UNFITTED_QUANTILES, EfficientAD, RawMaps
from efficientad.detector.networks import FEATURE_CHANNELS, infer_model_size
from efficientad.system.errors import UserError, require_folder
from efficientad.system.torch_files import read_torch_file, require_weights, write_atomically

MODEL_FILE = "model.pt"
FORMAT = "efficientad-detector"
# 4 knew no bit depth; 3 saw whole images at 256 x 256; 2 had no memory and always a student; 1 neither map_weights
# nor a calibration
FORMAT_VERSION = 5
_PLAIN = {"view": View().as_dict(), "border": NO_BORDER}  # of the versions before 4
_PLAIN_VALUES = (str, int, float, bool, type(None))
MOST_MEMORY_PATCHES = 200_000  # 154 MB in model.pt
_SHIPPED_WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
_NETWORK_FILES = {name: f"{name}_final.pth" for name in ("teacher", "student", "autoencoder")}
_STATISTICS_FILES = ("teacher_mean.pt", "teacher_std.pt", "quantiles.pt")
_QUANTILE_KEYS = (("q_st_start", "q_st_end"), ("q_ae_start", "q_ae_end"))


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

    Raises:
        UserError: neither is there, or a file is damaged, pickled, of another format or incomplete.
    """
    require_folder(folder, "train first, or name the training's folder with --weights_dir")
    if (folder / MODEL_FILE).is_file():
        model = _load_own(folder / MODEL_FILE)
    elif (folder / _NETWORK_FILES["teacher"]).is_file():
        model = _load_six_files(folder)
    else:
        raise UserError(
            f"{folder} holds no {MODEL_FILE}; train first, or name the training's folder with --weights_dir"
        )
    spread = model.quantiles[:, 1] - model.quantiles[:, 0]
    weights = (*model.map_weights.tolist(), *model.memory_weights.tolist(), *model.rim_weights.tolist())
    sound = (spread > 0).all() and spread.isfinite().all() and (model.teacher_std > 0).all()
    if not (sound and min(weights) >= 0 and sum(model.map_weights.tolist()) > 0):
        raise UserError(f"{folder} holds a detector whose statistics are degenerate; train it again")
    return model.to(device, memory_format=torch.channels_last).eval()


def read_training(folder: Path) -> dict[str, Any]:
    """The facts of the training in model.pt of `folder`; empty for the six files of other scripts."""
    if not (folder / MODEL_FILE).is_file():
        return {}
    contents = read_torch_file(folder / MODEL_FILE)
    training = contents.get("training") if isinstance(contents, dict) else None
    return dict(training) if isinstance(training, dict) else {}


def load_teacher_weights(model: EfficientAD, path: Path | None) -> Path:
    """Load pretrained teacher weights into model.teacher; returns the file they came from.

    Args:
        path: a state_dict with keys "0.weight", ... or "conv1.weight", ...; None for the shipped one.

    Raises:
        UserError: the file is missing, pickled, or no teacher of the model's size.
    """
    if path is None:
        path = _SHIPPED_WEIGHTS / f"teacher_{model.model_size}.pth"
        if not path.is_file():
            raise UserError(
                f"{path} is missing, so this copy of the toolkit is incomplete; get it again, or name pretrained "
                "weights with --weights FILE"
            )
    state = _sequential_keys(_read_state_dict(path), model.teacher)
    size = infer_model_size(state)
    if size is not None and size != model.model_size:
        raise UserError(f"{path} is a {size} teacher but --model_size is {model.model_size}")
    _load_state(model.teacher, state, path, f"{model.model_size} teacher")
    return path


def teacher_size(path: Path) -> str:
    """Whether a file holds a small or a medium teacher.

    Raises:
        UserError: the file is missing, pickled, or holds neither.
    """
    state = _read_state_dict(path)
    size = infer_model_size({"0.weight": state.get("0.weight", state.get("conv1.weight", torch.empty(0)))})
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
        state["rim_weights"] = torch.ones(len(RawMaps._fields))
    if version < 3:
        _upgrade(state)
        model.calibration = None  # its scores were maxima of maps, not means of the highest values
    _load_state(model, state, path, f"{model.model_size} detector")
    return model


def _upgraded_config(
    model_size: str, image_size: int, has_student: bool = True, memory_patches: int = 0
) -> dict[str, Any]:
    """The config of a detector of a version before 4 as one of version 4."""
    if type(image_size) is not int or image_size != SIDE:
        raise ValueError(f"image_size is {image_size}")
    return {"model_size": model_size, "has_student": has_student, "memory_patches": memory_patches, **_PLAIN}


def _build(
    model_size: str, view: dict[str, Any], border: str, has_student: bool, memory_patches: int
) -> EfficientAD:
    if border not in (NO_BORDER, MIRROR):
        raise ValueError(f"border is {border!r}")
    if not isinstance(has_student, bool):
        raise ValueError(f"has_student is {has_student!r}")
    if type(memory_patches) is not int or not 0 <= memory_patches <= MOST_MEMORY_PATCHES:
        raise ValueError(f"memory_patches is {memory_patches}")
    if not has_student and memory_patches == 0:
        raise ValueError("there is neither a student nor a memory")
    return EfficientAD(model_size, View.from_dict(view), border, has_student, memory_patches)


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
    missing = [name for name in (*_NETWORK_FILES.values(), *_STATISTICS_FILES) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}; the six files of a training belong together")
    states = {name: _read_state_dict(folder / file) for name, file in _NETWORK_FILES.items()}
    size = infer_model_size(states["teacher"])
    if size is None:
        raise UserError(f"{folder / _NETWORK_FILES['teacher']} holds no small or medium teacher")
    model = EfficientAD(size)
    for name, state in states.items():
        _load_state(model.get_submodule(name), state, folder / _NETWORK_FILES[name], f"{size} {name}")
    for name in ("teacher_mean", "teacher_std"):
        file = folder / f"{name}.pt"
        statistics = require_weights({name: read_torch_file(file)}, file)[name]
        if statistics.shape != (1, FEATURE_CHANNELS, 1, 1):
            raise UserError(f"{file} is not a tensor of shape 1 x {FEATURE_CHANNELS} x 1 x 1")
        model.get_buffer(name).copy_(statistics)
    model.quantiles.copy_(_read_quantiles(folder / "quantiles.pt"))
    return model


def _read_quantiles(path: Path) -> Tensor:
    quantiles = read_torch_file(path)
    keys = [key for pair in _QUANTILE_KEYS for key in pair]
    if not isinstance(quantiles, dict) or any(key not in quantiles for key in keys):
        raise UserError(f"{path} does not hold {', '.join(keys)}")
    try:
        rows = [[float(quantiles[key]) for key in pair] for pair in _QUANTILE_KEYS]
        return torch.tensor([*rows, UNFITTED_QUANTILES])
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{path} does not hold numbers as {', '.join(keys)}") from None


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    return require_weights(read_torch_file(path), path)


def _sequential_keys(state: dict[str, Tensor], network: nn.Sequential) -> dict[str, Tensor]:
    """Keys conv1.weight, conv2.bias, ... of other tools -> those of `network`, in the order of its layers."""
    named = {key: re.fullmatch(r"conv(\d{1,3})\.(weight|bias)", key) for key in state}
    if not all(named.values()):
        return state
    layers = [index for index, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
    numbers = {key: int(match[1]) for key, match in named.items() if match}
    if sorted(set(numbers.values())) != list(range(1, len(layers) + 1)):
        first = state.get("conv1.weight")  # a PDN of the other size: let the caller name it
        return {"0.weight": first} if first is not None else state
    return {f"{layers[numbers[key] - 1]}.{match[2]}": state[key] for key, match in named.items() if match}


def _load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path, kind: str) -> None:
    expected = network.state_dict()
    if expected.keys() != state.keys():
        raise UserError(f"{path} does not hold the weights of a {kind}: its layers have other names")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
            raise UserError(f"{path} does not hold the weights of a {kind}: {key} has shape {shapes}")
    network.load_state_dict(state)
