"""Fitting the global score on the training images, each of which is also measured as if it had not been there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from efficientad.detector.global_score import BANDS, CHANNELS, SIZE, VIEWS, GlobalScore, normalize
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import FEATURE_CHANNELS
from efficientad.system.distributed import gather_shares
from efficientad.training.cache import ImageSet, TeacherFeatures, features_of_each
from efficientad.training.memory import first_copies

FEWEST_IMAGES = 20
PEAK = 25.5  # at the 0.95 quantile of good images, with a weight of 1
_QUANTILES = (0.5, 0.95)
_LEAST_VARIANCE = 1e-9  # of the features' own, which is 1


@torch.no_grad()
def fit_global_score(
    model: EfficientAD, images: ImageSet, indices: range, teacher_features: TeacherFeatures, weight: float
) -> Tensor | None:
    """Set model.global_score, the same on every process.

    Args:
        model: with the teacher's statistics.
        indices: of the training images in `images`.
        teacher_features: of the model's teacher.
        weight: above 0.

    Returns:
        Of each training image by how much its squared distances would be greater if it had not been there, n x 2,
        float32, on the CPU; None, and no global score, if there are fewer than FEWEST_IMAGES different images, or
        if these do not vary.
    """
    originals = first_copies(images.digests)[: len(indices)]
    kept, place = originals.unique(return_inverse=True)
    if len(kept) < FEWEST_IMAGES:
        return None
    score = GlobalScore(model.grid)
    averages = _average(model, score.to(model.quantiles.device), images, indices, teacher_features)[kept]
    score = score.to("cpu")
    score.basis.copy_(principal_components(averages))
    described = score.describe(averages).double().numpy()
    distances, factors = np.zeros((len(kept), VIEWS)), np.ones((len(kept), VIEWS))
    for view in range(VIEWS):
        mean, whitening, within, left_out = mahalanobis(described[:, view])
        score.mean[view], score.whitening[view] = torch.from_numpy(mean), torch.from_numpy(whitening)
        distances[:, view], factors[:, view] = left_out, left_out / np.maximum(within, np.finfo(float).tiny)
    score.levels[:VIEWS] = torch.from_numpy(np.quantile(distances, _QUANTILES, axis=0).T)
    larger = normalize(torch.from_numpy(distances), score.levels[:VIEWS]).amax(dim=1)
    score.levels[VIEWS] = torch.from_numpy(np.quantile(larger.numpy(), _QUANTILES))
    if not ((score.levels[:, 1] > score.levels[:, 0]).all() and score.whitening.isfinite().all()):
        return None
    score.peak.fill_(weight * PEAK)
    model.global_score = score.to(model.quantiles.device)
    return torch.from_numpy(factors).float()[place]


def principal_components(averages: Tensor) -> Tensor:
    """The first 32 of the 384 channels' averages N x 384 x 8 x 8: 32 x 384, float32."""
    total = torch.zeros(FEATURE_CHANNELS, dtype=torch.float64)
    moments = torch.zeros(FEATURE_CHANNELS, FEATURE_CHANNELS, dtype=torch.float64)
    for image in averages:
        fields = image.flatten(1).double()
        total += fields.sum(dim=1)
        moments += fields @ fields.T
    count = len(averages) * BANDS**2
    _, vectors = torch.linalg.eigh(moments / count - torch.outer(total, total) / count**2)
    return vectors.flip(1)[:, :CHANNELS].T.float()


def mahalanobis(described: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mean of n x 256 values, the inverse root of their covariance, and squared distances from the mean.

    The covariance is that of Ledoit and Wolf. Leaving an image out changes it by a matrix of rank 1, so the
    distance without it follows from those with it (Sherman and Morrison), for the same shrinkage.

    Returns:
        mean, 256 x 256 matrix, the distance of each image, and its distance if it is left out.
    """
    from sklearn.covariance import ledoit_wolf  # slow to import

    count = len(described)
    mean = described.mean(axis=0)
    deviation = described - mean
    covariance, shrinkage = ledoit_wolf(described)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, _LEAST_VARIANCE)
    whitening = (vectors / np.sqrt(values)) @ vectors.T
    within = ((deviation @ whitening) ** 2).sum(axis=1)
    ridge = shrinkage * np.trace(covariance) / SIZE + _LEAST_VARIANCE
    rest = count / (count - 1) * (deviation.T @ deviation) * ((1 - shrinkage) / count) + ridge * np.eye(SIZE)
    leverage = (deviation * np.linalg.solve(rest, deviation.T).T).sum(axis=1)
    removed = (1 - shrinkage) * count / (count - 1) ** 2
    left_out = (count / (count - 1)) ** 2 * leverage / (1 - removed * leverage)
    return mean, whitening, within, left_out


def _average(
    model: EfficientAD, score: GlobalScore, images: ImageSet, indices: range, teacher_features: TeacherFeatures
) -> Tensor:
    """The averages of all training images, n x 384 x 8 x 8, float32, on the CPU of every process."""
    found: list[Tensor] = []
    for _, tiles in features_of_each(model, images, indices, teacher_features, "Comparing compositions"):
        found.append(sum(score.average(*tile) for tile in tiles)[0].cpu())
    return torch.stack(gather_shares(found))
