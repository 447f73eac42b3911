"""Areas and points of detection curves, for images, bootstrap resamples and pixel histograms alike.

A curve counts what is called anomalous while the threshold falls: two cumulative counts over the last axis, one
entry for each distinct score (or bin of scores) in descending order,

    hits           anomalous items with that score or a higher one, or their weight
    false_alarms   good items with that score or a higher one

so that ties count correctly, and the last entry is the total. Leading axes are independent curves. A value is nan
where it is undefined because there are no anomalous or no good items.
"""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-9  # 0.05 * 60 is not 3


def rank(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct scores in descending order, the entries of a curve, and the place of each of N among them.

    >>> [part.tolist() for part in rank(np.array([1.0, 3.0, 1.0]))]
    [[3.0, 1.0], [1, 0, 1]]
    """
    ascending, index = np.unique(scores, return_inverse=True)
    return ascending[::-1], len(ascending) - 1 - index.reshape(-1)


def count(places: np.ndarray, length: int) -> np.ndarray:
    """Cumulative counts of a curve of `length` entries, from the places of its anomalous or of its good items."""
    return np.bincount(places, minlength=length).cumsum()


def auroc(hits: np.ndarray, false_alarms: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the share of pairs of an anomalous and a good item that are in order.

    Args:
        hits, false_alarms: ... x G, cumulative.

    Returns:
        ... floats in [0, 1]; a tie counts one half.

    >>> float(auroc(np.array([1, 1, 2]), np.array([0, 1, 2])))  # scores 3 | 2 | 1 and 1
    0.625
    """
    new_hits, new_alarms = _steps(hits), _steps(false_alarms)
    area = (new_alarms * (hits - new_hits / 2)).sum(axis=-1)
    return _ratio(area, hits[..., -1] * 1.0 * false_alarms[..., -1])


def average_precision(hits: np.ndarray, false_alarms: np.ndarray) -> np.ndarray:
    """Mean over the anomalous items of the precision at the threshold that just calls the item anomalous.

    The area below the precision-recall curve as a step function, without interpolation. Like the other metrics
    undefined without anomalous or without good items.

    >>> float(average_precision(np.array([1, 1, 2]), np.array([0, 1, 2])))
    0.75
    """
    precision = hits / np.maximum(hits + false_alarms, 1)
    value = _ratio((_steps(hits) * precision).sum(axis=-1), hits[..., -1])
    return np.where(false_alarms[..., -1] > 0, value, np.nan)


def f1(hits: np.ndarray, false_alarms: np.ndarray) -> np.ndarray:
    """F1 = 2 hits / (anomalous items + items called anomalous) at each entry: ... x G floats, 0 where undefined."""
    return 2 * hits / np.maximum(hits[..., -1:] + hits + false_alarms, 1)


def f1_max(hits: np.ndarray, false_alarms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest F1 over all thresholds.

    Returns:
        ... floats in [0, 1], undefined like the average precision, and ... ints: the first entry that reaches it,
        which has the highest threshold.

    >>> value, index = f1_max(np.array([1, 1, 2]), np.array([0, 1, 2]))
    >>> round(float(value), 4), int(index)
    (0.6667, 0)
    """
    values = f1(hits, false_alarms)
    value = np.where((hits[..., -1] > 0) & (false_alarms[..., -1] > 0), values.max(axis=-1), np.nan)
    return value, values.argmax(axis=-1)


def recall_at_fpr(hits: np.ndarray, false_alarms: np.ndarray, limit: float) -> np.ndarray:
    """The largest share of anomalous items found while at most `limit` of the good ones are called anomalous.

    Without interpolation: with fewer than 1 / limit good items no false alarm is allowed.

    >>> float(recall_at_fpr(np.array([1, 1, 2]), np.array([0, 1, 2]), 0.05))
    0.5
    """
    good = false_alarms[..., -1]
    allowed = false_alarms <= limit * good[..., None] + ROUNDING
    found = _ratio(np.where(allowed, hits, 0).max(axis=-1), hits[..., -1])
    return np.where(good > 0, found, np.nan)


def area_to_fpr(hits: np.ndarray, false_alarms: np.ndarray, limit: float) -> float:
    """Area under hits / all hits over the false-positive rate from 0 to `limit`, divided by `limit`.

    With the summed overlap of regions as hits this is AU-PRO, with saturated overlap AU-sPRO. The curve is linear
    between its points, also up to the limit.

    Args:
        hits, false_alarms: G floats or ints, cumulative.
        limit: in (0, 1].

    >>> area_to_fpr(np.array([1, 1, 2]), np.array([0, 1, 2]), 0.5)
    0.5
    """
    if not hits[-1] > 0 or not false_alarms[-1] > 0:
        return float("nan")
    rate = np.concatenate(([0.0], false_alarms / false_alarms[-1]))
    height = np.concatenate(([0.0], hits / hits[-1]))
    inside = int(np.searchsorted(rate, limit, side="right"))
    if inside < len(rate):
        share = (limit - rate[inside - 1]) / (rate[inside] - rate[inside - 1])
        last = height[inside - 1] + share * (height[inside] - height[inside - 1])
        rate, height = np.append(rate[:inside], limit), np.append(height[:inside], last)
    return float((np.diff(rate) * (height[1:] + height[:-1]) / 2).sum() / limit)


def _steps(cumulative: np.ndarray) -> np.ndarray:
    return np.diff(cumulative, axis=-1, prepend=0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1e-300), np.nan)


def threshold_below(descending: np.ndarray, place: int) -> float:
    """A threshold just below this score: half-way to the next lower one, so that it suits other images too."""
    if place + 1 == len(descending):
        return np.nextafter(descending[place], -np.inf)
    return (float(descending[place]) + float(descending[place + 1])) / 2


def shortest_between(low: float, high: float) -> float:
    """A decimal with few digits in [low, high), near the middle or, if one end is infinite, near the other."""
    middle = low if np.isinf(high) else high if np.isinf(low) else (low + high) / 2
    for digits in range(18):
        step = 10.0**-digits
        for candidate in (round(middle, digits), round(middle, digits) + step, round(middle, digits) - step):
            candidate = float(f"{candidate:.{digits}f}")
            if low <= candidate < high:
                return candidate
    return float(low)
