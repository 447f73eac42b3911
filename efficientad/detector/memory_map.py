"""The map of a memory: how far each place of an image is from all that good images show."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MEMORY_POOLING = 2  # the memory holds averages of this many by this many patches
_MEMORY_BLOCK = 1024  # patches compared at once: more would not fit into a processor's cache
_GPU_MEMORY_BLOCK = 8192  # for which launching more operations costs more than memory does


def pool_features(features: Tensor) -> Tensor:
    """Normalized features N x 384 x h x w as a memory holds them: N x 384 x h/2 x w/2, rounded up.

    Each is the average of 2 x 2; at the end of an odd side that of a row or column alone.
    """
    height, width = features.shape[-2:]
    if height % MEMORY_POOLING or width % MEMORY_POOLING:
        features = F.pad(features, (0, width % MEMORY_POOLING, 0, height % MEMORY_POOLING), mode="replicate")
    return F.avg_pool2d(features, MEMORY_POOLING)


def memory_distances(features: Tensor, memory: Tensor, weights: Tensor) -> Tensor:
    """Distances of features to the nearest patch of a memory: N x 1 x h/2 x w/2, rounded up, float32.

    Squared, weighted, the mean over the channels. The nearest patch is found by matrix products, in the precision
    of autocast; the distance to it is exact.

    Args:
        features: N x 384 x h x w, float32, normalized.
        memory: P x 384, float32.
        weights: P, float32.
    """
    pooled = pool_features(features)
    shape = pooled.shape[-2:]
    pooled = pooled.flatten(2).transpose(1, 2)
    likeness, nearest = None, None
    start = 0
    for block in memory.split(_GPU_MEMORY_BLOCK if features.is_cuda else _MEMORY_BLOCK):
        # |x - m|^2 = |x|^2 - 2 (x m - |m|^2 / 2), and |x|^2 is the same for every m
        best, place = F.linear(pooled, block, -block.square().sum(dim=1) / 2).max(dim=2)
        nearest = start + place if nearest is None else torch.where(best > likeness, start + place, nearest)
        likeness = best if likeness is None else torch.maximum(best, likeness)
        start += len(block)
    distances = (pooled - memory[nearest]).square().mean(dim=2) * weights[nearest]
    return distances.view(-1, 1, *shape)


def spread_distances(distances: Tensor, grid: tuple[int, int]) -> Tensor:
    """Distances of averages of 2 x 2 cells, N x 1 x h/2 x w/2, on the grid of h x w cells, bilinear."""
    size = [MEMORY_POOLING * length for length in distances.shape[-2:]]
    fine = F.interpolate(distances, size, mode="bilinear", align_corners=False)
    return fine[..., : grid[0], : grid[1]]
