"""The three networks of EfficientAD (paper: arXiv 2303.14535).

Each is a plain nn.Sequential, so that its state_dict (keys "0.weight", ...) can be exchanged with other EfficientAD
tools.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.detector.fused_pooling import fast_pooling

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEATURE_CHANNELS = 384  # of the teacher and of the autoencoder; the student has twice as many


def build_pdn(model_size: str, out_channels: int) -> nn.Sequential:
    """The patch description network (paper, tables 5 and 6): 33x33 receptive field, stride 4, no padding.

    The paper pads it while a teacher is pretrained. Patches that lie wholly within the image learn the same
    without; the others, which see made-up zeros, are never used later.

    Args:
        model_size: "small" or "medium".
        out_channels: 384 for a teacher, 768 for a student.
    """
    if model_size == "small":
        return nn.Sequential(
            nn.Conv2d(3, 128, 4),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2, 2),
            nn.Conv2d(128, 256, 4),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2, 2),
            nn.Conv2d(256, 256, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, out_channels, 4),
        )
    if model_size == "medium":
        return nn.Sequential(
            nn.Conv2d(3, 256, 4),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2, 2),
            nn.Conv2d(256, 512, 4),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2, 2),
            nn.Conv2d(512, 512, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, 512, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, out_channels, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 1),
        )
    raise ValueError(f"model_size must be small or medium, not {model_size!r}")


def apply_pdn(layers: nn.Sequential, images: Tensor) -> Tensor:
    """The answer of a PDN, or of its first layers: as of `layers` itself, but faster on a GPU.

    Args:
        images: N x 3 x H x W, normalized.
    """
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in layers.parameters())
    pooling = fast_pooling(images.device, learns or images.requires_grad)
    if pooling is None or not len(images):
        return layers(images)
    values, place = images, 0
    while place < len(layers):
        convolution, *others = layers[place : place + 3]
        if _is_pooled(convolution, *others):
            values = pooling(F.conv2d(values, convolution.weight), convolution.bias)
            place += 3
        else:
            values = convolution(values)
            place += 1
    return values


def _is_pooled(convolution: nn.Module, *others: nn.Module) -> bool:
    """Whether these are a convolution, its ReLU and the pooling behind it, as in a PDN."""
    kinds = [nn.Conv2d, nn.ReLU, nn.AvgPool2d]
    return [type(module) for module in (convolution, *others)] == kinds


def build_autoencoder(grid: tuple[int, int] = (56, 56)) -> nn.Sequential:
    """The convolutional autoencoder (paper, table 7): image N x 3 x 256 x 256 -> N x 384 x the PDN's grid.

    The latent code is 64x1x1, and the decoder grows 3, 8, 15, 32, 63, 127 and then to the grid, 56 in the paper.
    """
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
        layers += [nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(64, 64, 8))
    for size in (3, 8, 15, 32, 63, 127):
        layers += [
            nn.Upsample(size=size, mode="bilinear"),
            nn.Conv2d(64, 64, 4, padding=2),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
        ]
    return nn.Sequential(
        *layers,
        nn.Upsample(size=grid, mode="bilinear"),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, FEATURE_CHANNELS, 3, padding=1),
    )


def infer_model_size(first_weight: Tensor | None) -> str | None:
    """small or medium, by the width of a PDN's first layer, or None for any other."""
    widths = {128: "small", 256: "medium"}
    return widths.get(first_weight.shape[0]) if first_weight is not None and first_weight.dim() == 4 else None
