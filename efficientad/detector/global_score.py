"""The global score: how far the composition of a whole image is from that of good images.

Parts that are missing, doubled or exchanged look right patch by patch. What tells them is how much of what there is
in each row and column of the image: the teacher's features averaged over 8 horizontal and 8 vertical bands, and the
Mahalanobis distances of these from those of good images. (PUAD, arXiv 2402.15143, takes features of the student
averaged over the whole image, and adds its score. Here the bands also tell where, so that it becomes a map.) Not in
the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.detector.anomaly_maps import anomaly_score
from efficientad.detector.grid import Cells
from efficientad.detector.networks import FEATURE_CHANNELS

BANDS = 8
CHANNELS = 32  # that are left of the features' 384: their principal components
VIEWS = 2  # rows and columns
SIZE = CHANNELS * BANDS  # of what describes an image in one view
_TINY = 1e-12
_LEAST_SCORE = 1.0  # by which a height is divided


class GlobalScore(nn.Module):
    """What is fitted on good images for it; see training.global_fit.

    Buffers:
        basis: 32 x 384, principal components.
        mean: 2 x 256, of good images' rows and columns.
        whitening: 2 x 256 x 256, the inverse roots of their covariances.
        levels: 3 x 2; of the distances in rows and columns, and of the larger one of both, normalized, the median
            and the 0.95 quantile over good images that had no part in them.
        peak: a scalar, the height of the map where the larger one is at its 0.95 quantile; on the scale of scores.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(CHANNELS, FEATURE_CHANNELS))
        self.register_buffer("mean", torch.zeros(VIEWS, SIZE))
        self.register_buffer("whitening", torch.zeros(VIEWS, SIZE, SIZE))
        self.register_buffer("levels", torch.tensor([(0.0, 1.0)] * (VIEWS + 1)))
        self.register_buffer("peak", torch.tensor(0.0))
        for name, length in zip(("of_rows", "of_columns"), grid, strict=True):
            matrix = F.adaptive_avg_pool1d(torch.eye(length)[None], BANDS)[0].T.contiguous()
            self.register_buffer(name, matrix, persistent=False)

    def average(self, features: Tensor, cells: Cells | None = None, counted: Tensor | None = None) -> Tensor:
        """Averages over 8 x 8 fields of the image, N x 384 x 8 x 8, float32.

        Args:
            features: N x 384 x the grid, normalized, or of some cells; the averages are sums of those of all tiles.
            counted: bools N x 1 x as many; what does not count is taken as average.
        """
        rows, columns = self.of_rows, self.of_columns
        if cells is not None:
            rows, columns = rows[:, cells.slices[0]], columns[:, cells.slices[1]]
        with torch.autocast(features.device.type, enabled=False):
            values = features.float() if counted is None else torch.where(counted, features.float(), 0)
            return rows @ (values @ columns.T)

    def describe(self, averages: Tensor) -> Tensor:
        """Rows and columns of images: N x 2 x 256, from their averages."""
        with torch.autocast(averages.device.type, enabled=False):
            fields = (self.basis @ averages.flatten(2)).unflatten(2, (BANDS, BANDS))
            return torch.stack([fields.mean(dim=3), fields.mean(dim=2)], dim=1).flatten(2)

    def energies(self, averages: Tensor) -> Tensor:
        """Of each band, N x 2 x 8: their sum in each view is the squared Mahalanobis distance."""
        deviation = self.describe(averages) - self.mean
        with torch.autocast(averages.device.type, enabled=False):
            white = (self.whitening @ deviation.unsqueeze(3)).squeeze(3)
        return white.square().unflatten(2, (CHANNELS, BANDS)).sum(dim=2)

    def forward(self, averages: Tensor, factors: Tensor | None = None) -> Tensor:
        """The map, N x 1 x 8 x 8, float32, at least 0 and on the scale of scores.

        It is 0 for the distance of half of the good images, and its highest value grows with the distance. Where
        rows and columns that are unusual cross each other, it is highest.

        Args:
            factors: N x 2, by which the squared distances are greater than these averages show.
        """
        energies = self.energies(averages)
        if factors is not None:
            energies = energies * factors.unsqueeze(2)
        heights = normalize(energies.sum(dim=2), self.levels[:VIEWS])
        shares = energies / (energies.amax(dim=2, keepdim=True) + _TINY) * heights.clamp(min=0).unsqueeze(2)
        crossing = shares[:, 0].unsqueeze(2) + shares[:, 1].unsqueeze(1)
        crossing = crossing / (crossing.amax(dim=(1, 2), keepdim=True) + _TINY)
        larger = normalize(heights.amax(dim=1), self.levels[VIEWS]).clamp(min=0)
        return (self.peak * larger.view(-1, 1, 1) * crossing).unsqueeze(1)


def normalize(distances: Tensor, levels: Tensor) -> Tensor:
    """Distances so that the first level becomes 0 and the second one 1."""
    return (distances - levels[..., 0]) / (levels[..., 1] - levels[..., 0])


def join_global(anomaly_maps: Tensor, global_map: Tensor, inspected: Tensor | None = None) -> Tensor:
    """Anomaly maps N x 1 x H x W, joined with those of the global score, N x 1 x 8 x 8.

    What is above 0 is multiplied: where the global map is highest, by as much as turns the score into the root of
    the sum of its square and that of the global map's highest value; half as much more where the global map is 0.
    So what is unusual in the image still stands out. Where there is nothing of the kind, the global map is seen
    itself, lowered by the score.

    Args:
        inspected: bools N x H x W, where the maps are not 0; None: everywhere.
    """
    height = global_map.amax(dim=(2, 3), keepdim=True)
    score = anomaly_score(anomaly_maps).clamp(min=_LEAST_SCORE).view(-1, 1, 1, 1)
    gain = (1 + (height / score).square()).sqrt() - 1
    shape = global_map / (height + _TINY)
    shape = F.interpolate(shape, anomaly_maps.shape[2:], mode="bilinear", align_corners=False)
    raised = torch.where(anomaly_maps > 0, anomaly_maps * (1 + gain * (1 + shape) / 2), anomaly_maps)
    alone = (height - score).clamp(min=0) * shape
    if inspected is not None:
        alone = torch.where(inspected[:, None], alone, 0)
    return torch.where(alone > raised.clamp(min=0), alone, raised)
