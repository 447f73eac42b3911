"""How unusual each training image is to a memory that has not learnt from it.

A memory without the patches of one image is nearly the one that the other images would have led to. So that image
scores as a new good image would, and each of them helps to set the threshold; one whose score stands out is perhaps
no good part at all. On screws, pills and drawn boards these scores were distributed as those of good test images or
a little higher; where the training images show each part several times, they are too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from efficientad.detector.anomaly_maps import RawMaps, anomaly_score
from efficientad.detector.calibration import outlier_level
from efficientad.detector.memory_map import memory_distances
from efficientad.detector.model import EfficientAD
from efficientad.system.devices import autocast
from efficientad.system.distributed import gather_shares
from efficientad.system.errors import list_some, printable
from efficientad.system.files import write_csv
from efficientad.training.cache import ImageSet, TeacherFeatures, features_of_each
from efficientad.training.memory import first_copies

SCORES_FILE = "training_scores.csv"


class GoodScore(NamedTuple):
    """What a good image of the training scores as a new one."""

    name: str
    score: float
    held_out: bool  # nothing was learnt from it; otherwise it was left out of the memory


@torch.inference_mode()
def score_left_out(
    model: EfficientAD,
    images: ImageSet,
    indices: range,
    teacher_features: TeacherFeatures,
    owners: Tensor,
    factors: Tensor | None,
    precision: str,
) -> list[float]:
    """The score of each training image as if it and its copies had not been there, on every process.

    Args:
        model: with a memory alone, and the map quantiles.
        indices: of the training images in `images`.
        teacher_features: of the model's teacher.
        owners: the image that each patch of the memory is of; see fit_memory.
        factors: of the distances of the global score; see fit_global_score. None without one.

    Returns:
        In the order of `indices`; none if the memory is of a single image.
    """
    originals = first_copies(images.digests)
    if len(owners.unique()) < 2:
        return []
    device = model.memory.device
    scores: list[float] = []
    for batch, tiles in features_of_each(model, images, indices, teacher_features, "Leaving one out"):
        others = (owners != originals[batch.indices]).to(device)
        memory, weights = model.memory[others], model.memory_weights[others]
        distances, averages = [], []
        for tile in tiles:
            with autocast(device, precision):
                distances.append(memory_distances(tile.features, memory, weights))
            if factors is not None:
                averages.append(model.global_score.average(*tile))
        overall = None
        if factors is not None:
            overall = model.global_score(sum(averages), factors[batch.indices].to(device))
        maps = RawMaps(None, None, model.join_distances(distances), overall)
        scores += anomaly_score(model.combine_maps(maps, batch.inspected)).tolist()
    return gather_shares(scores)


def write_scores(path: Path, scores: Sequence[GoodScore]) -> None:
    """Write SCORES_FILE, the most unusual images first."""
    ordered = sorted(scores, key=lambda row: -row.score)
    rows = ([row.name, f"{row.score:.9g}", "held out" if row.held_out else "left out"] for row in ordered)
    write_csv(path, ["image", "score", "how"], rows)


def find_outliers(scores: Sequence[GoodScore]) -> list[GoodScore]:
    """Those of the scores that stand out, the highest first; see calibration.outlier_level."""
    level = outlier_level([row.score for row in scores])
    return sorted((row for row in scores if row.score > level), key=lambda row: -row.score)


def describe_outliers(outliers: Sequence[GoodScore], file: Path) -> str:
    """Lines for the user; `file` has all scores."""
    names = list_some([f"{row.name} ({row.score:.4g})" for row in outliers])
    if len(outliers) == 1:
        found, advice = "1 good image looks unlike all others, so it does", "If it shows a defect, move it"
    else:
        found = f"{len(outliers)} good images look unlike all others, so they do"
        advice = "If they show defects, move them"
    return (
        f"Note: {found} not count for the threshold:{names}\n"
        f"{advice} elsewhere and train again; all scores are in {printable(str(file))}"
    )
