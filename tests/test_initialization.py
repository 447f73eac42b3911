"""The student's output layer in closed form."""

import pytest
import torch

from efficientad.initialization import initialize_network, solve_student
from efficientad.networks import EfficientAD
from efficientad.normalization import fit_teacher_statistics
from efficientad.output_layer import OutputLayerFit
from efficientad.teacher_answers import TeacherAnswers
from stubs import HeldImages

CPU = torch.device("cpu")


def test_ridge_regression_equals_the_textbook():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 3, 2)
    hidden, answers = torch.randn(4, 2, 9, 9), torch.randn(4, 3, 8, 8)
    fit = OutputLayerFit(layer, 3, seed=0)
    fit.add(hidden, answers, 64)  # every patch
    rows = torch.nn.functional.unfold(hidden, 2).transpose(1, 2).flatten(0, 1).double()
    wanted = answers.flatten(2).transpose(1, 2).flatten(0, 1).double()
    ridge = 0.3 * len(rows) * rows.var(dim=0, unbiased=False).mean()
    centred, mean = rows - rows.mean(dim=0), wanted.mean(dim=0)
    weights = torch.linalg.solve(centred.T @ centred + ridge * torch.eye(8), centred.T @ (wanted - mean))
    solution = fit.solve(0.3)
    assert solution.is_contiguous()  # NCCL sends no other
    fit.set(solution)
    torch.testing.assert_close(layer.weight.flatten(1).T.double(), weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.bias.double(), mean - rows.mean(dim=0) @ weights, atol=1e-5, rtol=1e-4)


def test_a_strong_ridge_stays_where_it_is_told_to():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 3, 2)
    before = layer.weight.clone()
    fit = OutputLayerFit(layer, 3, seed=0)
    fit.add(torch.randn(4, 2, 9, 9), torch.randn(4, 3, 8, 8), 64)
    fit.set(fit.solve(1e9, towards=fit.present()))
    torch.testing.assert_close(layer.weight, before)
    fit.set(fit.solve(1e9))
    assert layer.weight.abs().max() < 1e-6


@pytest.fixture
def start(tiny_networks):
    torch.manual_seed(0)
    model = EfficientAD()
    initialize_network(model.student)
    levels = torch.linspace(0, 255, 12 * 3).view(12, 3, 1, 1)
    ramp = torch.linspace(-60, 60, 256).view(1, 1, 1, 256)
    images = HeldImages((levels + ramp).clamp(0, 255).expand(12, 3, 256, 256).to(torch.uint8))
    answers = TeacherAnswers(model, 1e9, CPU, "fp32")
    fit_teacher_statistics(model, images, range(10), answers)
    return model, images, answers


def test_student_follows_the_teacher_before_the_first_step(start):
    """On images that it has not seen, too; the part that follows the autoencoder stays as it was."""
    model, images, answers = start
    solve_student(model, images, range(10), answers, "fp32", seed=0)
    normalized = model.normalize(images.pixels[10:] / 255)
    with torch.no_grad():
        student, teacher = model.student(normalized), model.teacher_features(normalized)
    error = (student[:, :384] - teacher).square().mean() / teacher.square().mean()
    assert error < 0.9  # 1 before; a strong ridge, and eight hidden channels, allow no more
    assert student[:, 384:].abs().max() == 0


def test_same_seed_same_start(start):
    model, images, answers = start
    solved = []
    for seed in (0, 0, 1):
        solve_student(model, images, range(10), answers, "fp32", seed)
        solved.append(model.student[-1].weight.clone())
    assert torch.equal(solved[0], solved[1]) and not torch.equal(solved[0], solved[2])
