"""A backbone's weights from a file: no code from it is run, and it must fit the network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficientad.system.errors import UserError
from efficientad.system.torch_files import read_torch_file, refuse_unusual_file, require_weights

_WRAPPERS = ("state_dict", "model")  # keys under which training scripts save the weights
_PARALLEL = "module."  # prefix of every key of a network in DataParallel
# densenet's files have layer names that modules cannot have any more; torchvision renames them in the same way.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_CHUNK = 1 << 20  # bytes
_NAMED = 3


def load_weights(network: nn.Module, path: Path, name: str, heads: Sequence[str]) -> None:
    """Load the weights in the file, except those of a classifier with another number of classes.

    Args:
        path: .safetensors, or a state_dict saved by torch; also one below "state_dict" or "model".
        name: of the backbone, for messages.
        heads: modules that are classifiers; auxiliary ones (aux1, AuxLogits) are added.

    Raises:
        UserError: the file is missing, damaged or pickled, or keys or shapes are not the network's.
    """
    given = read_weights(path)
    state = network.state_dict()  # with the layers' versions, which load_state_dict needs
    own = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}

    def is_head(key: str) -> bool:
        return key.lower().startswith("aux") or any(key.startswith(f"{head}.") for head in heads)

    missing = [key for key in own if key not in given and not is_head(key)]
    unexpected = [key for key in given if key not in own and not is_head(key)]  # resnet101 has all keys of resnet50
    fitting = {key: value for key, value in given.items() if key in own and value.shape == own[key].shape}
    reshaped = [
        f"{key} is {_sizes(given[key])}, not {_sizes(own[key])}"
        for key in own
        if key in given and key not in fitting and not is_head(key)
    ]
    kinds = ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"))
    wrong = [f"{len(keys)} {kind} ({_first(keys)})" for keys, kind in kinds if keys]
    if wrong:
        raise UserError(f"{path} does not hold the weights of --backbone {name}: of its keys {', '.join(wrong)}")
    state.update(fitting)
    network.load_state_dict(state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The floating-point tensors of the file in float32, by the names of the network's modules.

    Counters and indices are left out: a network makes its own.

    Raises:
        UserError: the file is missing, damaged, pickled, or holds other things than tensors.
    """
    contents = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    for wrapper in _WRAPPERS:
        if isinstance(contents, Mapping) and isinstance(contents.get(wrapper), Mapping):
            contents = contents[wrapper]
    if isinstance(contents, Mapping):
        contents = {key: _as_float32(value) for key, value in contents.items() if not _counts(value)}
    weights = require_weights(contents, path)
    if all(key.startswith(_PARALLEL) for key in weights):
        weights = {key.removeprefix(_PARALLEL): tensor for key, tensor in weights.items()}
    return {_OLD_DENSENET.sub(r"\1\2.", key): tensor for key, tensor in weights.items()}


def file_digest(path: Path) -> str:
    """SHA-256 of the file's content, hexadecimal.

    Raises:
        UserError: it is no regular file.
    """
    refuse_unusual_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    refuse_unusual_file(path)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors; install it: pip install safetensors") from error
    try:
        return load_file(path)
    except Exception as error:  # the reader raises its own types and Python's on a damaged file
        if isinstance(error, OSError) and error.errno is not None:  # not readable at all
            raise
        raise UserError(f"{path} is not a safetensors file, or damaged") from None


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()


def _as_float32(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, Tensor) else value


def _sizes(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
