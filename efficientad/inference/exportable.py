"""A detector as a module that torch can export."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from efficientad.data.ignored import decode_ignored
from efficientad.data.images import UnreadableImageError
from efficientad.data.views import FIT, View
from efficientad.detector.anomaly_maps import MAP_SCALE, anomaly_score
from efficientad.detector.model import EfficientAD
from efficientad.inference.metadata import INPUT_NAME, INSPECTED_NAME
from efficientad.system.errors import UserError

_LEAST_SCALE = 0.1 * MAP_SCALE  # of pred_score, for thresholds near 0


class ExportableDetector(nn.Module):
    """A detector with its normalizations folded into its convolutions where that is exact.

    ImageNet's mean and standard deviation go into the first convolutions of teacher and student, which do not pad,
    and the teacher's statistics into its last one. The autoencoder pads its normalized input with zeros, so its
    normalization remains a separate step. Images are resized for it, and maps combined, always in float32.

    What a mask ignores is part of the graph, unless the view keeps the aspect ratio: then the pixels that count
    depend on the image, and are a second input. The whole grid is computed at once, without tiles.
    """

    def __init__(
        self, model: EfficientAD, dtype: torch.dtype = torch.float32, threshold: float | None = None
    ) -> None:
        """
        Args:
            model: in eval mode; it is left as it is.
            dtype: of the networks' arithmetic.
            threshold: to decide with, for the outputs DECISIONS; None: without these.
        """
        super().__init__()
        self.detector = copy.deepcopy(model).cpu().float().requires_grad_(False).eval()
        self.dtype, self.threshold = dtype, threshold
        mean, std = 255 * self.detector.image_mean, 255 * self.detector.image_std
        padding_free = [
            network for network in (self.detector.teacher, self.detector.student) if network is not None
        ]
        for network in padding_free:
            _fold_input(network, mean, std)
        _fold_output(self.detector.teacher, self.detector.teacher_mean, self.detector.teacher_std)
        view = self.detector.view
        self.takes_inspected = view.resize == FIT
        always_ignores = view.ignored is not None and not self.takes_inspected
        self.register_buffer("inspected", _inspected_always(view)[None] if always_ignores else None)
        self.register_buffer("pixel_mean", mean.to(dtype))
        self.register_buffer("pixel_std", std.to(dtype))
        for network in (*padding_free, *filter(None, [self.detector.autoencoder])):
            network.to(dtype, memory_format=torch.channels_last)
        self.eval()

    def forward(self, images: Tensor, inspected: Tensor | None = None) -> tuple[Tensor, ...]:
        """Anomaly maps N x H x W, 0-255 scale, and scores N, both float32, of uint8 RGB images N x H x W x 3.

        With a threshold also pred_score, pred_label and pred_mask; see decide.

        Args:
            inspected: uint8, N x H x W, not 0 where the map is not 0; only with takes_inspected.
        """
        detector, pixels = self.detector, images.permute(0, 3, 1, 2).to(self.dtype)
        seen = detector.cut(pixels)
        teacher = detector.teacher(seen).float()
        student = autoencoder = None
        if detector.student is not None:
            student = detector.student(seen).float()
            overview = ((detector.overview(pixels) - self.pixel_mean) / self.pixel_std).to(self.dtype)
            autoencoder = detector.autoencoder(overview).float()
        looked_at = inspected != 0 if inspected is not None else self.inspected
        raw = detector.compare(teacher, student, autoencoder, looked_at)
        anomaly_maps = detector.combine_maps(raw, looked_at)
        maps, scores = anomaly_maps[:, 0], anomaly_score(anomaly_maps)
        decisions = () if self.threshold is None else decide(maps, scores, self.threshold)
        return maps, scores, *decisions

    def example(self, batch_size: int = 2) -> dict[str, Tensor]:
        """Inputs to trace with, by name."""
        shape = (batch_size, *self.detector.view.size)
        inputs = {INPUT_NAME: torch.zeros((*shape, 3), dtype=torch.uint8)}
        if self.takes_inspected:
            inputs[INSPECTED_NAME] = torch.ones(shape, dtype=torch.uint8)
        return inputs

    def dynamic_shapes(self) -> dict[str, Any]:
        """Of these inputs: only the number of images is free."""
        batch = torch.export.Dim("batch")
        return {name: {0: batch} for name in self.example()}


def decide(maps: Tensor, scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """What other clients expect of a detector; see DECISIONS.

    Args:
        maps: N x H x W, float32.
        scores: N, float32.

    Returns:
        pred_score: 0.5 + 0.5 d / (|d| + c) with d = score - threshold and c = |threshold|, at least 25.5: within
            0 and 1, 0.5 at the threshold, and the higher, the higher the score is; 0.25 for a score of 0.
        pred_label: bools, whether the score is above the threshold.
        pred_mask: bools, whether a value of the map is.
    """
    distance = scores - threshold
    pred_score = 0.5 + 0.5 * distance / (distance.abs() + max(abs(threshold), _LEAST_SCALE))
    return pred_score, scores > threshold, maps > threshold


def _inspected_always(view: View) -> Tensor:
    """Which pixels of any input count, for images as large as the mask: bools, height x width.

    Raises:
        UserError: the mask is smaller than the images that it was made for, so that the region is not within it.
    """
    try:
        return view.inspected(decode_ignored(view.ignored).size)
    except UnreadableImageError as error:
        raise UserError(f"cannot export this model: {error}; give train.py a mask of the images' size") from None


def _convolutions(network: nn.Sequential) -> list[int]:
    return [index for index, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def _fold_input(network: nn.Sequential, mean: Tensor, std: Tensor) -> None:
    """Make the network take x instead of (x - mean) / std; its first convolution must not pad."""
    layer = network[_convolutions(network)[0]]
    if any(layer.padding):
        raise ValueError("the normalization of its input cannot be folded into a padded convolution")
    weight = layer.weight.double() / std
    layer.bias.copy_(layer.bias.double() - (weight * mean).sum(dim=(1, 2, 3)))
    layer.weight.copy_(weight)


@torch.no_grad()
def _fold_output(network: nn.Sequential, mean: Tensor, std: Tensor) -> None:
    """Make the network return (y - mean) / std instead of y."""
    layer = network[_convolutions(network)[-1]]
    layer.weight.copy_(layer.weight.double() / std.view(-1, 1, 1, 1))
    layer.bias.copy_((layer.bias.double() - mean.flatten()) / std.flatten())
