import math

import numpy as np
import pytest

from efficientad.metrics import class_rows, decision_row, image_auroc, merge_copies, overall_row


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
    dent, good, scratch = class_rows(names, y_true, y_score, 25.0)
    assert (dent.name, dent.accuracy, dent.recall, dent.count) == ("dent", 0.0, 0.0, 1)
    assert math.isnan(dent.precision)  # nothing called anomalous
    assert dent.auroc == pytest.approx(3 / 4)
    assert (good.name, good.accuracy, good.precision, good.count) == ("good", 0.75, 0.0, 4)
    assert math.isnan(good.recall) and math.isnan(good.auroc)
    assert (scratch.name, scratch.accuracy, scratch.precision, scratch.recall) == ("scratch", 1.0, 1.0, 1.0)
    assert scratch.auroc == pytest.approx(6 / 8)
    overall = overall_row(y_true, y_score, 25.0)
    assert overall.accuracy == pytest.approx(5 / 7)
    assert overall.precision == overall.recall == pytest.approx(2 / 3)
    assert overall.auroc == pytest.approx(direct_auroc(y_true, y_score))


def test_good_class_without_false_alarms_has_no_precision():
    (row,) = class_rows(["good"] * 2, np.array([False, False]), np.array([1.0, 2.0]), 25.0)
    assert row.accuracy == 1 and math.isnan(row.precision)


def test_copies_count_once_and_are_anomalous_if_one_is():
    labels, scores = merge_copies(
        ["b", "a", "b", "c", "a"],
        np.array([True, False, True, False, True]),
        np.array([4.0, 1.0, 4.0, 2.0, 1.0]),
    )
    assert labels.tolist() == [True, True, False]
    assert scores.tolist() == [4.0, 1.0, 2.0]
