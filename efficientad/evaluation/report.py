"""The results of an evaluation, and its files scores.csv, mismatch_samples.csv and metrics.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from efficientad.data.datasets import Sample
from efficientad.evaluation.image_metrics import (
    INTERVAL,
    ImageMetrics,
    Row,
    class_groups,
    image_metrics,
    merge_copies,
    overall_group,
)
from efficientad.evaluation.pixel_metrics import PixelMetrics
from efficientad.evaluation.sweep import SweepRow, sweep_thresholds
from efficientad.evaluation.thumbnails import Picture
from efficientad.system.files import write_csv, write_text_atomically

SCORES_FILE = "scores.csv"
MISMATCH_FILE = "mismatch_samples.csv"
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class ScoredSample:
    """A test image with its score; light enough to keep thousands."""

    sample: Sample
    digest: str
    score: float
    picture: Picture | None = None  # for report.html

    def is_mismatch(self, threshold: float) -> bool:
        """Whether label and decision disagree: a missed defect, a false alarm, or a wrong label."""
        return self.sample.is_anomalous != (self.score > threshold)


@dataclass(frozen=True)
class Decisions:
    """The metrics of the decisions at one threshold."""

    threshold: float
    classes: list[Row]
    overall: Row
    distinct: Row | None  # over distinct images, if some are in several classes
    sweep: list[SweepRow]  # at this and other informative thresholds
    sweep_recalls: dict[str, list[float]]  # of each defect class, in the order of the sweep


@dataclass(frozen=True)
class Evaluation(Decisions):
    """Every number of one evaluation."""

    others: list[Decisions]  # at the further thresholds of --thresholds
    image_metrics: ImageMetrics
    pixel_metrics: PixelMetrics | None  # if the data set has masks

    @property
    def is_chance(self) -> bool:
        """Whether the interval of the AUROC reaches down to 0.5."""
        return self.image_metrics.overall.auroc.low <= 0.5


def evaluate_scores(
    scored: Sequence[ScoredSample],
    threshold: float,
    other_thresholds: Sequence[float] = (),
    pixel_metrics: PixelMetrics | None = None,
) -> Evaluation:
    """All metrics of the scored images (at least one); the pixel metrics are included as they are."""
    y_true, y_score, digests, names = _columns(scored)
    groups, overall, distinct = class_groups(names, y_true, y_score), overall_group(y_true, y_score), None
    if len(set(digests)) < len(digests):
        distinct = overall_group(*merge_copies(digests, y_true, y_score), "Distinct images")

    def decide(threshold: float) -> Decisions:
        sweep = sweep_thresholds(y_true, y_score, threshold)
        return Decisions(
            threshold,
            classes=[group.row(threshold) for group in groups],
            overall=overall.row(threshold),
            distinct=distinct and distinct.row(threshold),
            sweep=sweep,
            sweep_recalls={
                group.name: [group.row(row.threshold).recall for row in sweep]
                for group in groups
                if group.y_true.all()
            },
        )

    return Evaluation(
        **vars(decide(threshold)),
        others=list(map(decide, other_thresholds)),
        image_metrics=image_metrics(names, digests, y_true, y_score),
        pixel_metrics=pixel_metrics,
    )


def _columns(scored: Sequence[ScoredSample]) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Labels, scores, digests and class names."""
    return (
        np.array([item.sample.is_anomalous for item in scored]),
        np.array([item.score for item in scored]),
        [item.digest for item in scored],
        [item.sample.class_name for item in scored],
    )


def describe_chance(evaluation: Evaluation, input_size: tuple[int, int]) -> str:
    """A warning with advice where the detector is no better than chance, else empty.

    Args:
        input_size: height and width of what the networks see.
    """
    if not evaluation.is_chance:
        return ""
    auroc, (height, width) = evaluation.image_metrics.overall.auroc, input_size
    return (
        f"No better than chance on these images: the {100 * INTERVAL:g} % interval of the AUROC, {auroc.low:.3f} "
        f"to {auroc.high:.3f}, includes 0.5. Try more training steps (train.py --recipe paper --train_steps N), "
        f"images cropped to the part (the networks see {height} x {width} pixels), and the same view and "
        "light for every part."
    )


def write_scores(path: Path, scored: Iterable[ScoredSample], threshold: float) -> None:
    """Write a line for every image, in the order of the classes."""
    header = ["defect_class", "image_name", "y_score", "y_true", "y_pred", "path", "threshold", "sha256"]
    write_csv(
        path,
        header,
        (
            [
                item.sample.class_name,
                item.sample.image_name,
                _exact(item.score),
                int(item.sample.is_anomalous),
                int(item.score > threshold),
                item.sample.path,
                f"{threshold:g}",
                item.digest,
            ]
            for item in scored
        ),
    )


def write_mismatches(path: Path, scored: Iterable[ScoredSample], threshold: float) -> int:
    """Write the images whose label and decision disagree, farthest from the threshold first; return how many."""
    mismatches = [item for item in scored if item.is_mismatch(threshold)]
    mismatches.sort(key=lambda item: -abs(item.score - threshold))
    rows = (
        [
            item.sample.class_name,
            item.sample.image_name,
            _exact(item.score),
            item.sample.path,
            f"{threshold:g}",
            _exact(item.score - threshold),
        ]
        for item in mismatches
    )
    write_csv(path, ["defect_class", "image_name", "y_score", "path", "threshold", "margin"], rows)
    return len(mismatches)


def write_metrics(path: Path, evaluation: Evaluation, facts: dict) -> None:
    """Write all metrics and the run's facts as JSON; undefined values are null."""
    contents = {**facts, **asdict(evaluation)}
    write_text_atomically(path, json.dumps(_without_nan(contents), indent=2) + "\n")


def _exact(value: float) -> str:
    return f"{value:.9g}"  # nine digits identify a float32


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
