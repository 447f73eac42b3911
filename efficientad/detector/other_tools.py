"""Detectors that other EfficientAD tools have trained: their networks and what they have fitted to them.

A folder of three networks, with or without the files of their statistics, or a checkpoint of anomalib. All of them
see images of 256 x 256 with ImageNet's normalization, and no border.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientad.data.views import SIDE
from efficientad.detector.anomaly_maps import UNFITTED_QUANTILES
from efficientad.detector.foreign_networks import (
    ForeignNetwork,
    anomalib_prefix,
    below,
    load_network,
    read_network,
)
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import FEATURE_CHANNELS
from efficientad.system.errors import UserError
from efficientad.system.torch_files import PickledObject, read_foreign_file, read_torch_file, require_weights

NETWORK_FILES = {name: f"{name}_final.pth" for name in ("teacher", "student", "autoencoder")}
STATISTICS_FILES = ("teacher_mean.pt", "teacher_std.pt", "quantiles.pt")
_QUANTILE_KEYS = ("q_st_start", "q_st_end", "q_ae_start", "q_ae_end")
_ANOMALIB_QUANTILES = ("qa_st", "qb_st", "qa_ae", "qb_ae")
_ANOMALIB_NETWORKS = {"teacher": "teacher", "student": "student", "autoencoder": "ae"}
_ANOMALIB_SETTINGS = {"padding": False, "pad_maps": True, "teacher_out_channels": FEATURE_CHANNELS}
_DEEPEST = 30  # objects within objects, in which a size is looked for


@dataclass(frozen=True)
class ForeignDetector:
    """What another tool has left of a training."""

    path: Path
    networks: Mapping[str, ForeignNetwork]  # teacher, student and autoencoder
    statistics: tuple[Tensor, Tensor] | None  # mean and deviation of the teacher's features, 1 x 384 x 1 x 1
    quantiles: Tensor | None  # as in EfficientAD
    notes: tuple[str, ...] = ()  # for the user


def read_foreign_detector(path: Path) -> ForeignDetector:
    """What is in the folder or file of another tool.

    Raises:
        UserError: that is none, it is incomplete or damaged, or it would compute something else here than there.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; name the folder or file of another tool with --input")
    return read_folder(path) if path.is_dir() else _read_anomalib(path)


def read_folder(folder: Path) -> ForeignDetector:
    """Three networks, as state_dicts or whole, and the statistics and quantiles, if they are there.

    Raises:
        UserError: see read_foreign_detector.
    """
    missing = [name for name in NETWORK_FILES.values() if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}; name a folder with {', '.join(NETWORK_FILES.values())}, or a "
            "checkpoint of anomalib (.ckpt)"
        )
    networks = {name: read_network(folder / file) for name, file in NETWORK_FILES.items()}
    mean, std, quantiles = (folder / name for name in STATISTICS_FILES)
    if not (mean.is_file() and std.is_file()):
        unused = [name for name in STATISTICS_FILES if (folder / name).is_file()]
        missing = " and ".join(file.name for file in (mean, std) if not file.is_file())
        notes = (f"Note: {' and '.join(unused)} not used, since {missing} is missing",) if unused else ()
        return ForeignDetector(folder, networks, None, None, notes)
    return ForeignDetector(
        folder,
        networks,
        (_read_statistics(mean), _read_statistics(std)),
        _read_quantiles(quantiles) if quantiles.is_file() else None,
    )


def build(found: ForeignDetector) -> EfficientAD:
    """A detector with these networks and what is fitted to them already.

    Raises:
        UserError: the networks are not EfficientAD's, or not of one size.
    """
    size = found.networks["teacher"].model_size
    if size is None:
        raise UserError(f"{found.networks['teacher'].path} holds no small or medium teacher")
    model = EfficientAD(size)
    for name, network in found.networks.items():
        load_network(model.get_submodule(name), network, f"{size} {name}")
    if found.statistics is not None:
        model.teacher_mean.copy_(found.statistics[0])
        model.teacher_std.copy_(found.statistics[1])
    if found.quantiles is not None:
        model.quantiles.copy_(found.quantiles)
    return model


def require_sound(model: EfficientAD, message: str) -> None:
    """Raise a UserError with the message if the statistics of a detector would give maps without meaning."""
    spread = model.quantiles[:, 1] - model.quantiles[:, 0]
    weights = (*model.map_weights.tolist(), *model.memory_weights.tolist(), *model.rim_weights.tolist())
    sound = (spread > 0).all() and spread.isfinite().all() and (model.teacher_std > 0).all()
    if model.global_score is not None:
        levels = model.global_score.levels
        sound = sound and (levels[:, 1] > levels[:, 0]).all() and model.global_score.peak >= 0
    if not (sound and min(weights) >= 0 and sum(model.map_weights.tolist()) > 0):
        raise UserError(message)


