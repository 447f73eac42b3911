"""A backbone's weights from a file, for networks of torchvision, timm and efficientnet_lite."""

import hashlib
import re
import sys

import pytest
import torch
from torch import nn
from torchvision import models

from efficientad.pretraining.backbone_weights import file_digest, load_weights, read_weights
from efficientad.pretraining.backbones import Backbone, load_backbone
from efficientad.system.errors import UserError

IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def trained(network):
    """The network with other weights than any that it is built with, its normalization's statistics included."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.mul_(1.3).add_(0.1 * torch.rand(tensor.shape, generator=generator))
            elif key.endswith("num_batches_tracked"):
                tensor.fill_(9)
    return network.eval()


@pytest.fixture
def no_network(monkeypatch):
    def fetch(*args, **kwargs):
        raise AssertionError("something is fetched")

    for name in ("torchvision.models._api.load_state_dict_from_url", "torch.hub.load_state_dict_from_url"):
        monkeypatch.setattr(name, fetch)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_features_are_those_of_the_network_that_was_saved(no_network, tmp_path, suffix):
    source = trained(models.resnet18(weights=None, num_classes=7))
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), file)
    else:
        pytest.importorskip("safetensors.torch").save_file(source.state_dict(), file)
    fine, coarse = load_backbone("resnet18", weights=file)(IMAGES)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        hidden = source.maxpool(source.relu(source.bn1(source.conv1((IMAGES - mean) / std))))
        second = source.layer2(source.layer1(hidden))
        assert torch.equal(fine, second) and torch.equal(coarse, source.layer3(second))


def test_the_file_of_torchvision_gives_what_torchvision_makes_of_it(monkeypatch, tmp_path):
    """Googlenet has auxiliary classifiers, and normalizes its input anew where torchvision fetched the weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "googlenet-1378be20.pth"
    file.parent.mkdir()
    torch.save(trained(models.googlenet(weights=None, init_weights=False)).state_dict(), file)
    fetched = load_backbone("googlenet")(IMAGES)
    moved = file.rename(tmp_path / "mine.pth")
    for ours, theirs in zip(load_backbone("googlenet", weights=moved)(IMAGES), fetched, strict=True):
        assert torch.equal(ours, theirs)


def test_timm_normalizes_as_its_network_was_trained(no_network, tmp_path):
    timm = pytest.importorskip("timm")
    source = trained(timm.create_model("test_resnet", num_classes=5))
    file = tmp_path / "weights.pth"
    torch.save(source.state_dict(), file)
    backbone = load_backbone("timm:test_resnet", weights=file)
    assert backbone.layers == ("layer2", "layer3")
    theirs = Backbone(source, backbone.layers, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for mine, expected in zip(backbone(IMAGES), theirs(IMAGES), strict=True):
        assert torch.equal(mine, expected)
    assert [features.shape[-1] for features in backbone(IMAGES)] == [8, 4]
    with pytest.raises(UserError, match="weights.pth does not hold the weights of --backbone timm:test_convnext"):
        load_backbone("timm:test_convnext", weights=file)


def test_efficientnet_lite_needs_only_the_package_of_its_code(tmp_path):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    source = trained(package.EfficientNet.from_name("efficientnet-lite1"))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = load_backbone("efficientnet_lite1", weights=tmp_path / "weights.pth")
    for mine, expected in zip(backbone(IMAGES), Backbone(source, backbone.layers)(IMAGES), strict=True):
        assert torch.equal(mine, expected)


def small_network(classes=4):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def test_a_classifier_of_another_width_is_left_out(tmp_path):
    source, network = trained(small_network(9)), small_network()
    auxiliary = {"AuxLogits.fc.weight": torch.ones(9, 4)}
    torch.save(source.state_dict() | auxiliary, tmp_path / "weights.pth")
    load_weights(network, tmp_path / "weights.pth", "small", ["3"])
    assert torch.equal(network[0].weight, source[0].weight)
    assert torch.equal(network[1].running_var, source[1].running_var)
    with pytest.raises(UserError, match="its keys 2 of another shape .3.weight is 9 x 4, not 4 x 4, 3.bias is"):
        load_weights(network, tmp_path / "weights.pth", "small", [])


def test_what_does_not_fit_is_counted_and_named(tmp_path):
    network, file = small_network(), tmp_path / "weights.pth"
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    other = trained(small_network()).state_dict()
    renamed = {f"x{key}" if key[0] == "1" else key: tensor for key, tensor in other.items()}
    torch.save(renamed | {"0.bias": torch.zeros(5)}, file)
    message = (
        f"{file} does not hold the weights of --backbone small: of its keys 4 missing (1.weight, 1.bias, "
        "1.running_mean, ...), 4 unexpected (x1.weight, x1.bias, x1.running_mean, ...), 1 of another shape "
        "(0.bias is 5, not 4)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        load_weights(network, file, "small", ["3"])
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())  # untouched


def test_more_layers_than_the_network_has_are_refused(tmp_path):
    deeper = nn.Sequential(*small_network(), nn.Linear(4, 4))
    torch.save(deeper.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="of its keys 2 unexpected .4.weight, 4.bias.$"):
        load_weights(small_network(), tmp_path / "weights.pth", "small", ["3"])


def test_other_ways_to_save_weights_are_understood(tmp_path):
    state = {key: tensor.half() for key, tensor in trained(small_network()).state_dict().items() if tensor.dim()}
    for contents in (
        state,
        {"state_dict": state, "epoch": 3},
        {"model": {f"module.{key}": tensor for key, tensor in state.items()}, "optimizer": {}},
    ):
        torch.save(contents, tmp_path / "weights.pth")
        read = read_weights(tmp_path / "weights.pth")
        assert read.keys() == state.keys()
        assert all(torch.equal(tensor, state[key].float()) for key, tensor in read.items())
    torch.save({key: torch.ones(1) for key in ("denselayer2.norm.1.weight", "conv.1.bias")}, tmp_path / "dense.pth")
    assert set(read_weights(tmp_path / "dense.pth")) == {"denselayer2.norm1.weight", "conv.1.bias"}


def test_pickled_networks_are_not_opened(tmp_path):
    torch.save(small_network(), tmp_path / "network.pth")
    with pytest.raises(UserError, match="network.pth holds pickled Python objects"):
        read_weights(tmp_path / "network.pth")


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"\x03\0\0\0\0\0\0\0[1]"])
def test_damaged_safetensors_are_named(tmp_path, content):
    pytest.importorskip("safetensors")
    file = tmp_path / "weights.safetensors"
    with pytest.raises(UserError, match="weights.safetensors does not exist"):
        read_weights(file)
    file.write_bytes(content)
    with pytest.raises(UserError, match="safetensors (is not a safetensors file, or damaged|holds no state_dict)"):
        read_weights(file)


def test_cut_off_safetensors_are_named(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    file = tmp_path / "weights.safetensors"
    safetensors.save_file(small_network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="weights.safetensors is not a safetensors file, or damaged"):
        read_weights(file)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="needs the package safetensors; install it: pip install safetensors"):
        read_weights(tmp_path / "weights.safetensors")


def test_the_digest_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 5000  # longer than what is read at once
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
