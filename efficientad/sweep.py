"""What other thresholds would have decided: a short table of informative ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FALSE_POSITIVE_RATES = (0.0, 0.01, 0.05, 0.1, 0.2)
RECALLS = (1.0, 0.95, 0.9)


@dataclass(frozen=True)
class SweepRow:
    """The decisions at one threshold. Ratios are in [0, 1], nan where undefined."""

    threshold: float
    accuracy: float
    precision: float
    recall: float
    f1: float
    false_positive_rate: float
    notes: tuple[str, ...]  # why this threshold is worth a row


def sweep_thresholds(y_true: np.ndarray, y_score: np.ndarray, threshold: float) -> list[SweepRow]:
    """About ten rows, ascending: the threshold in use, the best F1, and those that just attain a rate.

    Thresholds with the same decisions make one row. All but the one in use have seen the labels, so they flatter:
    the next images will do worse.

    Args:
        y_true: N bools, whether the image is labelled anomalous; N >= 1.
        y_score: N finite floats; an image is called anomalous when its score is > threshold.
        threshold: the one in use.

    >>> rows = sweep_thresholds(np.array([False, True]), np.array([1.0, 2.0]), threshold=1.5)
    >>> [(row.threshold, row.f1) for row in rows]
    [(1.5, 1.0)]
    """
    cuts = _Cuts(y_true, y_score)
    wanted: dict[int, list[str]] = {}

    def want(cut: int, note: str) -> None:
        wanted.setdefault(cut, []).append(note)

    in_use = int(np.searchsorted(cuts.scores, threshold, side="right"))
    want(in_use, "in use")
    if cuts.positives and cuts.negatives:
        want(int(np.nanargmax(cuts.f1)), "best F1 (an oracle: it has seen the labels)")
    if cuts.negatives:
        for rate in FALSE_POSITIVE_RATES:
            name = f"false positives <= {100 * rate:g} %" if rate else "no false positive"
            want(int(np.argmax(cuts.false_positives <= rate * cuts.negatives + 1e-9)), name)
    if cuts.positives:
        for recall in RECALLS:
            name = f"recall >= {100 * recall:g} %" if recall < 1 else "every defect found"
            want(int(np.flatnonzero(cuts.true_positives >= recall * cuts.positives - 1e-9)[-1]), name)
    rows = [
        (cut, threshold if cut == in_use else cuts.threshold(cut), tuple(notes)) for cut, notes in wanted.items()
    ]
    return [cuts.row(*row) for row in sorted(rows)]


class _Cuts:
    """Every way to part the images by a threshold: cut i calls all but the i lowest distinct scores anomalous."""

    def __init__(self, y_true: np.ndarray, y_score: np.ndarray) -> None:
        self.scores, index = np.unique(y_score.astype(np.float64), return_inverse=True)
        positives = np.bincount(index, weights=y_true, minlength=len(self.scores))
        negatives = np.bincount(index, weights=~y_true, minlength=len(self.scores))
        self.positives, self.negatives = int(positives.sum()), int(negatives.sum())
        self.true_positives = self.positives - np.concatenate([[0], positives.cumsum()])
        self.false_positives = self.negatives - np.concatenate([[0], negatives.cumsum()])
        # 2 TP / (2 TP + FP + FN), which is 0 where precision is undefined
        self.f1 = (
            2 * self.true_positives / np.maximum(self.true_positives + self.false_positives + self.positives, 1)
        )

    def threshold(self, cut: int) -> float:
        """The number with the fewest digits that makes this cut."""
        if cut == len(self.scores):
            low, high = self.scores[-1], np.inf
        elif cut == 0:
            low, high = -np.inf, self.scores[0]
        else:
            low, high = self.scores[cut - 1], self.scores[cut]
        return _shortest_between(low, high)

    def row(self, cut: int, threshold: float, notes: tuple[str, ...]) -> SweepRow:
        hits, alarms = self.true_positives[cut], self.false_positives[cut]
        right = hits + self.negatives - alarms

        def share(part: float, whole: float) -> float:
            return float(part / whole) if whole else float("nan")

        return SweepRow(
            threshold,
            accuracy=share(right, self.positives + self.negatives),
            precision=share(hits, hits + alarms),
            recall=share(hits, self.positives),
            f1=float(self.f1[cut]) if self.positives else float("nan"),
            false_positive_rate=share(alarms, self.negatives),
            notes=notes,
        )


def _shortest_between(low: float, high: float) -> float:
    """A decimal with few digits in [low, high), near the middle of it."""
    if np.isinf(high):
        middle = low
    elif np.isinf(low):
        middle = high
    else:
        middle = (low + high) / 2
    for digits in range(18):
        step = 10.0**-digits
        for candidate in (round(middle, digits), round(middle, digits) + step, round(middle, digits) - step):
            candidate = float(f"{candidate:.{digits}f}")
            if low <= candidate < high:
                return candidate
    return float(low)
