"""Muon (Keller Jordan, 2024): momentum whose steps change all directions of a weight by the same amount."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_SQUARES = 0.95  # decay of the mean squares by which biases are scaled
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at zero of those that end between 0.7 and 1.2
_RMS_OF_ADAM = 0.2  # the change of a weight in a step of Adam, in learning rates
_TINY = 1e-8


def orthogonalize(matrix: Tensor) -> Tensor:
    """Nearly U V^T of the singular value decomposition U S V^T, by a Newton-Schulz iteration.

    Args:
        matrix: R x C, float32.

    Returns:
        R x C; singular values between about 0.7 and 1.2, except those that were tiny.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + _TINY)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions; the rest (biases) are scaled by their root mean square.

    A convolution's gradient has a few strong directions, which Adam's steps follow, too; here the weak ones are
    learnt as fast. Steps are about as large as Adam's, so learning rates are of the same order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        """
        Args:
            weight_decay: share of the weights that a step of learning rate 1 removes.
        """
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the parameters that have gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                direct = self._matrix_step if parameter.ndim > 1 else self._vector_step
                parameter.add_(direct(parameter.grad, self.state[parameter]), alpha=-group["lr"] * _RMS_OF_ADAM)

    def _matrix_step(self, gradient: Tensor, state: dict) -> Tensor:
        gradient_rows = gradient.flatten(1).float()
        momentum = state.setdefault("momentum", torch.zeros_like(gradient_rows))
        momentum.lerp_(gradient_rows, 1 - _MOMENTUM)
        step = orthogonalize(gradient_rows.lerp(momentum, _MOMENTUM))
        return step.view_as(gradient) * math.sqrt(max(step.shape))  # elements of root mean square one

    def _vector_step(self, gradient: Tensor, state: dict) -> Tensor:
        state["steps"] = state.get("steps", 0) + 1
        momentum = state.setdefault("momentum", torch.zeros_like(gradient))
        squares = state.setdefault("squares", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        squares.lerp_(gradient.square(), 1 - _SQUARES)
        unbiased = momentum / (1 - _MOMENTUM ** state["steps"])
        return unbiased / ((squares / (1 - _SQUARES ** state["steps"])).sqrt() + _TINY)
