"""The targets of a teacher: 384 channels made from an ImageNet network's features (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.detector.grid import PATCH_CENTRE, PATCH_STRIDE, grid_side
from efficientad.detector.networks import FEATURE_CHANNELS
from efficientad.pretraining.backbones import Backbone
from efficientad.system.devices import autocast
from efficientad.system.distributed import sum_over_ranks

_POOLED = 1024  # channels of a layer on the paper's way to 384
_SMALLEST_STD = 1e-6
_LEAST_VARIANCE = 0.01  # of the mean of all channels; below it they are not scaled to one


class DistillationTarget(nn.Module):
    """A backbone's features as 384 channels of mean 0 and standard deviation 1, one for each patch of the teacher.

    Two projections, both linear and fixed before the distillation:

    pool: the paper's. Each layer's 3x3 neighbourhoods (C * 9 values) are averaged in equal shares to 1024, the
        layers concatenated and averaged again to 384. Both averages are one 3x3 convolution for each layer here.
    pca: each layer averaged over 3x3 and standardized, the layers concatenated; the 384 strongest principal
        components, turned by a random rotation, so that every channel carries an equal share of each.

    The paper resizes the deeper layer to the shallower one's grid. Here every layer is sampled, bilinearly, at the
    centre of each of the teacher's patches, which is the same up to a fraction of a cell.
    """

    def __init__(self, backbone: Backbone, projection: str, image_size: int, backbone_size: int) -> None:
        """
        Args:
            projection: pool or pca, see above.
            image_size, backbone_size: side of the square images of the teacher and of the backbone, in pixels.
        """
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.image_size = image_size
        self.backbone_size = backbone_size
        self.weights: list[Tensor] = []  # for each layer 384 x C x 3 x 3 (pool) or 384 x C x 1 x 1 (pca)
        self.register_buffer("mean", torch.zeros(1, FEATURE_CHANNELS, 1, 1))
        self.register_buffer("std", torch.ones(1, FEATURE_CHANNELS, 1, 1))

    @torch.inference_mode()
    def fit(self, batches: Iterable[Tensor], precision: str) -> None:
        """Find the projection, if it depends on the features, and the 384 channels' mean and standard deviation.

        Args:
            batches: images for the backbone, N x 3 x B x B, float32 in [0, 1]: this process's share.
        """
        total, squares, count = 0.0, 0.0, 0
        for images in batches:
            features = self._features(images, precision)
            if self.projection == "pool" and not self.weights:
                self.weights = pooling_weights([layer.shape[1] for layer in features], images.device)
            maps = [self._at_patches(layer) for layer in features] if self.projection == "pca" else None
            values = torch.cat(maps, dim=1)[:, :, ::2, ::2] if maps else self._project(features)
            rows = values.double().permute(0, 2, 3, 1).flatten(0, 2)
            total = total + rows.sum(dim=0)
            squares = squares + (rows.T @ rows if maps else rows.square().sum(dim=0))
            count += len(rows)
            channels = [layer.shape[1] for layer in features]
        seen = sum_over_ranks(torch.full_like(total[:1], count))
        mean = sum_over_ranks(total) / seen
        squares = sum_over_ranks(squares) / seen  # in float64, so the difference keeps its digits
        if self.projection == "pca":
            mean, variance = self._fit_components(mean, squares - torch.outer(mean, mean), channels)
        else:
            variance = squares - mean.square()
        std = variance.clamp_min(0).sqrt()
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(torch.where(std > _SMALLEST_STD, std, 1.0).view_as(self.std))

    def _fit_components(self, mean: Tensor, covariance: Tensor, channels: Sequence[int]) -> tuple[Tensor, Tensor]:
        variances = covariance.diagonal()
        # A channel that is zero in nearly every image must not be blown up in the others.
        scale = variances.clamp_min(max(_LEAST_VARIANCE * float(variances.mean()), _SMALLEST_STD**2)).rsqrt()
        _, components = torch.linalg.eigh(scale[:, None] * covariance * scale)
        components = components[:, -FEATURE_CHANNELS:]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(scale), FEATURE_CHANNELS, generator=generator, dtype=torch.float64)
        # The axes in the components' space nearest to the noise: machines that disagree on the signs or the order
        # of components still agree on these, so that a run begun on one machine can be resumed on another.
        left, _, right = torch.linalg.svd(components.T @ noise.to(components.device), full_matrices=False)
        projection = scale[:, None] * (components @ (left @ right))  # all channels x 384
        parts = projection.float().T[:, :, None, None].split(list(channels), dim=1)
        self.weights = [part.contiguous() for part in parts]
        return mean @ projection, (projection * (covariance @ projection)).sum(dim=0)

    @torch.no_grad()  # not inference_mode: the loss takes these tensors
    def forward(self, images: Tensor, precision: str) -> Tensor:
        """Targets N x 384 x P x P, float32, of the P x P patches of the teacher (56 x 56 for 256 pixels).

        Args:
            images: for the backbone, N x 3 x B x B, float32 in [0, 1]; the teacher sees them at S x S.
        """
        return (self._project(self._features(images, precision)) - self.mean) / self.std

    def fitted(self) -> dict[str, Tensor | list[Tensor]]:
        """The result of fit, to be saved; see restore."""
        return {"weights": self.weights, "mean": self.mean, "std": self.std}

    def restore(self, fitted: dict[str, Tensor | list[Tensor]]) -> None:
        """Restore what `fitted` returned, instead of calling fit."""
        self.weights = [weight.to(self.mean.device) for weight in fitted["weights"]]
        self.mean.copy_(fitted["mean"])
        self.std.copy_(fitted["std"])

    def _features(self, images: Tensor, precision: str) -> list[Tensor]:
        with autocast(images.device, precision):
            features = [layer.float() for layer in self.backbone(images)]
        if self.projection == "pool":
            return features
        return [F.avg_pool2d(layer, 3, 1, padding=1, count_include_pad=False) for layer in features]

    def _project(self, features: Sequence[Tensor]) -> Tensor:
        return sum(
            self._at_patches(F.conv2d(layer, weight, padding=weight.shape[-1] // 2))
            for layer, weight in zip(features, self.weights, strict=True)
        )

    def _at_patches(self, layer: Tensor) -> Tensor:
        """N x C x H x W over the whole image -> N x C x P x P, sampled at the centres of the teacher's patches."""
        # A cell of stride s covers s pixels, but its receptive field is centred on the first of them.
        cell_offset = 0.5 / layer.shape[-1] - 0.5 / self.backbone_size  # as a share of the image's side
        patches = torch.arange(grid_side(self.image_size), device=layer.device)
        centres = (PATCH_STRIDE * patches + PATCH_CENTRE + 0.5) / self.image_size
        places = 2 * (centres + cell_offset) - 1  # grid_sample's -1 and 1 are the image's edges
        grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1)
        grid = grid.expand(len(layer), -1, -1, -1).to(layer.dtype)
        return F.grid_sample(layer, grid, mode="bilinear", padding_mode="border", align_corners=False)


def pooling_weights(channels: Sequence[int], device: torch.device) -> list[Tensor]:
    """The paper's two adaptive averages as a convolution for each layer: 384 x C x 3 x 3, to be summed.

    Args:
        channels: C of each layer.
    """
    layers = averaging_matrix(_POOLED * len(channels), FEATURE_CHANNELS).split(_POOLED, dim=1)
    return [
        (to_output @ averaging_matrix(count * 9, _POOLED)).view(FEATURE_CHANNELS, count, 3, 3).to(device)
        for count, to_output in zip(channels, layers, strict=True)
    ]


def averaging_matrix(size_in: int, size_out: int) -> Tensor:
    """adaptive_avg_pool1d from size_in to size_out values as a matrix, size_out x size_in."""
    matrix = torch.zeros(size_out, size_in)
    for row in range(size_out):
        start, end = row * size_in // size_out, -((row + 1) * size_in // -size_out)
        matrix[row, start:end] = 1 / (end - start)
    return matrix
