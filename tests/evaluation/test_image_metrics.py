import doctest
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from efficientad.evaluation import curves, pixel_metrics
from efficientad.evaluation import image_metrics as metrics
from efficientad.evaluation.image_metrics import (
    class_groups,
    decision_row,
    image_auroc,
    image_metrics,
    image_row,
    merge_copies,
    overall_group,
)


@pytest.mark.parametrize("module", [curves, metrics, pixel_metrics])
def test_the_examples_run(module):
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed


def direct_auroc(y_true, y_score):
    pairs = [(a > b) + (a == b) / 2 for a in y_score[y_true] for b in y_score[~y_true]]
    return sum(pairs) / len(pairs)


def test_auroc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    y_true = rng.random(60) < 0.3
    y_score = np.round(rng.normal(size=60) + y_true, 1)  # rounded: with ties
    assert image_auroc(y_true, y_score) == pytest.approx(direct_auroc(y_true, y_score))


@pytest.mark.parametrize("label", [True, False])
def test_auroc_of_one_kind_of_image_is_undefined(label):
    assert math.isnan(image_auroc(np.array([label, label]), np.array([1.0, 2.0])))


def test_an_image_is_anomalous_only_above_the_threshold():
    row = decision_row("x", np.array([True, True]), np.array([25.0, 25.000001]), 25.0, math.nan)
    assert (row.accuracy, row.precision, row.recall, row.count) == (0.5, 1.0, 0.5, 2)


def test_rows_of_the_classes():
    names = ["good", "scratch", "good", "dent", "scratch", "good", "good"]
    y_true = np.array([name != "good" for name in names])
    y_score = np.array([10.0, 90.0, 95.0, 20.0, 30.0, 5.0, 7.0])
    dent, good, scratch = (group.row(25.0) for group in class_groups(names, y_true, y_score))
    assert (dent.name, dent.accuracy, dent.recall, dent.count) == ("dent", 0.0, 0.0, 1)
    assert math.isnan(dent.precision)  # nothing called anomalous
    assert dent.auroc == pytest.approx(3 / 4)
    assert (good.name, good.accuracy, good.precision, good.count) == ("good", 0.75, 0.0, 4)
    assert math.isnan(good.recall) and math.isnan(good.auroc)
    assert (scratch.name, scratch.accuracy, scratch.precision, scratch.recall) == ("scratch", 1.0, 1.0, 1.0)
    assert scratch.auroc == pytest.approx(6 / 8)
    overall = overall_group(y_true, y_score).row(25.0)
    assert overall.accuracy == pytest.approx(5 / 7)
    assert overall.precision == overall.recall == pytest.approx(2 / 3)
    assert overall.auroc == pytest.approx(direct_auroc(y_true, y_score))


def test_good_class_without_false_alarms_has_no_precision():
    (group,) = class_groups(["good"] * 2, np.array([False, False]), np.array([1.0, 2.0]))
    row = group.row(25.0)
    assert row.accuracy == 1 and math.isnan(row.precision)


def test_copies_count_once_and_are_anomalous_if_one_is():
    labels, scores = merge_copies(
        ["b", "a", "b", "c", "a"],
        np.array([True, False, True, False, True]),
        np.array([4.0, 1.0, 4.0, 2.0, 1.0]),
    )
    assert labels.tolist() == [True, True, False]
    assert scores.tolist() == [4.0, 1.0, 2.0]


def tied_scores(seed=0, anomalous=23, good=61):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(1, 1, anomalous), 1), np.round(rng.normal(0, 1, good), 1)


def direct_f1(anomalous, good, threshold):
    hits, alarms = (anomalous > threshold).sum(), (good > threshold).sum()
    return 2 * hits / (len(anomalous) + hits + alarms)


@pytest.mark.parametrize("seed", range(5))
def test_image_row_equals_trying_every_threshold(seed):
    anomalous, good = tied_scores(seed)
    assert len(np.intersect1d(anomalous, good)) > 5
    row = image_row("x", anomalous, good)
    y_true = np.repeat([True, False], [len(anomalous), len(good)])
    y_score = np.concatenate((anomalous, good))
    assert (row.anomalous, row.good) == (23, 61)
    assert row.auroc.value == pytest.approx(roc_auc_score(y_true, y_score))
    assert row.average_precision.value == pytest.approx(average_precision_score(y_true, y_score))
    thresholds = [*np.unique(y_score), -np.inf]
    assert row.f1_max.value == pytest.approx(max(direct_f1(anomalous, good, t) for t in thresholds))
    assert direct_f1(anomalous, good, row.f1_max_threshold) == pytest.approx(row.f1_max.value)
    for limit, found in ((0.01, row.recall_at_fpr_1), (0.05, row.recall_at_fpr_5)):
        best = max((anomalous > t).mean() for t in thresholds if (good > t).mean() <= limit)
        assert found.value == pytest.approx(best)


