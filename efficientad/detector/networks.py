"""The three networks of EfficientAD and the detector that joins them (paper: arXiv 2303.14535).

Every network is a plain nn.Sequential, so that its state_dict (keys "0.weight", ...) can be exchanged
with other EfficientAD tools.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.detector.calibration import Calibration

IMAGE_SIZE = 256  # side of the square network input, in pixels
FEATURE_CHANNELS = 384  # of the teacher and of the autoencoder; the student has twice as many
MAP_SCALE = 255.0  # of maps and scores: before the maps are averaged, 25.5 is each one's 0.995 quantile
PATCH_SIZE = 33  # receptive field of a PDN, in pixels
PATCH_STRIDE = 4
PATCH_CENTRE = 16  # of the first patch: the networks pad nothing
UNFITTED_QUANTILES = (0.0, 0.1)  # of a missing map: they would leave it as it is
MEMORY_POOLING = 2  # the memory holds averages of this many by this many patches
_MEMORY_BLOCK = 1024  # patches compared at once: more would not fit into a processor's cache
SCORED_SHARE = 0.006  # the score is the mean of this share of a map's highest values, about 20 x 20 pixels
MAP_PADDING = 4  # the networks see no border, so their maps are this much smaller on each side
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


def feature_map_size(image_size: int) -> int:
    """Side of the unpadded PDN's output: 256 -> 56."""
    after_pools = ((image_size - 3) // 2 - 3) // 2
    return after_pools - 5


def build_autoencoder(image_size: int = IMAGE_SIZE) -> nn.Sequential:
    """The convolutional autoencoder (paper, table 7): image -> 384 channels of the PDN's map size.

    At 256x256 the latent code is 64x1x1 and the decoder grows 3, 8, 15, 32, 63, 127, then 56.
    """
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
        layers += [nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(64, 64, 8))
    for divisor, smaller_by in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1)):
        layers += [
            nn.Upsample(size=image_size // divisor - smaller_by, mode="bilinear"),
            nn.Conv2d(64, 64, 4, padding=2),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
        ]
    return nn.Sequential(
        *layers,
        nn.Upsample(size=feature_map_size(image_size), mode="bilinear"),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, FEATURE_CHANNELS, 3, padding=1),
    )


class RawMaps(NamedTuple):
    """Anomaly maps before normalization, each N x 1 x 56 x 56, float32, >= 0; None: not made."""

    student_teacher: Tensor | None
    autoencoder_student: Tensor | None
    memory: Tensor | None = None


