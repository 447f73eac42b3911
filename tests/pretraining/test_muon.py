"""The optimizer that turns all directions of a weight alike."""

import copy

import pytest
import torch
from torch import nn

from efficientad.pretraining.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(128, 48), (48, 128), (64, 64), (1, 30)])
def test_orthogonalized_matrices_keep_their_directions_and_lose_their_strengths(shape):
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(shape, generator=generator)
    u, strengths, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = (u * torch.linspace(1, 0.05, len(strengths))) @ v  # a condition number of 20
    result = orthogonalize(1e-3 * matrix)
    assert result.shape == shape
    in_its_directions = u.T @ result @ v.T
    assert in_its_directions.diagonal().min() > 0.6 and in_its_directions.diagonal().max() < 1.3
    in_its_directions.diagonal().zero_()
    assert in_its_directions.abs().max() < 1e-3


def test_a_gradient_of_zero_changes_nothing():
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))
    layer = nn.Conv2d(2, 3, 2)
    before = copy.deepcopy(layer.state_dict())
    optimizer = Muon(layer.parameters(), 0.1)
    optimizer.step()  # no gradients yet
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_a_step_is_as_large_as_one_of_adam_usually_is():
    torch.manual_seed(2)
    layer = nn.Conv2d(16, 32, 3)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    layer(torch.randn(4, 16, 8, 8)).square().sum().backward()
    Muon(layer.parameters(), lr=0.01).step()
    for old, new in zip(before, layer.parameters(), strict=True):
        assert 0.7 < float((new.detach() - old).square().mean().sqrt()) / (0.2 * 0.01) < 1.3


def test_weight_decay_pulls_towards_zero():
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.zeros(4, 4), torch.zeros(4)
    Muon(layer.parameters(), lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(layer.weight, 0.95 * before)


def distance_after(make_optimizer, steps=100):
    """How far a linear layer is from the one that made its data, whose inputs differ much in strength."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(512, 24, generator=generator) * torch.logspace(0, -2, 24)
    mixed = inputs @ torch.linalg.qr(torch.randn(24, 24, generator=generator)).Q
    wanted = torch.randn(16, 24, generator=generator)
    layer = nn.Linear(24, 16)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = make_optimizer(layer.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 - step / steps)
        optimizer.zero_grad()
        (layer(mixed) - mixed @ wanted.T).square().mean().backward()
        optimizer.step()
    return float((layer.weight.detach() - wanted).square().mean() / wanted.square().mean())


def test_weak_directions_are_learnt_as_well():
    with_muon = distance_after(lambda parameters: Muon(parameters, 0.2))
    with_adam = distance_after(lambda parameters: torch.optim.Adam(parameters, 0.2))
    assert with_muon < 0.6 * with_adam, (with_muon, with_adam)
