"""Image-level metrics: arrays in, rows out. Positive means anomalous; undefined values are nan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from efficientad.evaluation import curves

RESAMPLES = 1000
INTERVAL = 0.95
_DRAWS_AT_ONCE = 1_000_000  # bounds the memory of the bootstrap


@dataclass(frozen=True)
class Row:
    """One line of a metrics table. Ratios are in [0, 1]."""

    name: str
    accuracy: float
    precision: float
    recall: float
    count: int
    auroc: float


@dataclass(frozen=True)
class Estimate:
    """A metric in [0, 1], and the bounds of its bootstrap interval (INTERVAL)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ImageRow:
    """How well scores separate the anomalous images of one class, or of all classes, from all good images.

    Independent of a threshold; every distinct image counts once.
    """

    name: str
    anomalous: int
    good: int
    auroc: Estimate
    average_precision: Estimate
    f1_max: Estimate
    f1_max_threshold: float  # scores above it, called anomalous, reach f1_max
    recall_at_fpr_1: Estimate  # with at most 1 % of the good images called anomalous
    recall_at_fpr_5: Estimate


@dataclass(frozen=True)
class ImageMetrics:
    """A row for each defect class, sorted by name, and one over all of them."""

    classes: list[ImageRow]
    overall: ImageRow


def image_auroc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Area under the ROC curve; nan without good or without anomalous images.

    Args:
        y_true: N bools, whether the image is labelled anomalous.
        y_score: N floats, higher means more anomalous.

    >>> image_auroc(np.array([False, False, True]), np.array([1.0, 3.0, 2.0]))
    0.5
    """
    if not y_true.any() or y_true.all():
        return math.nan
    scores, place = curves.rank(y_score)
    return float(curves.auroc(*(curves.count(place[kind], len(scores)) for kind in (y_true, ~y_true))))


def decision_row(name: str, y_true: np.ndarray, y_score: np.ndarray, threshold: float, auroc: float) -> Row:
    """Accuracy, precision and recall of calling an image anomalous when its score is > threshold.

    Precision is nan where nothing is called anomalous, recall where nothing is anomalous.

    Args:
        y_true: N bools, N >= 1.
        y_score: N floats.
        auroc: copied into the row.
    """
    called = y_score > threshold
    hits = int((called & y_true).sum())
    return Row(
        name,
        accuracy=float((called == y_true).mean()),
        precision=share_of(hits, int(called.sum())),
        recall=share_of(hits, int(y_true.sum())),
        count=len(y_true),
        auroc=auroc,
    )


def share_of(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


@dataclass(frozen=True)
class Group:
    """The labels (N bools) and scores (N floats) behind a row, and its AUROC."""

    name: str
    y_true: np.ndarray
    y_score: np.ndarray
    auroc: float

    def row(self, threshold: float) -> Row:
        """The row of the decisions at this threshold."""
        return decision_row(self.name, self.y_true, self.y_score, threshold, self.auroc)


def class_groups(class_names: Sequence[str], y_true: np.ndarray, y_score: np.ndarray) -> list[Group]:
    """The group of each class, sorted by name.

    Decisions are counted within the images of that class alone: so a defect class has precision 1 (or nan), the
    good class 0 (or nan) and no recall. The AUROC of a defect class is against all good images; the good class has
    none.

    Args:
        class_names: N names; all images of a class share their label.
        y_true, y_score: N labels and scores.
    """
    names = np.asarray(class_names)
    groups = []
    for name in np.unique(names):
        inside = names == name
        against_good = inside | ~y_true
        auroc = image_auroc(y_true[against_good], y_score[against_good])
        groups.append(Group(str(name), y_true[inside], y_score[inside], auroc))
    return groups


def overall_group(y_true: np.ndarray, y_score: np.ndarray, name: str = "Overall") -> Group:
    """The group of all N images."""
    return Group(name, y_true, y_score, image_auroc(y_true, y_score))


def merge_copies(digests: Sequence[str], y_true: np.ndarray, y_score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the distinct images, in order of first appearance.

    An image with several defects is in several class folders. It is anomalous if any copy is.

    Args:
        digests: N strings, equal where the files have the same bytes.
    """
    _, first, index = np.unique(digests, return_index=True, return_inverse=True)
    labels = np.zeros(len(first), dtype=bool)
    np.logical_or.at(labels, index, y_true)
    order = np.argsort(first)
    return labels[order], y_score[first[order]]


