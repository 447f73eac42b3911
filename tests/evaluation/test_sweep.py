"""The sweep's rows against counting at their own thresholds."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from efficientad.evaluation.sweep import sweep_thresholds, threshold_for_recall


def noted(rows, note):
    (found,) = [row for row in rows if any(note in text for text in row.notes)]
    return found


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    y_true = rng.random(300) < 0.4
    y_score = np.round(rng.gamma(3, 10, 300) + 30 * y_true, 1)  # rounded: some tie
    return y_true, y_score.astype(np.float32).astype(float)


def test_every_row_is_what_its_threshold_gives(images):
    y_true, y_score = images
    rows = sweep_thresholds(y_true, y_score, 47.3)
    assert 5 <= len(rows) <= 10
    assert [row.threshold for row in rows] == sorted({row.threshold for row in rows})
    for row in rows:
        y_pred = y_score > float(repr(row.threshold))  # as the table prints it
        assert row.accuracy == pytest.approx((y_pred == y_true).mean())
        assert row.precision == pytest.approx(y_true[y_pred].mean(), nan_ok=True)
        assert row.recall == pytest.approx(y_pred[y_true].mean())
        assert row.f1 == pytest.approx(f1_score(y_true, y_pred))
        assert row.false_positive_rate == pytest.approx(y_pred[~y_true].mean())


def test_the_marked_rows_are_the_extremes(images):
    y_true, y_score = images
    rows = sweep_thresholds(y_true, y_score, 47.3)
    assert noted(rows, "in use").threshold == 47.3
    candidates = [-1.0, *np.unique(y_score)]
    best = max(f1_score(y_true, y_score > candidate) for candidate in candidates)
    assert noted(rows, "best F1").f1 == pytest.approx(best)
    for rate in (0.01, 0.05, 0.1):
        allowed = [c for c in candidates if (y_score > c)[~y_true].mean() <= rate]
        row = noted(rows, f"false positives <= {100 * rate:g} %")
        assert row.recall == pytest.approx((y_score > min(allowed))[y_true].mean())
    for recall, note in ((1, "every defect found"), (0.9, "recall >= 90 %")):
        allowed = [c for c in candidates if (y_score > c)[y_true].mean() >= recall]
        assert noted(rows, note).false_positive_rate == pytest.approx((y_score > max(allowed))[~y_true].mean())


def test_the_printed_digits_separate_close_scores():
    y_true, y_score = np.array([False, True]), np.array([1097.66761, 1097.66763])
    (row,) = [row for row in sweep_thresholds(y_true, y_score, 80.0) if row.f1 == 1]
    printed = float(repr(row.threshold))
    assert y_score[0] <= printed < y_score[1] and len(repr(row.threshold)) <= 11


def test_perfect_separation_needs_few_rows():
    rows = sweep_thresholds(np.array([False, False, True, True]), np.array([1.0, 2.0, 8.25, 9.0]), 100.0)
    assert rows[-1].threshold == 100 and rows[-1].recall == 0 and np.isnan(rows[-1].precision)
    perfect = noted(rows, "best F1")
    assert perfect.threshold == 5 and perfect.f1 == perfect.accuracy == 1  # few digits, amid the gap
    assert {"no false positive", "every defect found"} <= set(perfect.notes)


def test_one_kind_of_label_only():
    good = sweep_thresholds(np.array([False, False]), np.array([1.0, 2.0]), 1.5)
    assert all(np.isnan(row.recall) and np.isnan(row.f1) for row in good)
    assert noted(good, "no false positive").false_positive_rate == 0
    defective = sweep_thresholds(np.array([True, True]), np.array([1.0, 2.0]), 1.5)
    assert all(np.isnan(row.false_positive_rate) for row in defective)
    assert noted(defective, "every defect found").recall == 1


@pytest.mark.parametrize("recall", [0.001, 0.5, 0.9, 0.95, 0.997, 1])
def test_the_threshold_for_a_recall_is_the_highest(images, recall):
    y_true, y_score = images
    threshold = threshold_for_recall(y_true, y_score, recall)
    found = (y_score > threshold)[y_true].mean()
    assert found >= recall - 1e-12
    lowest_found = y_score[y_true & (y_score > threshold)].min()
    assert (y_score >= np.nextafter(lowest_found, np.inf))[y_true].mean() < recall  # any higher one finds too few
    assert threshold == float(repr(threshold))


def test_a_recall_of_19_in_20_needs_no_20th():
    y_true, y_score = np.append(np.ones(20, dtype=bool), [False]), np.append(np.arange(20.0) + 10, [4.0])
    threshold = threshold_for_recall(y_true, y_score, 0.95)
    assert 10 <= threshold < 11
    assert 4 <= threshold_for_recall(y_true, y_score, 1) < 10
