"""The threshold for a wanted false-positive rate, from the scores of good images alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

import numpy as np

DEFAULT_THRESHOLD = 80.0  # without a calibration: what users of this method usually take
FEWEST_SCORES = 4
RATE_INTERVAL = 0.9  # probability that the true rate lies within Calibration.rate_interval
_LEFT_OUT = 0.1  # of the scores, the highest: a defect among the good images must not set the threshold
FEWEST_FOR_OUTLIERS = 20
_OUTLIER_RATE = 0.05  # probability that any of so many good images is called an outlier
_TRIALS = 20_000
_SIMULATED = 4_000_000  # scores in all trials: many scores need few trials for the same precision
_ROUND_UP = Context(prec=6, rounding=ROUND_CEILING)  # to the six digits that :g prints
_LARGEST = float(np.finfo(np.float32).max)  # scores are float32
_WIDE = 20  # with a larger ratio of its ends, only the upper end of an interval is printed


@dataclass(frozen=True)
class Calibration:
    """A threshold and its basis. Scores and threshold on the 0-255 scale of the maps, rates in [0, 1]."""

    scores: tuple[float, ...]  # of good images that had no part in their scores, ascending
    target_fpr: float
    threshold: float
    rate_interval: tuple[float, float]  # holds the true false-positive rate with the probability RATE_INTERVAL
    extrapolated: bool  # there are too few scores to show the target, so a tail was fitted
    left_out: int = 0  # scores of training images, each compared with the others alone

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """The calibration of which dataclasses.asdict made `values`; lists will do for tuples.

        Raises:
            TypeError, ValueError: it made them not; nothing of an untrusted file is believed, since a threshold
                that no score can exceed would call every part good.
        """
        if not isinstance(values, dict):
            raise TypeError("the calibration is no dict")
        found = cls(**values)
        if not isinstance(found.extrapolated, bool):
            raise TypeError("the calibration does not say whether it is extrapolated")
        if type(found.left_out) is not int:
            raise TypeError("the calibration does not say how many images were left out")
        scores, interval = (_finite_numbers(numbers) for numbers in (found.scores, found.rate_interval))
        target_fpr, threshold = _finite_numbers([found.target_fpr, found.threshold])
        if len(scores) < FEWEST_SCORES or any(low > high for low, high in itertools.pairwise(scores)):
            raise ValueError(f"the calibration has fewer than {FEWEST_SCORES} scores, or they do not ascend")
        if not 0 <= found.left_out <= len(scores):
            raise ValueError("the calibration has more images left out than scores")
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1 or not 0 < target_fpr < 1:
            raise ValueError("the rates of the calibration are not between 0 and 1")
        return cls(scores, target_fpr, threshold, interval, found.extrapolated, found.left_out)


def calibrate(scores: Sequence[float], target_fpr: float, left_out: int = 0) -> Calibration:
    """The threshold that good images exceed at the rate `target_fpr`.

    With n scores and n + 1 >= 1 / target_fpr it is one of the scores: the k-th smallest of n is exceeded by one
    more good image with probability 1 - k / (n + 1), whatever the distribution, and the true rate follows a beta
    distribution. A lower rate lies beyond the highest score and is extrapolated with an exponential tail. Good
    images of boards and tiles kept its rate, where a Gumbel or a normal tail gave thresholds that were too low,
    and a tail on a logarithmic scale thresholds that find nothing. Location and scale are estimated without the
    highest tenth. How many scales out the threshold lies depends on n alone and comes from simulated samples: the
    true rate is as likely to be above the target as below it.

    Args:
        scores: n >= FEWEST_SCORES finite scores of good images that nothing was trained on, or that were scored
            as if nothing had been.
        target_fpr: in (0, 1).
        left_out: how many are of the second kind.

    Raises:
        ValueError: too few scores, or a rate out of range.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    count = len(ordered)
    if count < FEWEST_SCORES:
        raise ValueError(f"{count} scores are too few to calibrate, {FEWEST_SCORES} at least")
    if not 0 < target_fpr < 1:
        raise ValueError(f"target_fpr must lie between 0 and 1, not {target_fpr}")
    rank = int(np.ceil((count + 1) * (1 - target_fpr) - 1e-9))
    extrapolated = rank > count
    if extrapolated:
        threshold, interval = _extrapolated_threshold(ordered, target_fpr)
    else:
        threshold, interval = float(ordered[max(rank, 1) - 1]), _beta_interval(count + 1 - rank, rank)
    # What tables print is the threshold itself, so that -T can repeat it; rounded up, so that the score it was
    # taken from is not above it.
    threshold = float(_ROUND_UP.create_decimal(Decimal(threshold)))
    return Calibration(tuple(ordered.tolist()), target_fpr, threshold, interval, extrapolated, left_out)


