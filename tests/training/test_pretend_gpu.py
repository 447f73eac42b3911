"""What runs on a GPU, on tensors with a device and a shape but no values: none may be left on the host.

PyTorch refuses operations on tensors of two devices here as on a real GPU (but for single values), so that machines
without one find them, too.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientad.data.transforms import to_unit_range
from efficientad.detector.initialization import OutputLayerFit
from efficientad.detector.model import EfficientAD, anomaly_score
from efficientad.pretraining.muon import Muon
from efficientad.pretraining.targets import DistillationTarget
from efficientad.training.loop import Learner
from efficientad.training.options import TrainingPlan
from stubs import random_backbone

GPU = torch.device("cuda", 0)
PIXELS = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is there")


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    def backward(loss):  # autograd itself asks the driver
        assert loss.device == GPU
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
