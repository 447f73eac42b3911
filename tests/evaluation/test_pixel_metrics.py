"""Histograms of pixels against thresholding the maps at every distinct value."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from efficientad.evaluation import pixel_metrics
from efficientad.evaluation.pixel_metrics import BINS, Defect, PixelHistograms, bin_edge, count_pixels, score_bins


def histograms(maps, regions, ignored=None):
    total = PixelHistograms()
    for number, anomaly_map in enumerate(maps):
        total.add(count_pixels(anomaly_map, regions[number], None if ignored is None else ignored[number]))
    return total


def area_below(rates, heights, limit):
    """The trapezoids up to the limit, on a grid so fine that the cut does not matter."""
    rates, heights = np.array([0, *rates]), np.array([0, *heights])
    order = np.lexsort((heights, rates))
    total = 0.0
    for left, right in zip(order[:-1], order[1:], strict=True):
        end = min(rates[right], limit)
        if end <= rates[left]:
            continue
        slope = (heights[right] - heights[left]) / (rates[right] - rates[left])
        total += (end - rates[left]) * (heights[left] + slope * (end - rates[left]) / 2)
    return total / limit


def mark(anomaly_map, inside):
    mask = np.zeros(anomaly_map.shape, dtype=bool)
    for region in inside:
        mask.flat[region.pixels] = True
    return mask


def direct(maps, regions):
    """AUROC, F1-max, and the areas under (saturated) overlap to 0.05 and 0.30."""
    masks = map(mark, maps, regions)
    scores, truth = (np.concatenate([item.ravel() for item in items]) for items in (maps, masks))
    f1, rates, overlaps = [], [], []
    for threshold in np.unique(scores)[::-1]:
        called = scores >= threshold
        f1.append(2 * (called & truth).sum() / (called.sum() + truth.sum()))
        rates.append(called[~truth].mean())
        shares = [
            min((anomaly_map.flat[region.pixels] >= threshold).sum() / region.saturation, 1)
            for anomaly_map, inside in zip(maps, regions, strict=True)
            for region in inside
        ]
        overlaps.append(np.mean(shares))
    areas = [area_below(rates, overlaps, limit) for limit in (0.05, 0.30)]
    return roc_auc_score(truth, scores), max(f1), *areas


def blobs(shape, rng, count, saturate=False):
    regions = []
    for _ in range(count):
        top, left = rng.integers(0, shape[0] - 8), rng.integers(0, shape[1] - 8)
        mask = np.zeros(shape, dtype=bool)
        mask[top : top + rng.integers(1, 8), left : left + rng.integers(1, 8)] = True
        pixels = np.flatnonzero(mask)
        regions.append(Defect(pixels, int(rng.integers(1, len(pixels) + 1)) if saturate else len(pixels)))
    return regions


def draw(seed, scores, shape=(24, 31), count=6, saturate=False):
    """Maps that are somewhat higher in their regions; every third map has none."""
    rng = np.random.default_rng(seed)
    regions = [blobs(shape, rng, number % 3, saturate) for number in range(count)]
    maps = []
    for inside in regions:
        anomaly_map = scores(rng, shape)
        for region in inside:
            extra = scores(rng, region.pixels.shape)
            anomaly_map.flat[region.pixels] = np.maximum(anomaly_map.flat[region.pixels], extra)
        maps.append(anomaly_map.astype(np.float32))
    return maps, regions


def values(row):
    return row.auroc, row.f1_max, row.au_pro_05, row.au_pro_30


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_thresholding_at_every_distinct_value(seed, saturate):
    """Quarters: many ties, and no two distinct values in one bin. Regions may overlap."""
    maps, regions = draw(seed, lambda rng, shape: np.round(4 * rng.normal(0, 3, shape)) / 4, saturate=saturate)
    row = histograms(maps, regions).row("x")
    assert values(row) == pytest.approx(direct(maps, regions), abs=1e-9)
    assert (row.images, row.regions) == (4, sum(map(len, regions)))
    scores = np.concatenate([item.ravel() for item in maps])
    truth = np.concatenate([mask.ravel() for mask in map(mark, maps, regions)])
    called = scores >= row.f1_max_threshold
    assert 2 * (called & truth).sum() / (called.sum() + truth.sum()) == pytest.approx(row.f1_max)


def heavy_tailed(rng, shape):
    """From -50 to thousands, most of it near 0, and a border of zeros."""
    scores = np.maximum(3 * rng.standard_cauchy(shape), -50)
    return np.where(rng.random(shape) < 0.2, 0, scores)


def test_heavy_tailed_scores_are_within_a_tenth_of_a_point():
    maps, regions = draw(0, heavy_tailed, shape=(32, 40), count=9)
    maps[0][0, 0] = 5000
    assert min(map(np.min, maps)) == -50 and max(map(np.max, maps)) >= 5000
    row = histograms(maps, regions).row("x")
    assert row.error_bound < 1e-3
    assert values(row) == pytest.approx(direct(maps, regions), abs=min(1e-3, row.error_bound))


@pytest.mark.parametrize("spread", [30, 1])
def test_the_error_bound_holds_where_bins_are_too_coarse(spread):
    maps, regions = draw(1, lambda rng, shape: 5000 + spread * rng.random(shape))
    row = histograms(maps, regions).row("x")
    exact = direct(maps, regions)
    off = np.abs(np.subtract(values(row), exact)).max()
    assert 1e-4 < off <= row.error_bound
    assert row.error_bound > 0.01


def test_bins_are_in_the_order_of_the_scores():
    rng = np.random.default_rng(0)
    scores = np.sort(np.concatenate((rng.standard_cauchy(5000), [-np.inf, -1e30, -0.0, 0, 1e30, np.inf])))
    bins = score_bins(scores.astype(np.float32))
    assert (np.diff(bins) >= 0).all() and bins[0] == 0 and bins[-1] == BINS - 1
    assert len(set(bins[scores == 0])) == 1 and (bins[np.abs(scores) > 1e-6] != bins[scores == 0][0]).all()
    edges = np.array([bin_edge(index) for index in range(BINS)])
    assert (np.diff(edges) >= 0).all()
    near = np.abs(scores) < 1e5
    rounding = 1e-6 * (1 + np.abs(scores[near]))
    assert (edges[bins[near]] <= scores[near] + rounding).all()
    assert (scores[near] <= edges[bins[near] + 1] + rounding).all()
    assert (edges[bins[near] + 1] - edges[bins[near]] <= (np.abs(scores[near]) + 1) / 4096 + rounding).all()


def test_ignored_pixels_count_nowhere():
    maps, regions = draw(2, lambda rng, shape: rng.normal(size=shape))
    ignored = [np.random.default_rng(number).random(item.shape) < 0.3 for number, item in enumerate(maps)]
    total = histograms(maps, regions, ignored)
    masks = list(map(mark, maps, regions))
    assert total.defective.sum() == np.sum(masks)  # what a region claims is not ignored
    assert total.normal.sum() == sum((~mask & ~skip).sum() for mask, skip in zip(masks, ignored, strict=True))


def test_undefined_without_defects_or_without_normal_pixels():
    anomaly_map = np.arange(6, dtype=np.float32).reshape(2, 3)
    everything = [Defect(np.arange(6), 6)]
    for regions in ([], everything):
        row = histograms([anomaly_map], [regions]).row("x")
        assert all(map(math.isnan, (*values(row), row.f1_max_threshold, row.error_bound)))
    assert all(map(math.isnan, values(PixelHistograms().row("nothing"))))


def test_rows_over_several_histograms():
    maps, regions = draw(3, lambda rng, shape: rng.normal(size=shape))
    parts = [histograms(maps[:2], regions[:2]), histograms(maps[2:], regions[2:])]
    assert values(parts[0].row("x", [parts[1]])) == pytest.approx(values(histograms(maps, regions).row("x")))


@pytest.mark.parametrize("block", [1, 100, 744])
def test_blocks_of_pixels_change_nothing(monkeypatch, block):
    maps, regions = draw(4, heavy_tailed)
    ignored = [np.random.default_rng(number).random(item.shape) < 0.3 for number, item in enumerate(maps)]
    whole = histograms(maps, regions, ignored)
    monkeypatch.setattr(pixel_metrics, "_BLOCK", block)
    assert histograms(maps, regions, ignored).row("x") == whole.row("x")
