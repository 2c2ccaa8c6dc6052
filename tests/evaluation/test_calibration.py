"""Calibration of probabilities and intervals whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from vae_jax.evaluation import calibration


def test_bins_count_predict_and_observe_as_by_hand():
    p = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    x = np.array([0.0, 1.0, 1.0, 1.0, 0.0])
    first, last = calibration.reliability(p, x)
    assert first == (0.0, 0.1, 2, 0.05, 0.5)
    assert last[:3] == (0.9, 1.0, 3)
    np.testing.assert_allclose(last[3:], [2.9 / 3, 2 / 3])
    error = calibration.expected_calibration_error([first, last])
    expected = (2 * 0.45 + 3 * abs(2.9 / 3 - 2 / 3)) / 5
    np.testing.assert_allclose(error, expected, rtol=1e-12)


def test_a_probability_at_the_end_of_a_bin_is_in_the_next_one():
    bins = calibration.reliability(np.array([0.0, 0.5, 1.0]), np.ones(3), num_bins=2)
    assert [(b.low, b.num_entries) for b in bins] == [(0.0, 1), (0.5, 2)]


def test_true_probabilities_are_calibrated_and_shifted_ones_are_off_by_the_shift():
    generator = np.random.default_rng(0)
    p = generator.uniform(0.2, 0.8, 100_000)
    x = (generator.random(100_000) < p).astype(np.float32)
    error = calibration.expected_calibration_error
    assert error(calibration.reliability(p, x)) < 5 * 0.5 / np.sqrt(100_000 / 6)
    for shift in (-0.15, 0.15):
        got = error(calibration.reliability(p + shift, x))
        np.testing.assert_allclose(got, 0.15, atol=5 * 0.5 / np.sqrt(100_000))


def test_the_error_of_one_bin_is_that_of_the_mean_alone():
    p, x = np.array([0.1, 0.9]), np.array([1.0, 0.0])
    (whole,) = calibration.reliability(p, x, num_bins=1)
    assert calibration.expected_calibration_error([whole]) == 0.0
    apart = calibration.reliability(p, x, num_bins=2)
    np.testing.assert_allclose(calibration.expected_calibration_error(apart), 0.9)


@pytest.mark.slow
def test_intervals_of_normal_draws_cover_what_they_state_and_have_its_width():
    generator = np.random.default_rng(0)
    x = generator.normal(size=4000)
    draws = generator.normal(size=(500, 4000))
    for nominal in (0.5, 0.9):
        ends = calibration.intervals(draws, nominal=nominal)
        got = calibration.coverage(*ends, x)
        error = np.sqrt(nominal * (1 - nominal) / 4000)
        assert abs(got.coverage - nominal) < 5 * error + 0.005  # of 500 draws' ends
        width = 2 * stats.norm.ppf((1 + nominal) / 2)
        np.testing.assert_allclose(got.interval_width, width, rtol=0.01)
    narrow = calibration.coverage(*calibration.intervals(draws / 2, nominal=0.9), x)
    expected = 2 * stats.norm.cdf(stats.norm.ppf(0.95) / 2) - 1
    np.testing.assert_allclose(narrow.coverage, expected, atol=0.05)


def test_draws_that_are_missing_are_left_out():
    draws = np.array([[0.0, 2.0], [1.0, np.nan], [np.nan, 4.0]])
    low, high = calibration.intervals(draws, nominal=0.5)
    np.testing.assert_allclose(low, [0.25, 2.5])
    np.testing.assert_allclose(high, [0.75, 3.5])


def test_what_is_no_probability_or_share_is_refused():
    for p in (-0.1, 1.1, np.nan):
        with pytest.raises(
            ValueError, match=r"probabilities must lie in \[0, 1\], got"
        ):
            calibration.reliability(np.array([p]), np.zeros(1))
    with pytest.raises(ValueError, match=r"of one shape, got \(2,\) and \(3,\)"):
        calibration.reliability(np.zeros(2), np.zeros(3))
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"nominal must lie in \(0, 1\), got"):
            calibration.intervals(np.zeros((2, 1)), nominal=share)


def test_bits_are_scored_where_they_count_and_a_certain_error_is_finite():
    p = np.array([[0.8, 0.3], [1.0, 0.1]])
    x = np.array([[1.0, 1.0], [0.0, np.nan]])
    scored = np.array([[True, True], [True, False]])
    got = calibration.of_bits(p, x, scored)
    np.testing.assert_allclose(got.error_rate, 2 / 3)
    expected = (np.log(0.8) + np.log(0.3) + np.log(1e-4)) / 2
    np.testing.assert_allclose(got.entry_log_likelihood, expected)
    assert got.calibration == calibration.reliability(p[scored], x[scored])
    error = calibration.expected_calibration_error(got.calibration)
    assert got.expected_calibration_error == error


def test_no_predictions_have_no_figures():
    with pytest.raises(ValueError, match="need an entry that is scored: none is"):
        calibration.of_bits(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="no predictions have no calibration error"):
        calibration.expected_calibration_error([])


def test_the_ends_of_an_interval_are_inside():
    ends = np.array([1.0, 2.0]), np.array([1.0, 3.0])
    for x in (np.array([1.0, 2.0]), np.array([1.0, 3.0])):
        assert calibration.coverage(*ends, x) == calibration.Coverage(1.0, 0.5)
