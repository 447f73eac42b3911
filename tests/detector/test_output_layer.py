"""An output layer in closed form."""

import torch

from efficientad.detector.initialization import OutputLayerFit


def test_ridge_regression_equals_the_textbook():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 3, 2)
    hidden, answers = torch.randn(4, 2, 9, 9), torch.randn(4, 3, 8, 8)
    fit = OutputLayerFit(layer, 3, torch.Generator())
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


def test_a_strong_ridge_stays_near_given_weights():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 3, 2)
    before = layer.weight.clone()
    fit = OutputLayerFit(layer, 3, torch.Generator())
    fit.add(torch.randn(4, 2, 9, 9), torch.randn(4, 3, 8, 8), 64)
    fit.set(fit.solve(1e9, towards=fit.weights()))
    torch.testing.assert_close(layer.weight, before)
    fit.set(fit.solve(1e9))
    assert layer.weight.abs().max() < 1e-6
