"""What runs on a GPU, on tensors with a device and a shape but no values: none may be left on the host.

PyTorch refuses operations on tensors of two devices here as on a real GPU (but for single values), so that machines
without one find them, too. A PyTorch for CUDA pretends few operations of Apple's GPUs, so one of CUDA stands in.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from efficientad.data.transforms import to_unit_range
from efficientad.detector.anomaly_maps import anomaly_score
from efficientad.detector.initialization import OutputLayerFit
from efficientad.detector.model import EfficientAD
from efficientad.inference.detectors import TorchDetector
from efficientad.inference.prediction import copy_to_host
from efficientad.pretraining.muon import Muon
from efficientad.pretraining.targets import DistillationTarget
from efficientad.training import fitting, memory
from efficientad.training.cache import ImageBatch
from efficientad.training.loop import Learner
from efficientad.training.options import TrainingPlan
from stubs import random_backbone

CPU, GPU, APPLE = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps", 0)
PIXELS = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is there")


class NoFloat64(TorchDispatchMode):
    """Refuses it on the GPU, as one of Apple does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(result, torch.Tensor) and result.device.type != "cpu":
                assert result.dtype != torch.float64, function
        return results


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    def backward(loss):  # autograd itself asks the driver
        assert loss.device.type != "cpu"
        for network in networks:
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)

    networks = []
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield networks


@pytest.mark.parametrize("model_size", ["small", "medium"])
@pytest.mark.parametrize("natural", [False, True])
def test_a_training_step_and_an_inference_stay_on_the_gpu(pretended, model_size, natural):
    with GPU:
        model = EfficientAD(model_size, memory_patches=1100)
    pretended += [model.student, model.autoencoder]
    plan = TrainingPlan(10, 2, 1e-4, 1e-5, GPU, "fp32", seed=0, cuda_graph=False)
    images = to_unit_range(PIXELS.to(GPU))
    with torch.no_grad():
        answers = model.teacher_features(model.normalize(images))
    for loss in Learner(model, plan).step(images, answers, images if natural else None, 2):
        assert loss.device == GPU and loss.shape == ()
    with torch.no_grad():
        maps = model.eval()(images)
    assert maps.device == GPU and maps.shape == (2, 1, 256, 256) and anomaly_score(maps).device == GPU


class TwoImages:
    """Two images, as ImageSet gives them."""

    digests = ["a", "b"]

    def batches(self, order):
        return (ImageBatch(index, PIXELS[:1], None) for index in range(2))


def test_statistics_and_memory_for_a_gpu_of_apple_are_fitted_on_the_host(pretended, monkeypatch):
    def on_host(result):
        def stand_in(rows, *_):
            assert rows.device == CPU
            return result()

        return stand_in

    def features(indices, pixels, windows):
        assert pixels.device == GPU
        return torch.empty(1, 384, 56, 56, device=GPU)

    with GPU:
        model = EfficientAD(has_student=False)
    for module in (fitting, memory):
        monkeypatch.setattr(module, "fitting_device", lambda device: CPU)
    monkeypatch.setattr(fitting, "_batches", lambda *_: TwoImages().batches(None))
    monkeypatch.setattr(memory, "choose_coreset", on_host(lambda: torch.zeros(5).long()))  # it looks at values
    monkeypatch.setattr(memory, "weigh_patches", on_host(lambda: torch.ones(5)))
    with NoFloat64():
        fitting.fit_teacher_statistics(model, TwoImages(), range(2), features)
        memory.fit_memory(model, TwoImages(), range(2), features, 5, seed=0)
    assert model.teacher_std.device == model.memory.device == model.memory_weights.device == GPU
    assert model.memory.shape == (5, 384) and model.memory.dtype == torch.float32


def test_a_detector_on_a_gpu_of_apple_pins_no_memory_and_its_maps_come_to_the_host(pretended, monkeypatch):
    class Model:
        model_size = view = calibration = provenance = images_per_pass = None

        def __call__(self, images, inspected):
            assert images.device == inspected.device == APPLE
            return images

    pixels, inspected = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.ones(1, 64, 64, dtype=torch.bool)
    monkeypatch.setattr(torch.Tensor, "pin_memory", None, raising=False)
    (maps,), copied = copy_to_host([TorchDetector(Model(), APPLE, "fp32")(pixels, inspected)])
    assert maps.device == CPU and maps.shape == pixels.shape and copied is None


def test_a_step_of_a_distillation_stays_on_the_gpu(pretended):
    with GPU:
        pdn = EfficientAD().teacher.requires_grad_(True)
        target = DistillationTarget(random_backbone(), "pool", 256, 256)
    pretended += [pdn]
    images = to_unit_range(PIXELS.to(GPU))
    target.fit([images], "fp32")
    answers = target(images, "fp32")
    (pdn(images) - answers).square().mean().backward()
    Muon(pdn.parameters(), 1e-3).step()
    fit = OutputLayerFit(pdn[-1], 384, torch.Generator())
    fit.add(pdn[:-1](images), answers, 100)
    fit.set(fit.solve(0.1, towards=fit.weights()))
    assert pdn[-1].weight.device == answers.device == GPU
