"""The last convolution of a network by ridge regression, for given hidden layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS_PER_WEIGHT = 16  # patches for each weight of an output channel


class OutputLayerFit:
    """What has to be summed up over patches to solve a convolution: its outputs are linear in its weights.

    Attributes:
        squares: (weights + 1) x (weights + 1), float64, for the weights of an output channel and its bias.
        products: (weights + 1) x outputs, float64.
    """

    def __init__(self, layer: nn.Conv2d, outputs: int, seed: int) -> None:
        """
        Args:
            outputs: the channels that are solved, the first ones of the layer.
            seed: of the choice of patches.
        """
        self._layer, self._outputs = layer, outputs
        self._generator = torch.Generator().manual_seed(seed)
        inputs, device = layer.weight[0].numel() + 1, layer.weight.device
        self.squares = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.products = torch.zeros(inputs, outputs, dtype=torch.float64, device=device)

    @property
    def patches_needed(self) -> int:
        """With fewer, the regression follows their noise."""
        return _ROWS_PER_WEIGHT * len(self.squares)

    @torch.no_grad()
    def add(self, hidden: Tensor, answers: Tensor, patches: int) -> None:
        """Take `patches` random patches of every image.

        Args:
            hidden: N x C x H x W, float32, the layer's input.
            answers: N x outputs x P x P, what it should give.
        """
        rows = F.unfold(hidden, self._layer.kernel_size)
        chosen = torch.randperm(rows.shape[2], generator=self._generator)[:patches].to(rows.device)
        rows = rows[:, :, chosen].transpose(1, 2).flatten(0, 1)
        answers = answers.flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1)
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self.squares += rows.T @ rows
        self.products += rows.T @ answers

    def present(self) -> Tensor:
        """The layer's weights and bias as solve gives them: (weights + 1) x outputs, float64."""
        weight, bias = self._layer.weight[: self._outputs], self._layer.bias[: self._outputs]
        return torch.cat([weight.detach().flatten(1).T, bias.detach()[None]]).double()

    def solve(self, ridge: float, towards: Tensor | float = 0.0) -> Tensor:
        """The best weights and bias: (weights + 1) x outputs, float64.

        Args:
            ridge: what deviation costs, in variances of an input; the bias is free.
            towards: weights from which deviation is counted, as `present` gives them.
        """
        count = self.squares[-1, -1]
        variance = (self.squares.diagonal() / count - (self.squares[-1] / count).square())[:-1].mean()
        regularized = self.squares.clone()
        regularized.diagonal()[:-1] += ridge * count * variance
        products = self.products
        if isinstance(towards, Tensor):
            products = products - self.squares @ towards  # what those weights leave to explain
        # LAPACK's order of elements is another one, in which NCCL refuses to send a tensor
        return (towards + torch.linalg.solve(regularized, products)).contiguous()

    @torch.no_grad()
    def set(self, solution: Tensor) -> None:
        """Give the layer the weights that solve returned."""
        weight, bias = self._layer.weight[: self._outputs], self._layer.bias[: self._outputs]
        weight.copy_(solution[:-1].T.reshape(weight.shape))
        bias.copy_(solution[-1])
