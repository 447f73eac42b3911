"""The first weights of a teacher, and its last layer solved for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.detector.checkpoint import load_teacher_weights, teacher_size
from efficientad.detector.networks import EfficientAD
from efficientad.system.errors import UserError

_KEPT_ABOVE = 3.0  # standard deviations of a normalized feature: what lies lower is cut off, once in a thousand


def initialize_network(network: nn.Sequential) -> None:
    """He initialization, under which the variance neither grows nor shrinks from layer to layer; the last is zero.

    Zero is the mean of the normalized features, the best of all constant answers; random answers are worse.
    """
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(network[-1].weight)


def start_teacher(model_size: str, weights: Path | None) -> nn.Sequential:
    """A trainable PDN with random weights or those of the file; a small one's serve a medium one, too.

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
    """Make an initialized medium PDN answer as a small one does; its further channels stay random and unused.

    Its two further 1x1 convolutions begin as identities. Before the last one stands a ReLU, through which features
    of both signs pass raised by a constant, which the last bias takes away again.
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
    """What has to be summed up over patches to solve a convolution: its outputs are linear in its weights.

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
