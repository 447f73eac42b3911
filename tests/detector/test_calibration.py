"""The calibrated threshold: its rate on new good images, its basis, and the effect of one wrong image."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from efficientad.detector import calibration as calibration_module
from efficientad.detector.calibration import (
    DEFAULT_THRESHOLD,
    Calibration,
    calibrate,
    choose_threshold,
    describe_calibration,
    outlier_level,
)


def test_enough_scores_give_the_conformal_one():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 200.0))  # 1 ... 199
    calibration = calibrate(scores, 0.01)
    assert calibration.threshold == 198.0  # the second highest of 199: expected rate 2 / 200
    assert not calibration.extrapolated
    low, high = calibration.rate_interval
    assert 0 < low < 0.01 < high < 0.03
    assert calibration.scores == tuple(np.arange(1.0, 200.0))


def test_the_score_that_is_the_threshold_is_not_above_it():
    """Nor above the number as it is printed, stored with nine digits, or compared in float32."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        scores = rng.gamma(9, 4, 199).astype(np.float32)
        threshold = calibrate(scores.tolist(), 0.01).threshold
        chosen = np.sort(scores)[-2]
        assert chosen <= threshold == pytest.approx(chosen, rel=1e-5)
        assert float(f"{threshold:g}") == float(f"{threshold:.9g}") == threshold
        assert not chosen > np.float32(threshold) and (scores > threshold).sum() == 1


@pytest.mark.parametrize(("count", "extrapolated"), [(98, True), (99, False)])
def test_a_tail_is_fitted_where_the_scores_cannot_show_the_rate(count, extrapolated):
    assert calibrate(np.arange(float(count)), 0.01).extrapolated is extrapolated


@pytest.mark.parametrize("count", [4, 8, 30])
def test_the_extrapolated_rate_is_as_likely_too_high_as_too_low(count):
    rng = np.random.default_rng(count)
    calibrations = [calibrate(30 + rng.exponential(10, count), 0.02) for _ in range(150)]
    rates = np.exp([-(calibration.threshold - 30) / 10 for calibration in calibrations])
    assert np.mean(rates > 0.02) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(150))
    low, high = calibrations[0].rate_interval
    assert np.mean((low < rates) & (rates < high)) == pytest.approx(0.9, abs=4 * 0.3 / np.sqrt(150))


def test_units_and_order_do_not_matter():
    scores = np.random.default_rng(3).exponential(size=20)
    one = calibrate(scores, 0.01)
    other = calibrate(5 + 3 * scores[::-1], 0.01)
    assert other.threshold == pytest.approx(5 + 3 * one.threshold, rel=1e-4)
    assert other.rate_interval == one.rate_interval


def test_a_defect_among_the_good_images_does_not_set_the_threshold():
    scores = np.random.default_rng(4).gamma(9, 4, 20)
    scores[np.argmax(scores)] = 10_000
    assert calibrate(scores, 0.01).threshold < 150


@pytest.mark.parametrize(("scores", "rate"), [([1.0, 2.0, 3.0], 0.01), ([1.0] * 9, 0.0), ([1.0] * 9, 1.0)])
def test_nonsense_is_refused(scores, rate):
    with pytest.raises(ValueError):
        calibrate(scores, rate)


def test_equal_scores_have_a_threshold():
    assert calibrate([7.0] * 9, 0.01).threshold == 7.0


def test_the_line_for_the_user_says_how_sure_it_is():
    sure = describe_calibration(calibrate(np.arange(300.0), 0.01), 300)
    assert sure.startswith("Threshold 297 for 1 % false positives, from 300 held-out good images")
    assert "extrapolated" not in sure
    assert sure.endswith("; on new good images expect 0.27 to 2.1 %")
    unsure = describe_calibration(calibrate(np.arange(8.0), 0.01), 8)
    assert "; on new good images expect anything up to 12 %\n" in unsure
    assert "8 images cannot show a rate below 11 %" in unsure
    assert "3 held-out good images are too few" in describe_calibration(None, 3)
    both = describe_calibration(calibrate(np.arange(300.0), 0.01, left_out=270), 30)
    assert "from 270 good images, each compared with the others alone, and 30 more held out; on new" in both
    alone = describe_calibration(calibrate(np.arange(300.0), 0.01, left_out=300), 0)
    assert "from 300 good images, each compared with the others alone; on new" in alone


def test_the_threshold_given_goes_before_the_calibrated_one():
    calibration = Calibration((1.0,), 0.01, 63.2, (0.0, 0.1), False)
    assert choose_threshold(12.0, calibration) == (12.0, "given")
    assert choose_threshold(None, calibration)[0] == 63.2
    assert choose_threshold(None, None)[0] == DEFAULT_THRESHOLD == 80


def test_how_many_were_left_out_changes_no_threshold():
    scores = np.random.default_rng(5).exponential(size=30)
    plain, left_out = calibrate(scores, 0.01), calibrate(scores, 0.01, left_out=20)
    assert (plain.left_out, left_out.left_out) == (0, 20)
    assert asdict(left_out) == {**asdict(plain), "left_out": 20}
    assert Calibration.from_dict(asdict(left_out)) == left_out
    before = {name: value for name, value in asdict(plain).items() if name != "left_out"}  # of older files
    assert Calibration.from_dict(before) == plain


@pytest.mark.parametrize("left_out", [-1, 31, 2.0, True, None, "3"])
def test_a_nonsensical_number_of_images_left_out_is_refused(left_out):
    values = asdict(calibrate(np.arange(30.0), 0.01))
    with pytest.raises((TypeError, ValueError), match="left out"):
        Calibration.from_dict({**values, "left_out": left_out})


@pytest.mark.parametrize("count", [20, 40])
def test_good_images_are_rarely_called_outliers(count):
    """One set in twenty has any, if the scores have an exponential tail."""
    rng = np.random.default_rng(count)
    sets = 30 + rng.exponential(10, (100, count))
    levels = np.array([outlier_level(scores.tolist()) for scores in sets[:4]])
    assert (levels > 30 + 10 * np.log(count)).all()
    rates = np.mean([outlier_level(scores.tolist()) < scores.max() for scores in sets])
    assert rates < 0.13


def test_the_level_of_outliers():
    scores = np.random.default_rng(6).gamma(9, 4, 40)
    level = outlier_level(scores.tolist())
    assert scores.max() < level < 4 * scores.max()
    assert outlier_level((5 + 3 * scores[::-1]).tolist()) == pytest.approx(5 + 3 * level)
    wrong = [*np.sort(scores)[:-2], 1e4, 1e5]
    assert outlier_level(wrong) == pytest.approx(level, rel=0.3)  # the highest tenth has no part in it
    assert outlier_level(scores[:19].tolist()) == math.inf
    assert math.isfinite(outlier_level(scores[:20].tolist()))
    for score in (0.0, 7.0, 7.3, 1.1, 0.7):
        assert score <= outlier_level([score] * 30) == pytest.approx(score)


def test_the_level_of_many_scores_is_as_exact_and_cheap(monkeypatch):
    """Its simulation does not grow with their number; an exponential tail of 5,000 reaches to log(100,000)."""
    sizes = []

    class Recorded:
        def exponential(self, size):
            sizes.append(size)
            return np.random.Generator(np.random.PCG64(0)).exponential(size=size)

    scores = np.random.default_rng(7).exponential(size=5000)
    monkeypatch.setattr(calibration_module.np.random, "default_rng", lambda seed: Recorded())
    assert outlier_level(scores.tolist()) == pytest.approx(np.log(5000 / 0.05), rel=0.05)
    assert sizes == [(800, 5000)]
