"""The calibrated threshold: its rate on new good images, its basis, and the effect of one wrong image."""

import numpy as np
import pytest

from efficientad.detector.calibration import (
    DEFAULT_THRESHOLD,
    Calibration,
    calibrate,
    choose_threshold,
    describe_calibration,
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


def test_the_threshold_given_goes_before_the_calibrated_one():
    calibration = Calibration((1.0,), 0.01, 63.2, (0.0, 0.1), False)
    assert choose_threshold(12.0, calibration) == (12.0, "given")
    assert choose_threshold(None, calibration)[0] == 63.2
    assert choose_threshold(None, None)[0] == DEFAULT_THRESHOLD == 80