def test_the_best_f1_may_call_every_image_anomalous():
    anomalous, good = np.array([5.0, 1.0, 1.0]), np.array([2.0])
    row = image_row("x", anomalous, good)
    assert row.f1_max.value == pytest.approx(6 / 7)
    assert row.f1_max_threshold < 1 and direct_f1(anomalous, good, row.f1_max_threshold) == row.f1_max.value


def test_one_false_alarm_in_twenty_is_within_five_percent():
    good = np.arange(20.0)
    assert image_row("x", np.array([18.5, 17.5]), good).recall_at_fpr_5.value == 0.5
    assert image_row("x", np.array([18.5, 17.5]), good[1:]).recall_at_fpr_5.value == 0


@pytest.mark.parametrize(("anomalous", "good"), [(0, 3), (3, 0)])
def test_image_row_without_one_kind_of_image_is_undefined(anomalous, good):
    row = image_row("x", np.arange(anomalous, dtype=float), np.arange(good, dtype=float))
    estimates = [row.auroc, row.average_precision, row.f1_max, row.recall_at_fpr_1, row.recall_at_fpr_5]
    assert all(math.isnan(value) for item in estimates for value in (item.value, item.low, item.high))
    assert math.isnan(row.f1_max_threshold)


def test_a_single_image_of_a_kind_has_a_value_but_no_interval():
    row = image_row("x", np.array([2.0]), np.array([1.0, 3.0]))
    assert row.auroc.value == 0.5 and math.isnan(row.auroc.low) and math.isnan(row.auroc.high)


def test_intervals_equal_resampling_images_one_by_one():
    anomalous, good = tied_scores()
    rng = np.random.default_rng(123)
    found = []
    for _ in range(1000):
        drawn, drawn_good = (rng.choice(kind, len(kind)) for kind in (anomalous, good))
        ordered, tied = drawn[:, None] > drawn_good, drawn[:, None] == drawn_good
        found.append(ordered.mean() + tied.mean() / 2)
    row = image_row("x", anomalous, good)
    for estimate in (row.auroc, row.average_precision, row.f1_max):
        assert estimate.low < estimate.value < estimate.high
    assert (row.auroc.low, row.auroc.high) == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.02)
    assert row.recall_at_fpr_5.low <= row.recall_at_fpr_5.value <= row.recall_at_fpr_5.high
    assert image_row("x", anomalous[::-1], good[::-1]) == row  # seeded, and the order of the images has no say


def test_intervals_do_not_depend_on_how_many_resamples_are_drawn_at_once(monkeypatch):
    """Few at once: every metric is computed on many parts, which must be put together."""
    scores = tied_scores()
    whole = image_row("x", *scores)
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", 700)
    parts = image_row("x", *scores)
    assert parts.auroc.value == whole.auroc.value
    assert (parts.auroc.low, parts.auroc.high) == pytest.approx((whole.auroc.low, whole.auroc.high), abs=0.02)


def test_image_metrics_count_distinct_images():
    anomalous, good = tied_scores(anomalous=5, good=8)
    names = ["dent"] * 3 + ["scratch"] * 2 + ["good"] * 8
    digests = [str(number) for number in range(13)]
    y_true, y_score = np.arange(13) < 5, np.concatenate((anomalous, good))
    once = image_metrics(names, digests, y_true, y_score)
    assert [row.name for row in once.classes] == ["dent", "scratch"]
    assert once.classes[0] == image_row("dent", anomalous[:3], good)
    assert once.overall == image_row("Overall", anomalous, good)

    twice = image_metrics(names * 2, digests * 2, np.tile(y_true, 2), np.tile(y_score, 2))
    assert twice == once

    also_a_dent = image_metrics(
        [*names, "dent"], [*digests, "12"], [*y_true, True], np.append(y_score, y_score[12])
    )
    assert also_a_dent.classes[1].good == 7  # it is not good beside scratches either
    assert also_a_dent.classes[0].anomalous == 4 and also_a_dent.overall.anomalous == 6
