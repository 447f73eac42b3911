"""Pixel-level metrics of any number of maps of any size in fixed memory: histograms over bins of scores.

The bins are fine around 0 and a constant fraction of the score far from it: 4,096 between 0 and 1, as many between
1 and 3, 3 and 7, 7 and 15, and so on to a million, and the same below 0; 0, the value of a map's empty border, has
its own. So near a score s two scores are distinct if they differ by more than (|s| + 1) / 4096. The histograms
also bound the error (PixelRow.error_bound): scores in one bin may in truth be in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from efficientad.evaluation import curves

PRO_LIMITS = (0.05, 0.30)
_MANTISSA_BITS = 23  # of a float32
_BITS = 12  # of them that make bins, within each power of two
_OCTAVES = 20
_ZERO = _OCTAVES << _BITS  # the bin of 0, and the number of bins on each side
BINS = 2 * _ZERO + 1
_BITS_OF_ONE = int(np.float32(1).view(np.int32))
_BLOCK = 2**16  # pixels, sorted into bins at once: temporary arrays stay in the processor's cache


@dataclass(frozen=True)
class Defect:
    """One defect on one image: its pixels, and how many of them suffice to find it whole."""

    pixels: np.ndarray  # indices into the flattened map, at least one
    saturation: int  # 1 to len(pixels); len(pixels) without saturation


@dataclass(frozen=True)
class ImageCounts:
    """The contribution of one map to the histograms: bins and their counts or weights."""

    regions: int
    normal: tuple[np.ndarray, np.ndarray]
    defective: tuple[np.ndarray, np.ndarray]
    overlap: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PixelRow:
    """How well maps separate the pixels of defects from all others. Ratios are in [0, 1]."""

    name: str
    images: int  # with defects
    regions: int
    auroc: float
    f1_max: float
    f1_max_threshold: float  # on the maps' scale; scores from it on, called anomalous, reach f1_max
    au_pro_05: float  # up to a false-positive rate of 0.05, divided by it; with saturation AU-sPRO
    au_pro_30: float
    error_bound: float  # how far at most the four metrics are from those without bins


@dataclass(frozen=True)
class PixelMetrics:
    """A row for each defect class against all good images, sorted by name, and one over all distinct images."""

    classes: list[PixelRow]
    overall: PixelRow
    saturated: bool  # the areas are AU-sPRO, not AU-PRO
    defective: int  # images
    left_out: int  # of them, without a mask
    hidden: int = 0  # defects that lie wholly where nothing is inspected, so that they count nowhere
    hiding: int = 0  # images with such defects


def score_bins(scores: np.ndarray) -> np.ndarray:
    """The bin of each score, non-decreasing in the score: float32 of any shape -> int32 in [0, BINS).

    The leading bits of a float count through the powers of two in equal steps, which makes them a piecewise
    linear logarithm of 1 + |score|.

    >>> bins = score_bins(np.array([-3e9, -7, 0, 1e-3, 7, 7.01], dtype=np.float32))
    >>> (bins - bins[2]).tolist()
    [-81920, -12289, 0, 5, 12289, 12294]
    """
    distance = np.abs(scores)
    distance += np.float32(1)
    bins = distance.view(np.int32)  # all in place, as maps have many pixels
    bins -= _BITS_OF_ONE
    bins >>= _MANTISSA_BITS - _BITS
    np.minimum(bins, _ZERO - 1, out=bins)
    bins += 1
    bins *= np.sign(scores).astype(np.int32)
    bins += _ZERO
    return bins


def bin_edge(index: int) -> float:
    """The score at which a bin begins."""
    return _magnitude(index - _ZERO - 1) if index > _ZERO else 0.0 - _magnitude(_ZERO - index)


def _magnitude(steps: int) -> float:
    octave, step = divmod(steps, 1 << _BITS)
    return 2.0**octave * (1 + step / (1 << _BITS)) - 1


def count_pixels(
    anomaly_map: np.ndarray, regions: Sequence[Defect], ignored: np.ndarray | None = None
) -> ImageCounts:
    """Sort one map's pixels into the bins.

    A region's overlap with the pixels above a threshold, as a share of its saturation and 1 at most, is a sum over
    its highest `saturation` pixels, each of which adds 1 / saturation once the threshold is below it. So the sum
    over all regions of all images is a weighted histogram.

    Args:
        anomaly_map: H x W float32, C-contiguous.
        regions: may overlap; pixels outside are normal.
        ignored: H x W bools, pixels that are neither normal nor, outside the regions, defective.
    """
    values = anomaly_map.ravel()
    defective = np.zeros(values.size, dtype=bool)
    for region in regions:
        defective[region.pixels] = True
    in_regions = _histogram(values[defective])
    others = in_regions if ignored is None else _histogram(values[defective | ignored.ravel()])
    highest, weights = [], []
    for region in regions:
        inside = score_bins(values[region.pixels])
        if region.saturation < len(inside):
            inside = np.partition(inside, len(inside) - region.saturation)[-region.saturation :]
        highest.append(inside)
        weights.append(np.full(len(inside), 1 / region.saturation))
    return ImageCounts(
        len(regions),
        normal=_filled(_histogram(values) - others),
        defective=_filled(in_regions),
        overlap=_weigh(np.concatenate(highest), np.concatenate(weights)) if regions else _NOTHING,
    )


def _histogram(values: np.ndarray) -> np.ndarray:
    """How many of the values are in each of the BINS."""
    total = np.zeros(BINS, dtype=np.int64)
    for start in range(0, values.size, _BLOCK):
        bins = score_bins(values[start : start + _BLOCK])
        lowest = bins.min()
        bins -= lowest
        counts = np.bincount(bins)
        total[lowest : lowest + len(counts)] += counts
    return total


def _filled(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bins that are not empty, ascending, and what is in each."""
    filled = np.flatnonzero(histogram)
    return filled, histogram[filled]


