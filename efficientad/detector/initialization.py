"""A network's first weights, and its last layer by ridge regression."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.detector.checkpoint import load_teacher_weights, teacher_size
from efficientad.detector.model import EfficientAD
from efficientad.system.errors import UserError

_KEPT_ABOVE = 3.0  # standard deviations of a normalized feature; one value in a thousand is lower, and cut off


def initialize_network(network: nn.Sequential) -> None:
    """He initialization, which keeps the variance from layer to layer; the last layer is zero.

    Zero is the mean of the normalized features, the best of all constant answers; random answers are worse.
    """
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(network[-1].weight)


def start_teacher(model_size: str, weights: Path | None) -> nn.Sequential:
    """A trainable PDN with random weights or those of a file; weights of a small one fit a medium one, too.

    Raises:
        UserError: the file is missing, no teacher, or a medium one for a small teacher.
    """
    pdn = EfficientAD(model_size).teacher.requires_grad_(True)
    initialize_network(pdn)
    if weights:
        given = EfficientAD(teacher_size(weights))
        load_teacher_weights(given, weights)
        if given.model_size == model_size:
            pdn.load_state_dict(given.teacher.state_dict())
        elif model_size == "medium":
            widen_pdn(given.teacher, pdn)
        else:
            raise UserError(f"--init_weights {weights} is a medium teacher and does not fit into a small one")
    return pdn


@torch.no_grad()
def widen_pdn(small: nn.Sequential, medium: nn.Sequential) -> None:
    """Make an initialized medium PDN answer as a small one does; its extra channels stay random and unused.

    Its two extra 1x1 convolutions begin as identities. A constant lifts features of both signs through the ReLU
    before the last one, whose bias subtracts it again.
    """
    for convolution in (3, 6, 8, 10, 12):
        old = {3: 128, 6: 256, 8: 256, 10: 256, 12: 384}[convolution]
        new = {3: 256, 6: 256, 8: 256, 10: 384, 12: 384}[convolution]
        medium[convolution].weight[:new].zero_()
        medium[convolution].bias[:new].zero_()
        if medium[convolution].kernel_size == (1, 1):
            medium[convolution].weight[:new, :old, 0, 0] = torch.eye(new)
    for source, place in ((0, 0), (3, 3), (6, 8), (8, 10)):
        weight = small[source].weight
        medium[place].weight[: weight.shape[0], : weight.shape[1]] = weight
        medium[place].bias[: weight.shape[0]] = small[source].bias
    medium[10].bias += _KEPT_ABOVE
    medium[12].bias.fill_(0)
    medium[12].bias -= _KEPT_ABOVE


_ROWS_PER_WEIGHT = 16  # patches for each weight of an output channel


class OutputLayerFit:
    """Sums over patches from which a convolution is solved: its outputs are linear in its weights.

    Attributes:
        squares: (weights + 1) x (weights + 1), float64, for the weights of an output channel and its bias.
        products: (weights + 1) x outputs, float64.
    """

    def __init__(self, layer: nn.Conv2d, outputs: int, generator: torch.Generator) -> None:
        """
        Args:
            outputs: the channels that are solved, the first ones of the layer.
            generator: draws the patches.
        """
        self._layer, self._outputs, self._generator = layer, outputs, generator
        inputs, device = layer.weight[0].numel() + 1, layer.weight.device
        self.squares = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.products = torch.zeros(inputs, outputs, dtype=torch.float64, device=device)

    @property
    def patches_needed(self) -> int:
        """With fewer, the regression fits their noise."""
        return _ROWS_PER_WEIGHT * len(self.squares)

    @torch.no_grad()
    def add(self, hidden: Tensor, answers: Tensor, patches: int) -> None:
        """Add `patches` random patches of every image.

        Args:
            hidden: N x C x H x W, float32, the layer's input.
            answers: N x outputs x P x P, its wanted outputs.
        """
        rows = F.unfold(hidden, self._layer.kernel_size)
        chosen = torch.randperm(rows.shape[2], generator=self._generator)[:patches].to(rows.device)
        rows = rows[:, :, chosen].transpose(1, 2).flatten(0, 1)
        answers = answers.flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1)
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self.squares += rows.T @ rows
        self.products += rows.T @ answers

    def weights(self) -> Tensor:
        """The layer's weights and bias as solve gives them: (weights + 1) x outputs, float64."""
        weight, bias = self._layer.weight[: self._outputs], self._layer.bias[: self._outputs]
        return torch.cat([weight.detach().flatten(1).T, bias.detach()[None]]).double()

    def solve(self, ridge: float, towards: Tensor | float = 0.0) -> Tensor:
        """The best weights and bias: (weights + 1) x outputs, float64.

        Args:
            ridge: cost of a deviation, in variances of an input; the bias is free.
            towards: weights from which deviations count, in the layout of `weights`.
        """
        count = self.squares[-1, -1]
        variance = (self.squares.diagonal() / count - (self.squares[-1] / count).square())[:-1].mean()
        regularized = self.squares.clone()
        regularized.diagonal()[:-1] += ridge * count * variance
        products = self.products
        if isinstance(towards, Tensor):
            products = products - self.squares @ towards  # the residual of those weights
        # NCCL refuses to send a tensor in LAPACK's order of elements
        return (towards + torch.linalg.solve(regularized, products)).contiguous()

    @torch.no_grad()
    def set(self, solution: Tensor) -> None:
        """Give the layer the weights that solve returned."""
        weight, bias = self._layer.weight[: self._outputs], self._layer.bias[: self._outputs]
        weight.copy_(solution[:-1].T.reshape(weight.shape))
        bias.copy_(solution[-1])
