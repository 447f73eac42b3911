"""First weights of networks that learn normalized features."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from efficientad.checkpoint import load_teacher_weights, teacher_size
from efficientad.networks import EfficientAD
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
