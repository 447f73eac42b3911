"""The networks of other EfficientAD tools, as state_dicts of ours.

They come as state_dicts, by position ("0.weight") or by name ("conv1.weight", "encoder.enconv1.weight"), or as
whole pickled nn.Sequential. Of the latter only the layers' names, settings and weights are read, and only networks
that compute what ours do are taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from efficientad.detector.networks import infer_model_size
from efficientad.system.errors import UserError, printable
from efficientad.system.torch_files import PickledObject, read_foreign_file, require_weights

_SEQUENTIAL = "torch.nn.modules.container.Sequential"
_LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {  # with the settings that change what they compute
    "torch.nn.modules.conv.Conv2d": (
        nn.Conv2d,
        ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    ),
    "torch.nn.modules.activation.ReLU": (nn.ReLU, ()),
    "torch.nn.modules.pooling.AvgPool2d": (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "divisor_override"),
    ),
    "torch.nn.modules.upsampling.Upsample": (nn.Upsample, ("size", "scale_factor", "mode", "align_corners")),
    "torch.nn.modules.dropout.Dropout": (nn.Dropout, ()),  # does nothing once the training is over
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_buffers")  # which would change the result
_NAMED = re.compile(r"(encoder\.en|decoder\.de)?conv(\d{1,3})\.(weight|bias)")
_TEACHER_KEY = "teacher.conv1.weight"  # how a network of anomalib is recognised
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class ForeignNetwork:
    """One network of a file."""

    path: Path
    weights: Mapping[str, Tensor]  # a state_dict; of a whole network by the number of the convolution
    layers: list[PickledObject] | None = None  # of a whole network

    @property
    def model_size(self) -> str | None:
        """small or medium, for a PDN; None for anything else."""
        keys = ("0.weight", "conv1.weight")
        return infer_model_size(next((self.weights[key] for key in keys if key in self.weights), None))


def read_network(path: Path) -> ForeignNetwork:
    """The network in a file: a state_dict, one below "state_dict", or a whole nn.Sequential.

    Of anomalib's checkpoint it is the teacher.

    Raises:
        UserError: there is none, or the file is missing, damaged, or has other objects in its network.
    """
    contents, names = read_foreign_file(path)
    if isinstance(contents, PickledObject):
        strange = sorted(names - _LAYERS.keys() - {_SEQUENTIAL})
        if strange:
            raise UserError(
                f"{path} holds a pickled {printable(strange[0][:60])}, and no network of an EfficientAD has that; "
                "nothing of it is run"
            )
        layers = _flatten(contents, path)
        return ForeignNetwork(path, require_weights(_weights_of(layers, path), path), layers)
    if isinstance(contents, Mapping) and isinstance(contents.get("state_dict"), Mapping):
        contents = contents["state_dict"]
    prefix = anomalib_prefix(contents, path)
    if prefix is not None:
        contents = below(contents, f"{prefix}teacher.")
    return ForeignNetwork(path, require_weights(contents, path))


def anomalib_prefix(state: Any, path: Path) -> str | None:
    """What stands before "teacher.conv1.weight" in a state_dict of anomalib; None: it is not one."""
    keys = state if isinstance(state, Mapping) else ()
    found = [key[: -len(_TEACHER_KEY)] for key in keys if isinstance(key, str) and key.endswith(_TEACHER_KEY)]
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} teachers; save one model in a file")
    return found[0] if found else None


def below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The part of a state_dict whose keys begin with the prefix, without it."""
    parts = {key: value for key, value in state.items() if isinstance(key, str) and key.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in parts.items()}


def load_network(network: nn.Sequential, foreign: ForeignNetwork, kind: str, padded_too: bool = False) -> None:
    """Give one of our networks the weights of a foreign one.

    Args:
        kind: for people, as in "small teacher".
        padded_too: take a whole network, too, that pads what it sees, as a PDN does while it is pretrained.

    Raises:
        UserError: it is another network, and the message names the first difference.
    """
    if foreign.layers is None:
        state = _by_position(foreign.weights, network)
    else:
        _compare(foreign, network, kind, padded_too)
        places = [index for index, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
        pairs = [(key.partition("."), tensor) for key, tensor in foreign.weights.items()]
        state = {f"{places[int(number)]}.{name}": tensor for (number, _, name), tensor in pairs}
    load_state(network, state, foreign.path, kind)


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path, kind: str) -> None:
    """load_state_dict, with a line if it is not the network's.

    Raises:
        UserError
    """
    expected = network.state_dict()
    if expected.keys() != state.keys():
        raise UserError(f"{path} does not hold the weights of a {kind}: its layers have other names")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
            raise UserError(f"{path} does not hold the weights of a {kind}: {key} has shape {shapes}")
    network.load_state_dict(state)