def outlier_level(scores: Sequence[float]) -> float:
    """The score above which an image among good ones is probably none: where an exponential tail of the others has
    a probability of 0.05 to bring forth any. Infinite for fewer than FEWEST_FOR_OUTLIERS scores."""
    if len(scores) < FEWEST_FOR_OUTLIERS:
        return math.inf
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    level, _ = _extrapolated_threshold(ordered, _OUTLIER_RATE / len(ordered))
    return max(level, float(np.median(ordered)))  # rounded, that of equal scores may be below them


def _finite_numbers(values: Any) -> tuple[float, ...]:
    """The values, if they are floats that a score can have, too; raises TypeError or ValueError otherwise."""
    if not isinstance(values, list | tuple) or any(type(value) is not float for value in values):
        raise TypeError("the calibration is not one of finite numbers")
    if not all(abs(value) <= _LARGEST for value in values):  # nor is NaN
        raise ValueError("the calibration is not one of finite numbers")
    return tuple(values)


def choose_threshold(given: float | None, calibration: Calibration | None) -> tuple[float, str]:
    """The threshold to use, and its origin in words; `given` is None for the calibrated one."""
    if given is not None:
        return given, "given"
    if calibration is None:
        return DEFAULT_THRESHOLD, "default: this model has no calibration"
    return calibration.threshold, f"calibrated for {100 * calibration.target_fpr:g} % false positives"


def describe_calibration(calibration: Calibration | None, held_out: int) -> str:
    """A line or two for the user: the threshold, its basis, and the range of its true rate.

    Args:
        held_out: images, for a model without a calibration.
    """
    if calibration is None:
        return (
            f"Threshold not calibrated: {held_out} held-out good images are too few, {FEWEST_SCORES} at least; "
            f"eval.py and predict will use {DEFAULT_THRESHOLD:g}"
        )
    count, left_out = len(calibration.scores), calibration.left_out
    basis = f"{count} held-out good images"
    if left_out:
        basis = f"{left_out} good images, each compared with the others alone"
        basis += f", and {count - left_out} more held out" if left_out < count else ""
    low, high = (100 * rate for rate in calibration.rate_interval)
    likely = f"{low:.2g} to {high:.2g} %" if high < _WIDE * low else f"anything up to {high:.2g} %"
    text = (
        f"Threshold {calibration.threshold:g} for {100 * calibration.target_fpr:g} % false positives, from "
        f"{basis}; on new good images expect {likely}"
    )
    if calibration.extrapolated:
        text += (
            f"\nNote: {count} images cannot show a rate below {100 / (count + 1):.2g} %, so the threshold is "
            "extrapolated with an exponential tail; more good images make it more certain"
        )
    return text


def _beta_interval(a: int, b: int) -> tuple[float, float]:
    from scipy.special import betaincinv  # the quantiles of a beta distribution; scipy.stats is slow to import

    tail = (1 - RATE_INTERVAL) / 2
    low, high = betaincinv(a, b, [tail, 1 - tail])
    return float(low), float(high)


def _extrapolated_threshold(ordered: np.ndarray, target_fpr: float) -> tuple[float, tuple[float, float]]:
    trials = max(200, min(_TRIALS, _SIMULATED // len(ordered)))
    samples = np.random.default_rng(0).exponential(size=(trials, len(ordered)))
    location, scale = _location_and_scale(np.sort(samples, axis=1))
    distance = np.median((-np.log(target_fpr) - location) / scale)  # an exponential exceeds -log(p) at the rate p
    tail = (1 - RATE_INTERVAL) / 2
    rates = np.exp(-np.maximum(location + distance * scale, 0))
    interval = np.quantile(rates, [tail, 1 - tail])
    own_location, own_scale = _location_and_scale(ordered)
    return float(own_location + distance * own_scale), (float(interval[0]), float(interval[1]))


def _location_and_scale(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half the mean difference of the lower scores, along the last axis."""
    count = ordered.shape[-1]
    kept = ordered[..., : count - max(1, int(_LEFT_OUT * count))]
    size = kept.shape[-1]
    weights = (2 * np.arange(1, size + 1) - size - 1) / (size * (size - 1))
    return kept.mean(axis=-1), kept @ weights