class EfficientAD(nn.Module):
    """Teacher, student, autoencoder, memory and the fitted statistics: the whole detector in one state_dict.

    Buffers, fitted by training.fitting and training.memory:
        teacher_mean, teacher_std: 1 x 384 x 1 x 1, of the teacher's output on good training images.
        memory: P x 384, teacher features of good parts: normalized, averaged over 2 x 2 patches, a coreset of
            them; P is 0 without a memory. Not in the paper.
        memory_weights: P, the weight of a distance to each of them; see memory.weigh_patches.
        quantiles: 3 x 2; rows student-teacher, autoencoder-student and memory map, columns the 0.9 and the
            0.995 quantile over the pixels of held-out good images.
        map_weights: 3, of these maps; see training.options.map_weights.

    Attributes:
        student, autoencoder: None in a detector with a memory alone.
        calibration: the threshold and the held-out scores behind it; None where there were too few.
        provenance: how a loaded detector was trained (save_model's `training`); under "versions" the software.
    """

    def __init__(
        self,
        model_size: str = "small",
        image_size: int = IMAGE_SIZE,
        has_student: bool = True,
        memory_patches: int = 0,
    ) -> None:
        super().__init__()
        self.model_size = model_size
        self.image_size = image_size
        self.calibration: Calibration | None = None
        self.provenance: dict[str, Any] = {}
        self.teacher = build_pdn(model_size, FEATURE_CHANNELS).requires_grad_(False)
        self.student = build_pdn(model_size, 2 * FEATURE_CHANNELS) if has_student else None
        self.autoencoder = build_autoencoder(image_size) if has_student else None
        # The same for every model, so not saved with it.
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("teacher_mean", torch.zeros(1, FEATURE_CHANNELS, 1, 1))
        self.register_buffer("teacher_std", torch.ones(1, FEATURE_CHANNELS, 1, 1))
        self.register_buffer("memory", torch.zeros(memory_patches, FEATURE_CHANNELS))
        self.register_buffer("memory_weights", torch.ones(memory_patches))
        self.register_buffer("quantiles", torch.tensor([UNFITTED_QUANTILES] * len(RawMaps._fields)))
        self.register_buffer("map_weights", torch.tensor((0.5, 0.5, 0.0)))

    def normalize(self, images: Tensor) -> Tensor:
        """ImageNet-normalize RGB images N x 3 x S x S in [0, 1]; every network takes the result."""
        return (images - self.image_mean) / self.image_std

    def teacher_features(self, normalized: Tensor) -> Tensor:
        """Channel-normalized teacher output, N x 384 x 56 x 56, float32, for ImageNet-normalized images."""
        return self.normalize_features(self.teacher(normalized).float())

    def normalize_features(self, features: Tensor) -> Tensor:
        """Teacher output N x 384 x 56 x 56, float32, normalized channel by channel."""
        return (features - self.teacher_mean) / self.teacher_std

    def raw_maps(self, images: Tensor) -> RawMaps:
        """The maps of sections 3.2 and 3.3, means over the channels of squared differences, and the memory's.

        Args:
            images: N x 3 x S x S, float32 RGB in [0, 1].
        """
        normalized = self.normalize(images)
        student = None if self.student is None else self.student(normalized).float()
        autoencoder = None if self.autoencoder is None else self.autoencoder(normalized).float()
        return self.compare(self.teacher_features(normalized), student, autoencoder)

    def compare(self, teacher: Tensor, student: Tensor | None, autoencoder: Tensor | None) -> RawMaps:
        """The maps, from the normalized output of the teacher and those of the other networks, all float32.

        Args:
            teacher, autoencoder: N x 384 x 56 x 56.
            student: N x 768 x 56 x 56.
        """
        memory = memory_map(teacher, self.memory, self.memory_weights) if len(self.memory) else None
        if student is None:
            return RawMaps(None, None, memory)
        teacher_part, autoencoder_part = student.split(FEATURE_CHANNELS, dim=1)
        return RawMaps(
            (teacher - teacher_part).square().mean(dim=1, keepdim=True),
            (autoencoder - autoencoder_part).square().mean(dim=1, keepdim=True),
            memory,
        )

    def combine_maps(self, maps: RawMaps) -> Tensor:
        """Quantile-normalize the maps and average them with their weights (section 3.4), at the input's size.

        Returns:
            N x 1 x S x S, float32, on the 0-255 scale, where 0 is the 0.9 and 25.5 the 0.995 quantile of good
            pixels of each map, not of their average. Values may be negative and may exceed 255.
        """
        normalized = [
            0.1 * weight * (raw - start) / (end - start)
            for raw, (start, end), weight in zip(maps, self.quantiles, self.map_weights, strict=True)
            if raw is not None
        ]
        # The quantiles ignore this padding: a border of zeros means "unremarkable".
        combined = F.pad(sum(normalized), (MAP_PADDING,) * 4)
        size = (self.image_size, self.image_size)
        return MAP_SCALE * F.interpolate(combined, size, mode="bilinear", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        """Anomaly maps N x 1 x S x S, float32, 0-255 scale, of RGB images N x 3 x S x S in [0, 1]."""
        return self.combine_maps(self.raw_maps(images))


def pool_features(features: Tensor) -> Tensor:
    """Normalized features N x 384 x 56 x 56 as a memory holds them: averages of 2 x 2, N x 784 x 384."""
    return F.avg_pool2d(features, MEMORY_POOLING).flatten(2).transpose(1, 2)


def memory_map(features: Tensor, memory: Tensor, weights: Tensor) -> Tensor:
    """Distances of features to the nearest patch of a memory: N x 1 x 56 x 56, float32.

    Squared, weighted, the mean over the channels. The nearest patch is found by matrix products, in the precision
    of autocast; the distance to it is exact.

    Args:
        features: N x 384 x 56 x 56, float32, normalized.
        memory: P x 384, float32.
        weights: P, float32.
    """
    pooled = pool_features(features)
    likeness, nearest = None, None
    start = 0
    for block in memory.split(_MEMORY_BLOCK):
        # |x - m|^2 = |x|^2 - 2 (x m - |m|^2 / 2), and |x|^2 is the same for every m
        best, place = F.linear(pooled, block, -block.square().sum(dim=1) / 2).max(dim=2)
        nearest = start + place if nearest is None else torch.where(best > likeness, start + place, nearest)
        likeness = best if likeness is None else torch.maximum(best, likeness)
        start += len(block)
    distances = (pooled - memory[nearest]).square().mean(dim=2) * weights[nearest]
    side = features.shape[-1] // MEMORY_POOLING
    coarse = distances.view(-1, 1, side, side)
    return F.interpolate(coarse, features.shape[-2:], mode="bilinear", align_corners=False)


def anomaly_score(anomaly_maps: Tensor) -> Tensor:
    """Image scores, shape N, float32: the mean of the highest SCORED_SHARE of each map N x 1 x S x S.

    The paper takes the maximum. Every patch that sees some of a defect has a high value, so there are many, and
    their mean depends less on chance. May exceed 255.
    """
    values = anomaly_maps.flatten(1)
    return values.topk(max(1, round(SCORED_SHARE * values.shape[1])), dim=1).values.mean(dim=1)


def infer_model_size(teacher_state: dict[str, Tensor]) -> str | None:
    """small or medium, by the width of the first layer ("0.weight"), or None for any other."""
    first = teacher_state.get("0.weight")
    widths = {128: "small", 256: "medium"}
    return widths.get(first.shape[0]) if first is not None and first.dim() == 4 else None