def _by_position(state: Mapping[str, Tensor], network: nn.Sequential) -> Mapping[str, Tensor]:
    """Keys conv1.weight, decoder.deconv2.bias, ... -> those of `network`, in the order of its convolutions."""
    named = {key: _NAMED.fullmatch(key) for key in state}
    places = [index for index, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
    # the encoder's before the decoder's, each by its number
    order = sorted({(match[1] == "decoder.de", int(match[2])) for match in named.values() if match})
    if not all(named.values()) or len(order) != len(places):
        return state  # by position already, or load_state says that the names are others
    place = dict(zip(order, places, strict=True))
    return {
        f"{place[match[1] == 'decoder.de', int(match[2])]}.{match[3]}": state[key] for key, match in named.items()
    }


def _flatten(whole: PickledObject, path: Path) -> list[PickledObject]:
    """The layers of an nn.Sequential, and of those within it, in order."""
    if whole.class_name != _SEQUENTIAL:
        raise UserError(f"{path} holds a single layer ({whole.class_name}) and no network")
    layers: list[PickledObject] = []
    waiting = [whole]
    while waiting:
        module = waiting.pop()
        state = module.state if isinstance(module, PickledObject) else None
        if not isinstance(state, dict) or len(layers) > _MOST_LAYERS:
            raise UserError(f"{path} holds a network that is damaged: no layers as torch saves them")
        if any(len(held) if isinstance(held := state.get(name, {}), Mapping) else True for name in _HOOKS):
            raise UserError(f"{path} holds a network with hooks or buffers, which no network of an EfficientAD has")
        if module.class_name != _SEQUENTIAL:
            layers.append(module)
        elif isinstance(inner := state.get("_modules"), Mapping):
            waiting += reversed(inner.values())
        else:
            raise UserError(f"{path} holds a network that is damaged: it has no layers")
    return layers


def _weights_of(layers: list[PickledObject], path: Path) -> dict[str, Any]:
    """Of the convolutions, by their number and name."""
    convolutions = [layer for layer in layers if _LAYERS[layer.class_name][0] is nn.Conv2d]
    found = {}
    for number, layer in enumerate(convolutions):
        parameters = layer.state.get("_parameters")
        if not isinstance(parameters, Mapping):
            raise UserError(f"{path} holds a network that is damaged: a convolution has no weights")
        found |= {f"{number}.{name}": value for name, value in parameters.items() if value is not None}
    return found


def _compare(foreign: ForeignNetwork, network: nn.Sequential, kind: str, padded_too: bool) -> None:
    """Raise a UserError unless the whole network computes what ours does."""
    theirs = [layer for layer in foreign.layers or () if _LAYERS[layer.class_name][0] is not nn.Dropout]
    ours = [layer for layer in network if not isinstance(layer, nn.Dropout)]
    refused = f"{foreign.path} does not hold a {kind} as in the paper"
    if len(theirs) != len(ours):
        raise UserError(f"{refused}: it has {len(theirs)} layers besides dropout, not {len(ours)}")
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True), start=1):
        made, settings = _LAYERS[their.class_name]
        if made is not type(our):
            raise UserError(f"{refused}: layer {number} is {made.__name__}, not {type(our).__name__}")
        for name in settings:
            value, wanted = _plain(their.state.get(name, getattr(our, name))), _plain(getattr(our, name))
            if value != wanted and not (padded_too and name == "padding"):
                raise UserError(f"{refused}: layer {number}, {made.__name__}, has {name} {value}, not {wanted}")


def _plain(setting: Any) -> Any:
    """A setting of a layer such that equal ones compare equal: 3 and (3, 3), None and False."""
    if isinstance(setting, list | tuple):
        numbers = tuple(_plain(number) for number in setting)
        return numbers[0] if len(numbers) == 2 and numbers[0] == numbers[1] else numbers
    if isinstance(setting, str | int | float):
        return setting
    return False if setting is None else type(setting).__name__
