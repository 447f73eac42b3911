import pytest
import torch

from efficientad import device
from efficientad.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_only_where_it_is_native(monkeypatch, native, precision):
    monkeypatch.setattr(device, "_has_fast_bf16", lambda _: native)
    assert device.resolve_precision("auto", CPU) == precision
    assert device.resolve_precision("fp32", CPU) == "fp32"
    assert device.resolve_precision("bf16", CPU) == "bf16"
    assert ("not native" in device.describe(CPU, "bf16")) == (not native)
    assert "not native" not in device.describe(CPU, "fp32")


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_native_from_ampere_on(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device._has_fast_bf16(CUDA) == native


def test_fp32_on_a_gpu_is_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(device, "_has_fast_bf16", lambda _: True)
    device.resolve_precision("auto", CUDA)
    assert torch.backends.cudnn.allow_tf32
    device.resolve_precision("fp32", CUDA)
    assert not torch.backends.cudnn.allow_tf32


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device.resolve_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [device.resolve_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(UserError, match="--device cuda: "):
        device.resolve_device("cuda")