def _weigh(bins: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bins, ascending, and the sum of the weights in each."""
    lowest = bins.min()
    sums = np.bincount(bins - lowest, weights)
    filled = np.flatnonzero(sums)
    return filled + lowest, sums[filled]


_NOTHING = np.zeros(0, dtype=np.int64), np.zeros(0)


class PixelHistograms:
    """The sums of many ImageCounts, in 4 MB for any number of maps of any size."""

    def __init__(self) -> None:
        self.images = 0
        self.regions = 0
        self.normal = np.zeros(BINS, dtype=np.int64)
        self.defective = np.zeros(BINS, dtype=np.int64)
        self.overlap = np.zeros(BINS)

    def add(self, counts: ImageCounts) -> None:
        """Add one image; an image without regions is a good one."""
        self.images += counts.regions > 0
        self.regions += counts.regions
        for total, (bins, values) in zip(
            self._totals(), (counts.normal, counts.defective, counts.overlap), strict=True
        ):
            total[bins] += values

    def merge(self, other: PixelHistograms) -> None:
        """Add the images of another one."""
        self.images += other.images
        self.regions += other.regions
        for total, more in zip(self._totals(), other._totals(), strict=True):
            total += more

    def row(self, name: str, others: Iterable[PixelHistograms] = ()) -> PixelRow:
        """The metrics over these pixels and those of `others`; undefined ones are nan."""
        together = [self, *others]
        totals = [np.sum(parts, axis=0) for parts in zip(*(item._totals() for item in together), strict=True)]
        filled = np.flatnonzero(totals[0] + totals[1])[::-1]
        if not filled.size:
            filled = np.zeros(1, dtype=int)
        alarms, hits, overlap = (total[filled].cumsum() for total in totals)
        best, place = curves.f1_max(hits, alarms)
        narrow, wide = (curves.area_to_fpr(overlap, alarms, limit) for limit in PRO_LIMITS)
        return PixelRow(
            name,
            images=sum(item.images for item in together),
            regions=sum(item.regions for item in together),
            auroc=float(curves.auroc(hits, alarms)),
            f1_max=float(best),
            f1_max_threshold=float("nan") if np.isnan(best) else bin_edge(int(filled[place])),
            au_pro_05=narrow,
            au_pro_30=wide,
            error_bound=binning_error(hits, alarms, overlap, exact=filled == _ZERO),
        )

    def _totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.normal, self.defective, self.overlap


def binning_error(hits: np.ndarray, alarms: np.ndarray, overlap: np.ndarray, exact: np.ndarray) -> float:
    """The largest error of AUROC, F1-max and the areas up to PRO_LIMITS, as bins hide the order within them.

    Within a bin a curve may run anywhere in the rectangle between its two ends. The straight line gives half of
    it, unless the limit cuts the bin. And the best F1 may be reached within a bin, after all its anomalous and none
    of its normal pixels.

    Args:
        hits, alarms, overlap: G cumulative counts and weights, highest bin first.
        exact: G bools, whether all scores in the bin are equal, so that nothing is hidden.

    Returns:
        A number in [0, 1]; nan where the metrics are undefined.
    """
    if not hits[-1] or not alarms[-1]:
        return float("nan")
    rate, found, covered = (np.concatenate(([0], curve)) / curve[-1] for curve in (alarms, hits, overlap))
    widths, hidden = np.diff(rate), ~exact
    errors = [float((hidden * widths * np.diff(found)).sum() / 2)]
    for limit in PRO_LIMITS:
        share = np.where(rate[1:] <= limit, 0.5, 1)
        inside = np.clip(limit - rate[:-1], 0, widths)
        errors.append(float((hidden * share * inside * np.diff(covered)).sum() / limit))
    before = np.where(exact, alarms, np.concatenate(([0], alarms[:-1])))
    errors.append(float((2 * hits / (hits[-1] + hits + before)).max() - curves.f1_max(hits, alarms)[0]))
    return max(errors)
