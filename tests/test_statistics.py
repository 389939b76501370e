# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from hf_exptest.statistics import ExponentialDecayResult, SlopeResult, exponential_decay_test, slope_test

LEVELS = (0.01, 0.05, 0.10)


def noisy_window(seed, n, decay=1.0, slope=0.0):
    """A decay over a third of the window, a line and unit noise at uneven times."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.2, 2.0, n))
    u = (times - times[0]) / (times[-1] - times[0])
    return decay * np.exp(-3 * u) + slope * u + rng.standard_normal(n), times


def slow_exponential_test(losses, times):
    """The definition, by brute force: least squares at each of many rates."""
    n = len(losses)
    ones = np.ones(n)
    elapsed = times - times[0]
    best = math.inf
    for rate in np.geomspace(1e-3, n - 1, 1500) / elapsed[-1]:
        columns = np.column_stack([np.exp(-rate * elapsed), ones])
        coefficients = np.linalg.lstsq(columns, losses, rcond=None)[0]
        if coefficients[0] > 0:
            best = min(best, np.sum((losses - columns @ coefficients) ** 2))
    line = np.column_stack([times, ones])
    sse_line = np.sum((losses - line @ np.linalg.lstsq(line, losses, rcond=None)[0]) ** 2)
    sse_constant = np.sum((losses - losses.mean()) ** 2)
    if best >= sse_line:
        return 1.0, math.nan
    f_line = (sse_line - best) / (best / (n - 3))
    f_constant = (sse_constant - best) / 2 / (best / (n - 3))
    return max(stats.f.sf(f_line, 1, n - 3) / 2, stats.f.sf(f_constant, 2, n - 3)), f_line


def rejection_rates(test, windows):
    p_values = np.array([test(window).p_value for window in windows])
    return [float(np.mean(p_values < level)) for level in LEVELS]


def exponential_of_correlated(losses, times=None):
    return exponential_decay_test(losses, times, autocorrelation=True)


def slope_of_correlated(losses, times=None):
    return slope_test(losses, times, autocorrelation=True)


def autocorrelated_noise(rng, rho, count, n):
    """AR(1) noise of unit variance, stationary from the first value."""
    noise = rng.standard_normal((count, n)) * math.sqrt(1 - rho**2)
    noise[:, 0] /= math.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=1)


# --- The exponential test against its definition -----------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 7, 24, 60, 150])
@pytest.mark.parametrize(("decay", "slope"), [(0.0, 0.0), (2.0, 0.0), (0.0, -3.0), (8.0, -1.0), (0.0, 2.0)])
def test_exponential_equals_slow_reference(n, decay, slope):
    losses, times = noisy_window(n, n, decay, slope)
    result = exponential_decay_test(losses, times)
    p_value, statistic = slow_exponential_test(losses, times)
    assert result.p_value == pytest.approx(p_value, rel=2e-3)
    if not math.isnan(statistic):
        assert result.statistic == pytest.approx(statistic, rel=2e-3)


@pytest.mark.parametrize("n", [24, 50, 100, 400])
def test_noise_free_exponential_is_found(n):
    result = exponential_decay_test(1.7 * np.exp(-3 * np.arange(n) / n) + 0.6)
    assert result.p_value < 1e-6
    assert result.amplitude == pytest.approx(1.7, rel=1e-5)
    assert result.rate == pytest.approx(3 / n, rel=1e-5)
    assert result.asymptote == pytest.approx(0.6, rel=1e-5)


def test_fit_is_in_the_units_of_losses_and_times():
    times = 5.0 + np.cumsum(np.random.default_rng(0).uniform(1e-5, 1e-3, 80))
    losses = 1e4 * np.exp(-200 * (times - times[0])) - 7e3
    result = exponential_decay_test(losses, times)
    assert (result.amplitude, result.rate, result.asymptote) == pytest.approx((1e4, 200.0, -7e3), rel=1e-4)


@pytest.mark.parametrize("rate", [1e-3, 0.02, 0.5, 20.0, 90.0])
def test_slow_and_fast_decays_are_found_under_little_noise(rate):
    rng = np.random.default_rng(1)
    u = np.linspace(0, 1, 100)
    losses = np.exp(-rate * u) + 1e-9 * rng.standard_normal(100)
    result = exponential_decay_test(losses)
    assert result.p_value < 1e-6
    assert result.rate * 99 == pytest.approx(rate, rel=1e-2)


def test_four_points_on_an_exponential():
    result = exponential_decay_test([9.0, 5.0, 3.0, 2.0])  # 8 * 0.5**t + 1
    assert result.p_value < 1e-4
    assert result.rate == pytest.approx(math.log(2), rel=1e-4)


# --- The exponential test: power and level -----------------------------------------------------------------------


@pytest.mark.parametrize("fixed_signal", [True, False])
def test_detects_noisy_exponentials(fixed_signal):
    rng = np.random.default_rng(2)
    detected = 0
    for _ in range(1000):
        n = int(np.exp(rng.uniform(np.log(24), np.log(2000))))
        steps = np.arange(n)
        curve = np.exp(-steps / np.exp(rng.uniform(np.log(n / 10), np.log(n))))
        bend = curve - np.polyval(np.polyfit(steps, curve, 1), steps)
        signal = 6.0 if fixed_signal else rng.uniform(6.0, 60.0)
        sigma = np.sqrt(n) * np.sqrt(np.mean(bend**2)) / signal
        losses = curve + sigma * rng.standard_normal(n)
        detected += exponential_decay_test(losses).p_value < 0.05
    assert detected >= 990


@pytest.mark.parametrize("n", [24, 100, 300])
@pytest.mark.parametrize("slope", [-1e4, -30.0, -10.0, -3.0])
def test_level_on_falling_lines(n, slope):
    # The slope is in standard errors of its own least-squares estimate: -3 is where it is just significant.
    rng = np.random.default_rng([n, int(-slope)])
    line = slope * np.sqrt(12 / n) * np.linspace(0, 1, n)
    rates = rejection_rates(exponential_decay_test, line + rng.standard_normal((1200, n)))
    assert rates == pytest.approx(LEVELS, abs=0.02)


@pytest.mark.parametrize("n", [24, 100, 300])
@pytest.mark.parametrize("slope", [-1.5, 0.0, 3.0, 30.0])
def test_level_on_flat_and_rising_lines(n, slope):
    rng = np.random.default_rng([n, int(10 * abs(slope))])
    line = slope * np.sqrt(12 / n) * np.linspace(0, 1, n)
    rates = rejection_rates(exponential_decay_test, line + rng.standard_normal((800, n)))
    assert np.all(np.array(rates) <= np.array(LEVELS) + 0.02)


@pytest.mark.parametrize("curve", [lambda u: -np.exp(-3 * u), lambda u: np.exp(u), lambda u: -np.exp(u)])
def test_rising_or_concave_curves_are_not_decays(curve):
    rng = np.random.default_rng(3)
    u = np.linspace(0, 1, 100)
    assert exponential_decay_test(curve(u)).p_value >= 0.5
    rates = rejection_rates(exponential_decay_test, 3 * curve(u) + rng.standard_normal((300, 100)))
    assert np.all(np.array(rates) <= np.array(LEVELS) + 0.02)


# --- The slope test ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 30, 200])
@pytest.mark.parametrize("slope", [-2.0, 0.0, 2.0])
def test_slope_equals_linregress(n, slope):
    losses, times = noisy_window(n, n, decay=0.0, slope=slope)
    result = slope_test(losses, times)
    reference = stats.linregress(times, losses, alternative="less")
    assert result.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    assert result.slope == pytest.approx(reference.slope, rel=1e-9)
    assert result.statistic == pytest.approx(reference.slope / reference.stderr, rel=1e-9)
    assert result.effective_sample_size == n
    assert result.standard_error == pytest.approx(reference.stderr, rel=1e-9)
    assert result.degrees_of_freedom == n - 2


def slow_p_value_of_fall(losses, times, fall):
    """Plain t-test of a straight line fit: is the slope of what the fall leaves above zero?"""
    rest = losses + fall * (times - times[0])
    return stats.linregress(times, rest, alternative="greater").pvalue


@pytest.mark.parametrize("n", [3, 4, 30, 200])
@pytest.mark.parametrize("slope", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("fall", [-0.02, 0.0, 0.01, 0.05])
def test_p_value_of_a_fall_equals_slow_reference(n, slope, fall):
    losses, times = noisy_window(n, n, decay=0.0, slope=slope)
    result = slope_test(losses, times)
    assert result.p_value_of_fall(fall) == pytest.approx(slow_p_value_of_fall(losses, times, fall), rel=1e-6)
    # Without a fall, it is the opposite of the test of the slope itself.
    assert result.p_value_of_fall(0.0) == pytest.approx(1 - result.p_value, abs=1e-12)
    assert result.p_value_of_fall(-result.slope) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_p_value_of_a_fall_is_in_the_units_of_losses_and_times(scale):
    losses, times = noisy_window(5, 40, slope=-1.0)
    expected = slope_test(losses, times).p_value_of_fall(0.02)
    assert 0.01 < expected < 0.99
    scaled = slope_test(scale * losses, 7 * times)
    assert scaled.p_value_of_fall(scale * 0.02 / 7) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("test", [slope_test, slope_of_correlated])
@given(
    seed=st.integers(0, 1000),
    n=st.integers(4, 60),
    falls=st.lists(st.floats(-10, 10), min_size=2, max_size=5),
)
def test_p_value_of_a_fall_sinks_with_the_fall(test, seed, n, falls):
    result = test(*noisy_window(seed, n))
    p_values = [result.p_value_of_fall(fall) for fall in sorted(falls)]
    assert all(1 >= before >= after >= 0 for before, after in itertools.pairwise(p_values))
    wide = [result.p_value_of_fall(sign * 1e3 * result.standard_error - result.slope) for sign in (-1, 1)]
    assert wide == pytest.approx([1, 0], abs=1e-3)


@pytest.mark.parametrize("test", [slope_test, slope_of_correlated])
@pytest.mark.parametrize("losses", [[3.0, 2.0, math.nan, 1.0, 0.9], [3.0, 2.0, math.inf, 1.0, 0.9]])
def test_where_no_slope_can_be_fitted_any_fall_is_possible(test, losses):
    result = test(losses)
    assert math.isnan(result.standard_error)
    assert [result.p_value_of_fall(fall) for fall in (0.0, 1e-3, 1e3)] == [1.0, 1.0, 1.0]


def test_losses_that_are_all_the_same_do_not_fall():
    assert [slope_of_correlated([2.0] * 20).p_value_of_fall(fall) for fall in (0.0, 1e-3)] == [1.0, 0.0]


@pytest.mark.parametrize("fall", [0.0, 0.01, 0.05])
def test_level_of_the_test_of_a_fall(fall):
    # At the fall itself each level is kept; where the loss falls by more, it is rarely said to fall by less.
    rng = np.random.default_rng(12)
    line = -fall * np.arange(50)
    windows = line + rng.standard_normal((2000, 50))
    rates = [np.mean([slope_test(w).p_value_of_fall(fall) < level for w in windows]) for level in LEVELS]
    assert rates == pytest.approx(LEVELS, abs=0.02)
    less = [slope_test(w).p_value_of_fall(fall - 0.03) < 0.05 for w in windows]
    more = [slope_test(w).p_value_of_fall(fall + 0.03) < 0.05 for w in windows]
    assert np.mean(less) < 0.001
    assert np.mean(more) > 0.8


def lasting_noise(rng, count, n):
    """Unit variance, a tenth of it slow: neighbours hardly show it, means over many losses do."""
    slow = autocorrelated_noise(rng, 0.8, count, n)
    return math.sqrt(0.9) * rng.standard_normal((count, n)) + math.sqrt(0.1) * slow


def slow_effective_sample_size(residuals):
    n = len(residuals)
    lag_one = np.sum(residuals[1:] * residuals[:-1]) / np.sum(residuals**2)
    correlation = np.clip((n * lag_one + 4) / (n - 7), 0, 1 - 1 / n)
    batch = round(math.sqrt(n))
    means = np.array([residuals[start : start + batch].mean() for start in range(n - batch + 1)])
    excess = np.mean(means**2) / (np.mean(residuals**2) / batch) + 3 * batch / n
    return max(1.0, min(n * (1 - correlation) / (1 + correlation), n / max(1.0, excess)))


def slow_autocorrelated_slope_test(losses, times):
    residuals = losses - np.polyval(np.polyfit(times, losses, 2), times)
    effective = slow_effective_sample_size(residuals)
    freedom = max(1.0, effective - 3)
    error = np.sqrt(np.sum(residuals**2) / freedom / np.sum((times - times.mean()) ** 2))
    return stats.t.cdf(np.polyfit(times, losses, 1)[0] / error, freedom), effective


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9, 0.99, "lasting"])
def test_autocorrelated_slope_equals_slow_reference(rho):
    rng = np.random.default_rng(4)
    losses = (lasting_noise(rng, 1, 80) if rho == "lasting" else autocorrelated_noise(rng, rho, 1, 80))[0]
    times = noisy_window(0, 80)[1]
    result = slope_test(losses, times, autocorrelation=True)
    p_value, effective = slow_autocorrelated_slope_test(losses, times)
    assert result.p_value == pytest.approx(p_value, rel=1e-6)
    assert result.effective_sample_size == pytest.approx(effective, rel=1e-6)
    assert 1 <= result.effective_sample_size <= 80
    # A straight line that falls by `fall` bends nothing, so that the parabola leaves the same noise.
    fall = 0.01
    rest = losses + fall * (times - times[0])
    assert result.p_value_of_fall(fall) == pytest.approx(1 - slow_autocorrelated_slope_test(rest, times)[0], rel=1e-5)
    assert result.degrees_of_freedom == pytest.approx(max(1.0, effective - 3), rel=1e-6)


@pytest.mark.parametrize("n", [50, 100, 200])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.97])
def test_level_under_autocorrelation(n, rho):
    windows = autocorrelated_noise(np.random.default_rng([5, n]), rho, 1500, n)
    corrected = rejection_rates(slope_of_correlated, windows)
    assert 0.02 <= corrected[1] <= 0.07
    plain = rejection_rates(slope_test, windows)
    expected = {0.0: 0.05, 0.5: 0.17, 0.9: 0.35, 0.97: 0.41}[rho]
    assert plain[1] == pytest.approx(expected, abs=0.03)


def test_level_under_lasting_correlation():
    windows = lasting_noise(np.random.default_rng(9), 1500, 100)
    line = 3 * np.linspace(1, 0, 100)
    for test, of_correlated, curve in (
        (slope_test, slope_of_correlated, 0 * line),
        (exponential_decay_test, exponential_of_correlated, line),
    ):
        plain = rejection_rates(test, curve + windows)
        corrected = rejection_rates(of_correlated, curve + windows)
        assert all(rate <= level + 0.02 for rate, level in zip(corrected, LEVELS, strict=True))
        assert plain[1] > 0.07
        assert plain[2] > 0.12


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_level_of_the_exponential_under_autocorrelation(rho):
    windows = autocorrelated_noise(np.random.default_rng(10), rho, 1000, 100)
    line = 3 * np.linspace(1, 0, 100)
    for curve in (0 * line, line):
        assert rejection_rates(exponential_of_correlated, curve + windows)[1] <= 0.07
    plain = rejection_rates(exponential_decay_test, windows)
    assert plain[1] == pytest.approx({0.0: 0.01, 0.5: 0.06, 0.9: 0.19}[rho], abs=0.02)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_autocorrelated_exponential_equals_slow_reference(rho):
    times = np.arange(80.0)
    losses = 6 * np.exp(-times / 16) + autocorrelated_noise(np.random.default_rng(11), rho, 1, 80)[0]
    plain = exponential_decay_test(losses, times)
    result = exponential_decay_test(losses, times, autocorrelation=True)
    assert (result.amplitude, result.rate, result.asymptote) == (plain.amplitude, plain.rate, plain.asymptote)
    residuals = losses - result.amplitude * np.exp(-result.rate * times) - result.asymptote
    freedom = slow_effective_sample_size(residuals) - 3
    assert freedom < 77
    noise = np.sum(residuals**2) / freedom
    line = losses - np.polyval(np.polyfit(times, losses, 1), times)
    against_line = (np.sum(line**2) - np.sum(residuals**2)) / noise
    against_constant = (np.sum((losses - losses.mean()) ** 2) - np.sum(residuals**2)) / 2 / noise
    expected = max(stats.t.sf(math.sqrt(against_line), freedom), stats.f.sf(against_constant, 2, freedom))
    assert result.p_value == pytest.approx(expected, rel=1e-6)
    assert result.p_value > plain.p_value


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_power_under_autocorrelation(rho):
    noise = autocorrelated_noise(np.random.default_rng(6), rho, 300, 100)
    u = np.linspace(0, 1, 100)
    for curve in (-2 * u, 3 * np.exp(-3 * u)):
        rates = rejection_rates(slope_of_correlated, curve + 0.4 * noise)
        assert rates[1] > 0.99


@pytest.mark.parametrize("autocorrelation", [False, True])
def test_straight_lines(autocorrelation):
    falling = slope_test(2.0 - 0.01 * np.arange(50), autocorrelation=autocorrelation)
    assert falling.p_value < 1e-6
    assert falling.slope == pytest.approx(-0.01)
    rising = slope_test(2.0 + 0.01 * np.arange(50), autocorrelation=autocorrelation)
    assert rising.p_value > 1 - 1e-6
    assert rising.slope == pytest.approx(0.01)


def test_correlation_of_neighbours_costs_significance():
    noise = autocorrelated_noise(np.random.default_rng(7), 0.9, 1, 100)[0]
    losses = noise - np.linspace(0, 4, 100)
    plain, corrected = slope_test(losses), slope_test(losses, autocorrelation=True)
    assert corrected.slope == plain.slope
    assert corrected.effective_sample_size < 30
    assert corrected.p_value > plain.p_value


# --- Both tests --------------------------------------------------------------------------------------------------


EXPONENTIAL = [exponential_decay_test, exponential_of_correlated]
BOTH = pytest.mark.parametrize("test", [*EXPONENTIAL, slope_test, slope_of_correlated])


@BOTH
@given(
    seed=st.integers(0, 1000),
    n=st.integers(8, 60),
    scale=st.floats(1e-4, 1e6),
    shift=st.floats(-1e3, 1e3),
    stretch=st.floats(1e-6, 1e6),
    delay=st.floats(-1e2, 1e2),
)
@settings(max_examples=40)
def test_invariant_to_scale_and_shift(test, seed, n, scale, shift, stretch, delay):
    losses, times = noisy_window(seed, n, decay=2.0)
    expected = test(losses, times).p_value
    # A decay that is no better than the line by rounding error has p = 0.5 or 1.0, neither of which is a decision.
    assume(expected < 0.49)
    assert test(scale * losses + scale * shift, times).p_value == pytest.approx(expected, rel=1e-4)
    assert test(losses, stretch * (times + delay)).p_value == pytest.approx(expected, rel=1e-4)


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_is_a_rejected_window(test, bad):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = test([3.0, 2.0, bad, 1.0, 0.9])
    assert result.p_value == 1.0


@BOTH
@pytest.mark.parametrize("value", [0.0, 0.1, -3e5, 1e300, 5e-324])
def test_constant_loss_is_a_rejected_window(test, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert test([value] * 20).p_value == 1.0


@BOTH
@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_extreme_scales(test, scale):
    losses = 1.0 + np.exp(-np.arange(40) / 10) + 0.01 * np.random.default_rng(8).standard_normal(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert test(scale * losses).p_value == pytest.approx(test(losses).p_value, rel=1e-4)


@BOTH
@given(
    losses=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=30),
    gaps=st.lists(st.floats(1e-9, 1e9), min_size=30, max_size=30),
)
@settings(max_examples=100)
def test_any_losses_give_a_probability_and_no_warning(test, losses, gaps):
    times = np.cumsum(gaps)[: len(losses)]
    assume(np.all(np.diff(times) > 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for result in (test(losses), test(losses, times)):
            assert 0.0 <= result.p_value <= 1.0


@BOTH
def test_exact_line_with_rounding_is_not_bent(test):
    p_value = test(0.3 - 0.1 * np.arange(30)).p_value
    assert p_value >= 0.5 if test in EXPONENTIAL else p_value < 1e-6


@pytest.mark.parametrize(
    ("test", "minimum"),
    [
        (exponential_decay_test, 4),
        (slope_test, 3),
        (slope_of_correlated, 4),
    ],
)
def test_too_few_losses(test, minimum):
    test(np.arange(minimum))
    with pytest.raises(ValueError, match=f"at least {minimum} losses, but got n = {minimum - 1}"):
        test(np.arange(minimum - 1))


@BOTH
@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 1.0, 2.0], r"\(3,\)"),
        ([0.0, 1.0, 1.0, 2.0], r"strictly increasing, but 1.0 is followed by 1.0"),
        ([0.0, 2.0, 1.0, 3.0], r"strictly increasing, but 2.0 is followed by 1.0"),
        ([0.0, 1.0, math.nan, 3.0], "finite, but contain nan"),
        ([0.0, 1.0, 2.0, math.inf], "finite, but contain inf"),
    ],
)
def test_wrong_times(test, times, message):
    with pytest.raises(ValueError, match=message):
        test([4.0, 3.0, 2.0, 1.5], times)


@BOTH
def test_losses_must_be_one_dimensional(test):
    with pytest.raises(ValueError, match=r"\(5, 2\)"):
        test(np.zeros((5, 2)))


@BOTH
@pytest.mark.parametrize(
    "losses",
    [[5, 3, 2, 1], np.array([5, 3, 2, 1], dtype=np.float32), [1.0] * 5, [1.0, math.nan, 2.0, 3.0], [1, 2, 3, 9]],
)
def test_results_are_plain_floats(test, losses):
    result = test(losses)
    assert isinstance(result, ExponentialDecayResult | SlopeResult)
    assert all(type(value) is float for value in dataclasses.asdict(result).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.p_value = 0.0
