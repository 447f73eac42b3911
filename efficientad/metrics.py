"""Image-level metrics: arrays in, rows out. Positive means anomalous; an undefined value is nan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score


@dataclass(frozen=True)
class Row:
    """One line of a metrics table. Ratios are in [0, 1]."""

    name: str
    accuracy: float
    precision: float
    recall: float
    count: int
    auroc: float


def image_auroc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Area under the ROC curve; nan unless both good and anomalous images are there.

    Args:
        y_true: N bools, whether the image is labelled anomalous.
        y_score: N floats, higher means more anomalous.

    >>> image_auroc(np.array([False, False, True]), np.array([1.0, 3.0, 2.0]))
    0.5
    """
    return float(roc_auc_score(y_true, y_score)) if y_true.any() and not y_true.all() else float("nan")


def decision_row(name: str, y_true: np.ndarray, y_score: np.ndarray, threshold: float, auroc: float) -> Row:
    """Accuracy, precision and recall of calling an image anomalous when its score is > threshold.

    Precision is nan where nothing is called anomalous, recall where nothing is anomalous.

    Args:
        y_true: N bools, N >= 1.
        y_score: N floats.
        auroc: taken over into the row.
    """
    y_pred = y_score > threshold
    return Row(
        name,
        accuracy=float(accuracy_score(y_true, y_pred)),
        precision=float(precision_score(y_true, y_pred, zero_division=np.nan)),
        recall=float(recall_score(y_true, y_pred, zero_division=np.nan)),
        count=len(y_true),
        auroc=auroc,
    )


def class_rows(class_names: Sequence[str], y_true: np.ndarray, y_score: np.ndarray, threshold: float) -> list[Row]:
    """A row for each class, sorted by name, computed within the images of that class alone.

    So a defect class has precision 1 (or nan), the good class 0 (or nan) and no recall. The AUROC is that
    of a defect class against all good images; the good class has none.

    Args:
        class_names: N names; all images of a class share their label.
        y_true, y_score: N labels and scores.
    """
    names = np.asarray(class_names)
    rows = []
    for name in np.unique(names):
        inside = names == name
        against_good = inside | ~y_true
        auroc = image_auroc(y_true[against_good], y_score[against_good])
        rows.append(decision_row(str(name), y_true[inside], y_score[inside], threshold, auroc))
    return rows


def overall_row(y_true: np.ndarray, y_score: np.ndarray, threshold: float, name: str = "Overall") -> Row:
    """The row over all N images, with their AUROC."""
    return decision_row(name, y_true, y_score, threshold, image_auroc(y_true, y_score))


def merge_copies(digests: Sequence[str], y_true: np.ndarray, y_score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the distinct images, in order of first appearance.

    An image with several defects stands in several class folders. It is anomalous if any copy is.

    Args:
        digests: N strings, equal where the files have the same bytes.
    """
    _, first, index = np.unique(digests, return_index=True, return_inverse=True)
    labels = np.zeros(len(first), dtype=bool)
    np.logical_or.at(labels, index, y_true)
    order = np.argsort(first)
    return labels[order], y_score[first[order]]
