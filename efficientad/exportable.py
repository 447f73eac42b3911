"""The whole detector as one module for other runtimes: uint8 images in, maps and scores out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from efficientad.detector.networks import EfficientAD, anomaly_score


class ExportableDetector(nn.Module):
    """A detector with its normalizations folded into its convolutions, where that is exact.

    ImageNet's mean and standard deviation go into the first convolution of teacher and student, which pad nothing,
    and the teacher's statistics into its last one. The autoencoder pads its input with the mean colour, so its
    normalization stays a step of its own. Maps are combined in float32 whatever the networks compute in.
    """

    def __init__(self, model: EfficientAD, dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
            model: in eval mode; it is left as it is.
            dtype: of the networks' arithmetic.
        """
        super().__init__()
        self.detector = copy.deepcopy(model).cpu().float().requires_grad_(False).eval()
        self.dtype = dtype
        mean, std = 255 * self.detector.image_mean, 255 * self.detector.image_std
        padding_free = [
            network for network in (self.detector.teacher, self.detector.student) if network is not None
        ]
        for network in padding_free:
            _fold_input(network, mean, std)
        _fold_output(self.detector.teacher, self.detector.teacher_mean, self.detector.teacher_std)
        self.register_buffer("pixel_mean", mean.to(dtype))
        self.register_buffer("pixel_std", std.to(dtype))
        for network in (*padding_free, *filter(None, [self.detector.autoencoder])):
            network.to(dtype, memory_format=torch.channels_last)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps N x S x S, 0-255 scale, and scores N, both float32, of uint8 RGB images N x S x S x 3."""
        pixels = images.permute(0, 3, 1, 2).to(self.dtype)
        teacher = self.detector.teacher(pixels).float()
        student = autoencoder = None
        if self.detector.student is not None:
            student = self.detector.student(pixels).float()
            autoencoder = self.detector.autoencoder((pixels - self.pixel_mean) / self.pixel_std).float()
        raw = self.detector.compare(teacher, student, autoencoder)
        anomaly_maps = self.detector.combine_maps(raw)
        return anomaly_maps[:, 0], anomaly_score(anomaly_maps)

    def example(self, batch_size: int = 2) -> Tensor:
        """Images to trace with."""
        size = self.detector.image_size
        return torch.zeros((batch_size, size, size, 3), dtype=torch.uint8)


def _convolutions(network: nn.Sequential) -> list[int]:
    return [index for index, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def _fold_input(network: nn.Sequential, mean: Tensor, std: Tensor) -> None:
    """Let the network take x where it took (x - mean) / std; its first convolution must not pad."""
    layer = network[_convolutions(network)[0]]
    if any(layer.padding):
        raise ValueError("a padded convolution cannot take over the normalization of its input")
    weight = layer.weight.double() / std
    layer.bias.copy_(layer.bias.double() - (weight * mean).sum(dim=(1, 2, 3)))
    layer.weight.copy_(weight)


@torch.no_grad()
def _fold_output(network: nn.Sequential, mean: Tensor, std: Tensor) -> None:
    """Let the network answer (y - mean) / std where it answered y."""
    layer = network[_convolutions(network)[-1]]
    layer.weight.copy_(layer.weight.double() / std.view(-1, 1, 1, 1))
    layer.bias.copy_((layer.bias.double() - mean.flatten()) / std.flatten())