def image_metrics(
    class_names: Sequence[str], digests: Sequence[str], y_true: np.ndarray, y_score: np.ndarray
) -> ImageMetrics:
    """The metrics that need no threshold, over distinct images, with bootstrap intervals.

    A distinct image is good if no copy is labelled anomalous.

    Args:
        class_names, digests: N strings; digests are equal where the files have the same bytes.
        y_true, y_score: N labels and scores; all images of a class share their label.
    """
    _, first, index = np.unique(digests, return_index=True, return_inverse=True)
    scores, anomalous = y_score[first], np.zeros(len(first), dtype=bool)
    anomalous[index[y_true]] = True
    good_scores, names = scores[~anomalous], np.asarray(class_names)
    return ImageMetrics(
        classes=[
            image_row(str(name), scores[np.unique(index[names == name])], good_scores)
            for name in np.unique(names[y_true])
        ],
        overall=image_row("Overall", scores[anomalous], good_scores),
    )


def image_row(name: str, anomalous_scores: np.ndarray, good_scores: np.ndarray) -> ImageRow:
    """One row: the metrics of curves.py and their percentile intervals.

    The bootstrap draws RESAMPLES times from a fixed seed, anomalous and good images separately, so that every
    resample has both. All values are nan if one kind of image is missing, and intervals also with a single image
    of a kind. Where the scores separate perfectly, so does every resample: the interval is then too narrow.

    Args:
        anomalous_scores, good_scores: P and N floats of distinct images.

    >>> row = image_row("dent", np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    >>> row.auroc.value, row.average_precision.value, row.f1_max_threshold
    (0.625, 0.75, 2.5)
    """
    values, place = curves.rank(np.concatenate((anomalous_scores, good_scores)))
    count = len(anomalous_scores)
    places = np.sort(place[:count]), np.sort(place[count:])  # the order of the images must not change the intervals
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "auroc": curves.auroc,
        "average_precision": curves.average_precision,
        "f1_max": lambda hits, alarms: curves.f1_max(hits, alarms)[0],
        "recall_at_fpr_1": lambda hits, alarms: curves.recall_at_fpr(hits, alarms, 0.01),
        "recall_at_fpr_5": lambda hits, alarms: curves.recall_at_fpr(hits, alarms, 0.05),
    }
    if min(len(anomalous_scores), len(good_scores)) == 0:
        undefined = Estimate(np.nan, np.nan, np.nan)
        estimates, threshold = dict.fromkeys(metrics, undefined), np.nan
    else:
        curve = [curves.count(kind, len(values)) for kind in places]
        threshold = curves.threshold_below(values, int(curves.f1_max(*curve)[1]))
        resampled = _resample(places, metrics)
        estimates = {name: Estimate(float(metric(*curve)), *resampled[name]) for name, metric in metrics.items()}
    return ImageRow(name, len(anomalous_scores), len(good_scores), f1_max_threshold=float(threshold), **estimates)


def _resample(
    places: tuple[np.ndarray, np.ndarray], metrics: dict[str, Callable]
) -> dict[str, tuple[float, float]]:
    """The interval of each metric over resamples, many of which are computed at once."""
    if min(map(len, places)) < 2:
        return dict.fromkeys(metrics, (np.nan, np.nan))
    rng = np.random.default_rng(0)
    length = int(max(kind.max() for kind in places)) + 1
    at_once = max(1, _DRAWS_AT_ONCE // max(map(len, places)))
    found: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        resampled_curves = [_draw(kind, count, length, rng).cumsum(axis=1) for kind in places]
        for name, metric in metrics.items():
            found[name].append(metric(*resampled_curves))
    tails = [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]
    return {name: tuple(np.quantile(np.concatenate(parts), tails).tolist()) for name, parts in found.items()}


def _draw(places: np.ndarray, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """How often each entry of the curve is drawn, in `count` resamples with replacement: count x length."""
    drawn = places[rng.integers(len(places), size=(count, len(places)))]
    drawn += np.arange(count)[:, None] * length
    return np.bincount(drawn.ravel(), minlength=count * length).reshape(count, length)
