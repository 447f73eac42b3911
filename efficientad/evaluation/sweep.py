"""What other thresholds would decide on the same images, and the one that reaches a wanted recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efficientad.evaluation import curves
from efficientad.evaluation.image_metrics import decision_row, share_of

FALSE_POSITIVE_RATES = (0.0, 0.01, 0.05, 0.1, 0.2)
RECALLS = (1.0, 0.95, 0.9)


@dataclass(frozen=True)
class SweepRow:
    """Metrics of the decisions at one threshold. Ratios are in [0, 1], nan where undefined."""

    threshold: float
    accuracy: float
    precision: float
    recall: float
    f1: float
    false_positive_rate: float
    notes: tuple[str, ...]  # why this threshold has a row


def sweep_thresholds(y_true: np.ndarray, y_score: np.ndarray, threshold: float) -> list[SweepRow]:
    """About ten rows, ascending: the threshold in use, the best F1, and those that just reach a rate.

    Thresholds with the same decisions share a row. All but the one in use have seen the labels, so they flatter:
    new images will do worse.

    Args:
        y_true: N bools, whether the image is labelled anomalous; N >= 1.
        y_score: N finite floats; an image is called anomalous when its score is > threshold.
        threshold: the one in use.

    >>> rows = sweep_thresholds(np.array([False, True]), np.array([1.0, 2.0]), threshold=1.5)
    >>> [(row.threshold, row.f1) for row in rows]
    [(1.5, 1.0)]
    """
    y_score = y_score.astype(np.float64)
    scores, hits, alarms = _count(y_true, y_score)
    wanted: dict[int, list[str]] = {}  # notes by entry: how many of the highest scores are called anomalous

    def want(entry: int, note: str) -> None:
        wanted.setdefault(int(entry), []).append(note)

    in_use = int((scores > threshold).sum())
    want(in_use, "in use")
    if hits[-1] and alarms[-1]:
        f1 = curves.f1(hits, alarms)
        want(np.flatnonzero(f1 == f1.max())[-1], "best F1")
    if alarms[-1]:
        for rate in FALSE_POSITIVE_RATES:
            name = f"false positives <= {100 * rate:g} %" if rate else "no false positive"
            want(np.flatnonzero(alarms <= rate * alarms[-1] + curves.ROUNDING)[-1], name)
    if hits[-1]:
        for recall in RECALLS:
            name = f"recall >= {100 * recall:g} %" if recall < 1 else "every defect found"
            want(_first_reaching(hits, recall), name)
    return [
        _sweep_row(
            y_true,
            y_score,
            threshold if entry == in_use else _threshold_at(scores, entry),
            tuple(notes),
        )
        for entry, notes in sorted(wanted.items(), reverse=True)
    ]


def threshold_for_recall(y_true: np.ndarray, y_score: np.ndarray, recall: float) -> float:
    """The highest threshold at which at least this share of the anomalous images is called so.

    Of all that decide the same, one with few digits. It has seen the labels, so that new images will do worse.

    Args:
        y_true: N bools, at least one of them True.
        y_score: N finite floats.
        recall: in (0, 1].

    >>> threshold_for_recall(np.array([True, True, False]), np.array([3.0, 2.0, 1.0]), 0.5)
    2.5
    """
    scores, hits, _ = _count(y_true, y_score.astype(np.float64))
    return _threshold_at(scores, _first_reaching(hits, recall))


def _count(y_true: np.ndarray, y_score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The G distinct scores, descending, and hits and false alarms when 0 to G of them are called anomalous."""
    scores, place = curves.rank(y_score)
    hits, alarms = (np.append(0, curves.count(place[kind], len(scores))) for kind in (y_true, ~y_true))
    return scores, hits, alarms


def _first_reaching(hits: np.ndarray, recall: float) -> int:
    return int(np.flatnonzero(hits >= recall * hits[-1] - curves.ROUNDING)[0])


def _threshold_at(scores: np.ndarray, entry: int) -> float:
    """A threshold that calls this many of the highest scores anomalous."""
    bounds = [np.inf, *scores, -np.inf]
    return curves.shortest_between(bounds[entry + 1], bounds[entry])


def _sweep_row(y_true: np.ndarray, y_score: np.ndarray, threshold: float, notes: tuple[str, ...]) -> SweepRow:
    row, called = decision_row("", y_true, y_score, threshold, auroc=np.nan), y_score > threshold
    f1 = (
        share_of(2 * int((called & y_true).sum()), int(called.sum()) + int(y_true.sum()))
        if y_true.any()
        else np.nan
    )
    false_positive_rate = np.nan if y_true.all() else float(called[~y_true].mean())
    return SweepRow(threshold, row.accuracy, row.precision, row.recall, f1, false_positive_rate, notes)