def _read_anomalib(path: Path) -> ForeignDetector:
    """A checkpoint of anomalib, or the state_dict of one.

    Anomalib's maps are padded before they are normalized, ours afterwards, so that they differ at the edge.
    """
    contents, _ = read_foreign_file(path)
    state = contents
    if isinstance(contents, Mapping) and isinstance(contents.get("state_dict"), Mapping):
        state = contents["state_dict"]
    prefix = anomalib_prefix(state, path)
    if prefix is None:
        whole = isinstance(contents, PickledObject)
        hint = "name the folder of the three networks" if whole else "it has no key teacher.conv1.weight"
        raise UserError(f"{path} is no checkpoint of anomalib's EfficientAD (.ckpt): {hint}")
    _refuse_other_settings(contents, path)
    parts = below(state, prefix)
    networks = {}
    for name, theirs in _ANOMALIB_NETWORKS.items():
        weights = below(parts, f"{theirs}.")
        if not weights:
            raise UserError(f"{path} lacks {prefix}{theirs}. ...; it holds no complete EfficientAD")
        networks[name] = ForeignNetwork(path, require_weights(weights, path))
    statistics, quantiles = below(parts, "mean_std."), below(parts, "quantiles.")
    assumed = ()
    if not _settings(contents).keys() & _ANOMALIB_SETTINGS.keys():
        taken = f"anomalib's defaults are taken for granted: no padding, images of {SIDE}x{SIDE}"
        assumed = (f"Note: the file does not say how its networks were trained; {taken}",)
    return ForeignDetector(
        path,
        networks,
        _anomalib_statistics(statistics, path),
        _anomalib_quantiles(quantiles, path),
        (
            "Note: at the edge, where patches are missing, anomalib's maps fall below 0, those here are 0; inside "
            "they are the same, times 255",
            *assumed,
        ),
    )


def _refuse_other_settings(contents: Any, path: Path) -> None:
    """Raise a UserError if the checkpoint says that its networks were used otherwise than ours are."""
    settings = _settings(contents)
    for name, wanted in _ANOMALIB_SETTINGS.items():
        value = settings.get(name, wanted)
        if not isinstance(value, bool | int) or value != wanted:
            raise UserError(
                f"{path} was trained with {name}={str(value)[:20]}, which this toolkit does not compute; train it "
                f"with {name}={wanted}"
            )
    for transform in _changes(contents, 0):
        if transform != f"Resize({SIDE}, {SIDE})":
            raise UserError(
                f"{path} was trained with images changed by {transform}; here they are resized to {SIDE}x{SIDE}, "
                "and nothing else is done"
            )


def _settings(contents: Any) -> Mapping[str, Any]:
    """How the networks of a checkpoint were made, empty if it does not say; a dict, or an argparse.Namespace."""
    settings = contents.get("hyper_parameters") if isinstance(contents, Mapping) else None
    if isinstance(settings, PickledObject):
        settings = settings.state
    return settings if isinstance(settings, Mapping) else {}


def _changes(value: Any, depth: int) -> Iterator[str]:
    """Those transforms of torchvision in a checkpoint that decide what its networks see."""
    if depth > _DEEPEST or isinstance(value, Tensor):
        return
    if isinstance(value, PickledObject):
        size = value.state.get("size") if isinstance(value.state, Mapping) else None
        kind = value.class_name.rpartition(".")[2]
        if kind in ("Resize", "CenterCrop", "Normalize"):
            numbers = size if isinstance(size, list | tuple) else [size]
            yield f"{kind}({', '.join(str(number) for number in numbers if isinstance(number, int))})"
        yield from _changes(value.state, depth + 1)
        yield from _changes(value.arguments, depth + 1)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _changes(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _changes(inner, depth + 1)


def _anomalib_statistics(found: Mapping[str, Any], path: Path) -> tuple[Tensor, Tensor] | None:
    """None: they were not fitted yet."""
    if not found.keys() >= {"mean", "std"}:
        return None
    tensors = require_weights({name: found[name] for name in ("mean", "std")}, path)
    if not any(tensor.any() for tensor in tensors.values()):
        return None
    return tuple(_of_features(tensor, path, f"mean_std.{name}") for name, tensor in tensors.items())


def _anomalib_quantiles(found: Mapping[str, Any], path: Path) -> Tensor | None:
    """None: they were not fitted yet, as before the first validation."""
    if not found.keys() >= set(_ANOMALIB_QUANTILES):
        return None
    tensors = require_weights({name: found[name] for name in _ANOMALIB_QUANTILES}, path)
    if any(tensor.numel() != 1 for tensor in tensors.values()):
        raise UserError(f"{path} is damaged: its quantiles are no numbers")
    values = [float(tensor) for tensor in tensors.values()]
    return _rows(values) if any(values) else None


def _read_statistics(path: Path) -> Tensor:
    name = path.stem
    return _of_features(require_weights({name: read_torch_file(path)}, path)[name], path, "")


def _of_features(statistics: Tensor, path: Path, name: str) -> Tensor:
    if statistics.shape != (1, FEATURE_CHANNELS, 1, 1):
        what = f"{path} holds {name} that" if name else f"{path}"
        raise UserError(f"{what} is not a tensor of shape 1 x {FEATURE_CHANNELS} x 1 x 1")
    return statistics


def _read_quantiles(path: Path) -> Tensor:
    quantiles = read_torch_file(path)
    if not isinstance(quantiles, dict) or any(key not in quantiles for key in _QUANTILE_KEYS):
        raise UserError(f"{path} does not hold {', '.join(_QUANTILE_KEYS)}")
    try:
        return _rows([float(quantiles[key]) for key in _QUANTILE_KEYS])
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{path} does not hold numbers as {', '.join(_QUANTILE_KEYS)}") from None


def _rows(values: list[float]) -> Tensor:
    """EfficientAD.quantiles, of the starts and ends of two maps."""
    return torch.tensor([values[:2], values[2:], UNFITTED_QUANTILES])
