import pytest
import torch

from efficientad.system import devices
from efficientad.system.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_only_where_it_is_native(monkeypatch, native, precision):
    monkeypatch.setattr(devices, "_has_fast_bf16", lambda _: native)
    assert devices.resolve_precision("auto", CPU) == precision
    assert devices.resolve_precision("fp32", CPU) == "fp32"
    assert devices.resolve_precision("bf16", CPU) == "bf16"
    assert ("not native" in devices.describe_device(CPU, "bf16")) == (not native)
    assert "not native" not in devices.describe_device(CPU, "fp32")


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_native_from_ampere_on(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert devices._has_fast_bf16(CUDA) == native


def test_fp32_on_a_gpu_is_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(devices, "_has_fast_bf16", lambda _: True)
    devices.resolve_precision("auto", CUDA)
    assert torch.backends.cudnn.allow_tf32
    devices.resolve_precision("fp32", CUDA)
    assert not torch.backends.cudnn.allow_tf32


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [devices.resolve_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [devices.resolve_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(UserError, match="--device cuda: "):
        devices.resolve_device("cuda")
