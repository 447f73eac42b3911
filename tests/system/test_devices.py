from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from efficientad.inference.detectors import TorchDetector
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


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    return chosen


def test_one_certain_gpu_becomes_the_current_one(two_gpus):
    device = devices.resolve_device("cuda:1")
    assert device == torch.device("cuda", 1) and two_gpus == [device]
    assert devices.describe_device(device, "fp32") == "device cuda:1 (card of cuda:1), precision fp32"
    assert devices.resolve_device("auto") == devices.resolve_device("cuda") == CUDA and len(two_gpus) == 1


def test_a_gpu_that_is_not_there(two_gpus, monkeypatch):
    with pytest.raises(UserError, match="^--device cuda:2: this machine has 2 GPUs: cuda:0 to cuda:1$"):
        devices.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="^--device cuda:1: this machine has 1 GPU: cuda:0$"):
        devices.resolve_device("cuda:1")
    assert two_gpus == []


def test_a_gpu_of_apple_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="^--device mps: torch sees no GPU of Apple here"):
        devices.resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = devices.resolve_device("mps")
    assert device.type == "mps" and devices.fitting_device(device) == CPU
    assert devices.resolve_precision("auto", device) == devices.resolve_precision("fp32", device) == "fp32"
    for name in ("bf16", "fp16"):
        with pytest.raises(UserError, match=f"^--precision {name}: --device mps computes in fp32"):
            devices.resolve_precision(name, device)
    assert devices.describe_device(device, "fp32").startswith("device mps (")


@pytest.mark.cuda
def test_a_detector_on_one_certain_gpu_is_shared_by_threads(tiny_model):
    name = f"cuda:{torch.cuda.device_count() - 1}"
    device = devices.resolve_device(name)
    detector = TorchDetector(tiny_model.to(device), device, "fp32")
    pixels = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    wanted = detector(pixels).cpu()
    with ThreadPoolExecutor(4) as threads:  # whose current GPU is the first one
        for maps in threads.map(detector, [pixels] * 20):
            assert maps.device == device
            torch.testing.assert_close(maps.cpu(), wanted, rtol=1e-3, atol=1e-3)
