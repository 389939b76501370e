# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The two hypothesis tests that ExpTest (Chaudhry & Mizuno, 2024, arXiv 2411.16975) applies to a window of losses.

[`exponential_decay_test`] asks whether the window falls like `a * exp(-b * t) + c` (the paper's DETECT phase),
[`slope_test`] whether it still falls at all (its TUNE phase). Both are pure functions of the losses, linear in their
number, and never raise on a non-finite loss.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import fdtrc, stdtr

Vector = NDArray[np.float64]

# Rates are in units of one over the window's span. Below the first one the curve is a line with a slight bend, which
# `_slightly_bent_rate` finds in closed form. The search ends at a decay as fast as one mean step.
_LOWEST_RATE = 0.03
_RATE_RATIO = 1.8
# Below this the bend is lost in rounding.
_STRAIGHT_RATE = 1e-9
# exp(-40) is below the rounding of 1.0: later points do not change a sum.
_NEGLIGIBLE_EXPONENT = 40.0


@dataclass(frozen=True)
class TestResult:
    """
    Outcome of a one-sided test on a window of losses.

    Args:
        p_value (`float`): Probability, if the null hypothesis holds, of a statistic at least this favourable.
        statistic (`float`): The F or t statistic behind it.

    Example:

        >>> from hf_exptest import TestResult, slope_test
        >>> result = slope_test([2.0, 1.7, 1.5, 1.0, 1.1])
        >>> isinstance(result, TestResult)
        True
        >>> print(f"p = {result.p_value:.3f}, t = {result.statistic:.1f}")
        p = 0.007, t = -5.3
    """

    __test__ = False  # the name starts with "Test", but it is not a pytest class

    p_value: float
    statistic: float


@dataclass(frozen=True)
class ExponentialDecayResult(TestResult):
    """
    Result of [`exponential_decay_test`]: the fit is `amplitude * exp(-rate * (times - times[0])) + asymptote`.

    Args:
        amplitude (`float`): In units of the loss; positive for a decay, 0.0 if no decay was found.
        rate (`float`): In one over the unit of `times`; 0.0 if no decay was found.
        asymptote (`float`): In units of the loss; the mean loss if no decay was found.

    Example:

        >>> from hf_exptest import exponential_decay_test
        >>> result = exponential_decay_test([1 + 0.5**step for step in range(10)])
        >>> round(result.amplitude, 3), round(result.rate, 3), round(result.asymptote, 3)
        (1.0, 0.693, 1.0)
    """

    amplitude: float
    rate: float
    asymptote: float


@dataclass(frozen=True)
class SlopeResult(TestResult):
    """
    Result of [`slope_test`].

    Args:
        slope (`float`): Least-squares slope, loss per unit of `times`.
        effective_sample_size (`float`): Number of independent losses that the window is worth; the plain number of
            losses unless the autocorrelation was asked for.
        standard_error (`float`): Of the slope, in its unit; NaN where no slope could be fitted.
        degrees_of_freedom (`float`): Of the t-test.

    Example:

        >>> from hf_exptest import slope_test
        >>> result = slope_test([2.0, 1.7, 1.5, 1.0, 1.1])
        >>> round(result.slope, 2), result.effective_sample_size
        (-0.25, 5.0)
        >>> result.p_value < 0.05, result.p_value_of_fall(0.5) < 0.05
        (True, True)
    """

    slope: float
    effective_sample_size: float
    standard_error: float = math.nan
    degrees_of_freedom: float = 1.0

    def p_value_of_fall(self, fall: float) -> float:
        """
        Probability of a slope this high or higher if the loss falls by `fall` a unit of time: small where the loss
        falls by clearly less. The opposite test to that of `p_value`; where both are large, the losses do not tell.
        """
        if not self.standard_error > 0:
            # Losses that are all the same do not fall; of those that are not finite nothing is known.
            return 0.0 if self.slope > -fall else 1.0
        return float(stdtr(self.degrees_of_freedom, -(self.slope + fall) / self.standard_error))


@dataclass(frozen=True)
class _Window:
    """A window on a common scale: `losses = offset + scale * values`, `times = times[0] + span * positions`."""

    values: Vector  # mean zero, largest magnitude one
    positions: Vector  # from zero to one
    scale: float
    offset: float
    span: float
    rounding: float  # a sum of squared residuals of `values` at or below this is rounding error


def exponential_decay_test(
    losses: ArrayLike, times: ArrayLike | None = None, *, autocorrelation: bool = False
) -> ExponentialDecayResult:
    """
    Tests whether a window of losses decays exponentially, `a * exp(-b * (t - t_0)) + c` with `a > 0` and `b > 0`.

    The exponential has to beat two simpler curves, and the p-value is the larger of two:

    - against the line `m * t + k`, `F = (SSE_lin - SSE_exp) / (SSE_exp / (n - 3))` on `(1, n - 3)` degrees of freedom
      (section 2 of the paper). Only a bend in one direction counts, so p is half the two-sided tail. This F is the
      `statistic` of the result;
    - against the constant, F on `(2, n - 3)` degrees of freedom. On a flat curve the rate is not identified and some
      rate always fits the noise a little, which the comparison with the line alone takes for a decay.

    For a fixed rate the amplitude and the asymptote are linear least squares in closed form, so only the rate is
    searched (variable projection), between a barely bent line and a decay within one mean step. The p-value does not
    change under `losses -> s * losses + k` with `s > 0`, nor under a shift or a positive scaling of `times`.

    The paper takes the residuals for independent. With `autocorrelation=True` the window counts as fewer losses, as in
    [`slope_test`]; the noise is then what remains after the exponential.

    Args:
        losses (array of `float`, shape `(n,)`): Loss of each optimizer step, at least 4.
        times (array of `float`, shape `(n,)`, *optional*): Strictly increasing abscissa, in any unit: the step or the
            accumulated learning rate. Defaults to 0, 1, 2, ...
        autocorrelation (`bool`, *optional*, defaults to `False`): Whether to allow for correlated noise.

    Returns:
        [`ExponentialDecayResult`]: `p_value` is 1.0 if a loss is not finite, if the losses are constant, or if no
        decaying exponential beats the line.

    Raises:
        `ValueError`: If there are fewer than 4 losses, or `times` is not finite, strictly increasing and of the same
            length.

    Example:

        >>> import numpy as np
        >>> from hf_exptest import exponential_decay_test
        >>> steps = np.arange(100)
        >>> noise = np.random.default_rng(0).normal(scale=0.05, size=100)
        >>> result = exponential_decay_test(2 * np.exp(-0.05 * steps) + 1 + noise)
        >>> result.p_value < 0.05
        True
        >>> print(f"{result.amplitude:.2f} * exp(-{result.rate:.3f} * t) + {result.asymptote:.2f}")
        1.98 * exp(-0.050 * t) + 1.01
        >>> exponential_decay_test(3 - 0.02 * steps + noise).p_value < 0.05  # a straight line
        False
    """
    values, abscissa = _checked(losses, times, minimum=4)
    if not np.isfinite(values).all():
        return ExponentialDecayResult(1.0, 0.0, math.nan, math.nan, math.nan)
    window = _normalized(values, abscissa)
    y, u = window.values, window.positions
    total = float(y @ y)
    if total <= window.rounding:
        return ExponentialDecayResult(1.0, 0.0, 0.0, 0.0, window.offset)

    fits = [_fit_at(rate, y, u) for rate in (_slightly_bent_rate(y, u), _best_rate(y, u)) if rate is not None]
    fits = [fit for fit in fits if fit[1] > 0.0]
    if not fits:
        return ExponentialDecayResult(1.0, 0.0, 0.0, 0.0, window.offset)
    residual_exp, amplitude, rate = min(fits)
    residual_exp = max(residual_exp, window.rounding)
    residual_line = max(_squares(_residuals(y, _orthonormal(u, degree=1))), window.rounding)

    freedom = float(len(y) - 3)
    if autocorrelation:
        residuals = y - amplitude * _centred_decay(rate, u)
        freedom = max(_effective_sample_size(residuals, residual_exp) - 3.0, 1.0)
    noise = residual_exp / freedom
    against_line = (residual_line - residual_exp) / noise
    against_constant = (total - residual_exp) / 2 / noise
    if against_line > 0.0:
        # Half of the F(1, v) tail is one tail of Student's t on v degrees of freedom.
        p_value = max(
            float(stdtr(freedom, -math.sqrt(against_line))), float(fdtrc(2, freedom, max(against_constant, 0.0)))
        )
    else:
        p_value = 1.0
    # `_fit_at` leaves the curve at mean zero; its asymptote follows from that.
    asymptote = window.offset - window.scale * amplitude * float(np.mean(np.exp(-rate * u)))
    return ExponentialDecayResult(p_value, against_line, window.scale * amplitude, rate / window.span, asymptote)


def slope_test(
    losses: ArrayLike,
    times: ArrayLike | None = None,
    *,
    autocorrelation: bool = False,
) -> SlopeResult:
    """
    Tests whether a window of losses has a negative slope: one-sided t-test on the least-squares line.

    Deciding on the learning rate by the slope of the loss is also what `SLOPE` in microsoft/statopt (2020) does; the
    paper's TUNE phase (section 2) is the same idea.

    The plain test takes the residuals for independent, on `n - 2` degrees of freedom. Neighbouring training losses
    are not: on a flat loss whose noise has a lag-one correlation of 0.9 it answers "decreasing" at the 5 % level 35 %
    of the time. With `autocorrelation=True` the window counts as fewer independent losses, in the standard error and
    in the degrees of freedom. The noise is then what remains after a parabola, because a loss that falls along a curve
    is not noise about a line. It gives two numbers, of which the smaller counts, never more than `n`:

    - `n * (1 - r) / (1 + r)` for its lag-one correlation `r` (Bayley & Hammersley, 1946; Santer et al., 2000,
      doi:10.1029/1999JD901105): exact for noise of which each step passes on a share;
    - `n` over the factor by which its means over `sqrt(n)` consecutive losses vary more than those of independent ones
      (overlapping batch means, Meketon & Schmeiser, 1984): the noise of real trainings has a weak correlation that
      lasts, which neighbours hardly show.

    Args:
        losses (array of `float`, shape `(n,)`): Loss of each optimizer step, at least 3 (4 with `autocorrelation`).
        times (array of `float`, shape `(n,)`, *optional*): Strictly increasing abscissa, in any unit: the step or the
            accumulated learning rate. Defaults to 0, 1, 2, ...
        autocorrelation (`bool`, *optional*, defaults to `False`): Whether to allow for correlated noise. The
            correlation is between neighbours in the array, whatever the distance of their times.

    Returns:
        [`SlopeResult`]: `p_value` is small for a falling loss, and 1.0 if a loss is not finite or all are equal.

    Raises:
        `ValueError`: If there are too few losses, or `times` is not finite, strictly increasing and of the same
            length.

    Example:

        >>> import numpy as np
        >>> from hf_exptest import slope_test
        >>> noise = np.random.default_rng(1).normal(scale=0.2, size=50)
        >>> result = slope_test(2 - 0.01 * np.arange(50) + noise)
        >>> print(f"slope {result.slope:.4f}, p = {result.p_value:.1e}")
        slope -0.0110, p = 5.1e-08
        >>> slope_test(2 + noise).p_value < 0.05
        False
    """
    values, abscissa = _checked(losses, times, minimum=4 if autocorrelation else 3)
    n = len(values)
    if not np.isfinite(values).all():
        return SlopeResult(1.0, 0.0, math.nan, float(n))
    window = _normalized(values, abscissa)
    y, u = window.values, window.positions
    if _squares(y) <= window.rounding:
        return SlopeResult(1.0, 0.0, 0.0, float(n))

    degree = 2 if autocorrelation else 1
    basis = _orthonormal(u, degree)
    residuals = _residuals(y, basis)
    sum_of_squares = max(_squares(residuals), window.rounding)
    effective = float(n)
    if autocorrelation:
        effective = _effective_sample_size(residuals, sum_of_squares)
    freedom = max(effective - degree - 1, 1.0)
    # In the orthonormal basis the coefficient of the line has the standard deviation of the noise.
    coefficient = float(basis[0] @ y)
    statistic = coefficient / math.sqrt(sum_of_squares / freedom)
    unit = window.scale / (window.span * float(basis[0] @ u))
    return SlopeResult(
        float(stdtr(freedom, statistic)),
        statistic,
        coefficient * unit,
        effective,
        math.sqrt(sum_of_squares / freedom) * abs(unit),
        freedom,
    )


def is_spike(losses: ArrayLike) -> NDArray[np.bool_]:
    """
    Which losses stand alone above their two neighbours by more than twice the span of all but the highest losses.

    One such loss, of a bad batch for example, adds so much to the noise about a curve that no test finds the curve.
    The highest losses are one in twenty, at least one. The first and the last loss are never spikes: what lies before
    or after them is not known.

    Args:
        losses (array of `float`, shape `(n,)`): finite.

    Returns:
        array of `bool`, shape `(n,)`

    Example:
        >>> is_spike([1.0, 0.9, 50.0, 0.8, 0.8]).tolist()
        [False, False, True, False, False]
    """
    # A quarter of each, so that no difference overflows.
    values = np.asarray(losses, dtype=np.float64) / 4
    mask = np.zeros(len(values), dtype=np.bool_)
    if len(values) > 2:
        num_highest = max(1, len(values) // 20)
        rest = np.partition(values, -num_highest - 1)[:-num_highest]
        mask[1:-1] = values[1:-1] - np.maximum(values[:-2], values[2:]) > 2 * (rest.max() - rest.min())
    return mask


def _checked(losses: ArrayLike, times: ArrayLike | None, minimum: int) -> tuple[Vector, Vector]:
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"losses must have one dimension, one loss for each step, but have shape {values.shape}")
    n = len(values)
    if n < minimum:
        raise ValueError(f"this test needs at least {minimum} losses, but got n = {n}")
    if times is None:
        return values, np.arange(n, dtype=np.float64)
    abscissa = np.asarray(times, dtype=np.float64)
    if abscissa.shape != values.shape:
        raise ValueError(f"times must have the shape of losses, {values.shape}, but have shape {abscissa.shape}")
    if not np.isfinite(abscissa).all():
        raise ValueError(f"times must be finite, but contain {abscissa[~np.isfinite(abscissa)][0]}")
    stalls = np.flatnonzero(abscissa[1:] <= abscissa[:-1])
    if len(stalls):
        before, after = abscissa[stalls[0] : stalls[0] + 2]
        raise ValueError(f"times must be strictly increasing, but {before} is followed by {after}")
    return values, abscissa


def _normalized(losses: Vector, times: Vector) -> _Window:
    # Dividing first keeps sums and squares of very large losses from overflowing.
    magnitude = float(np.abs(losses).max()) or 1.0
    relative = losses / magnitude
    mean = float(relative.mean())
    values = relative - mean
    spread = float(np.abs(values).max()) or 1.0
    values = values / spread
    # Each loss carries a relative rounding error, which centring magnifies; eight allows for the sums that follow.
    rounding = len(losses) * (8 * np.finfo(np.float64).eps / spread) ** 2
    span = float(times[-1] - times[0])
    return _Window(values, (times - times[0]) / span, spread * magnitude, mean * magnitude, span, rounding)


def _squares(x: Vector) -> float:
    return float(x @ x)


def _orthonormal(u: Vector, degree: int) -> list[Vector]:
    """Polynomials in `u` of degree 1 to `degree`, orthonormal and orthogonal to the constant."""
    basis: list[Vector] = []
    for power in range(1, degree + 1):
        column = _residuals(u**power, basis)
        column = column - column.mean()
        # On extremely uneven points the square may be the line to rounding; zero then leaves it out.
        basis.append(column / (math.sqrt(_squares(column)) or 1.0))
    return basis


def _residuals(y: Vector, basis: list[Vector]) -> Vector:
    for column in basis:
        y = y - (column @ y) * column
    return y


def _slightly_bent_rate(y: Vector, u: Vector) -> float | None:
    """
    Rate of the exponential that comes closest to the least-squares parabola, if that is below the grid of rates.

    A slow exponential is the line `-a*b*u` plus the bend `a*b**2*u**2 / 2`, so the two coefficients give the rate.
    """
    line, bend = _orthonormal(u, degree=2)
    bend_of_square = float(bend @ u**2)
    if bend_of_square <= 0.0:
        return None
    curvature = float(bend @ y) / bend_of_square
    slope = (float(line @ y) - curvature * float(line @ u**2)) / float(line @ u)
    if curvature <= 0.0 or slope >= 0.0:
        return None
    rate = -2.0 * curvature / slope
    return rate if _STRAIGHT_RATE < rate < _LOWEST_RATE else None


def _best_rate(y: Vector, u: Vector) -> float:
    """Rate on `[_LOWEST_RATE, n - 1]` whose exponential explains most of `y`: a grid, then Brent's method."""
    lowest, highest = math.log(_LOWEST_RATE), math.log(len(y) - 1)
    grid = np.linspace(lowest, highest, 1 + math.ceil((highest - lowest) / math.log(_RATE_RATIO)))
    best = int(np.argmax([_explained(log_rate, y, u) for log_rate in grid]))
    bracket = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(
        lambda log_rate: -_explained(log_rate, y, u), bounds=bracket, method="bounded", options={"xatol": 1e-5}
    )
    return math.exp(found.x)


def _explained(log_rate: float, y: Vector, u: Vector) -> float:
    """Sum of squares of the centred `y` that the decay `exp(-rate * u)` explains; zero if `y` rises instead."""
    rate = math.exp(log_rate)
    # Fast decays are over early, which keeps the whole search linear in n although its range grows with n.
    k = len(u) if rate <= _NEGLIGIBLE_EXPONENT else int(np.searchsorted(u, _NEGLIGIBLE_EXPONENT / rate, side="right"))
    decay = np.exp(-rate * u[:k])
    covariance = float(decay @ y[:k])
    if covariance <= 0.0:
        return 0.0
    return covariance**2 / (_squares(decay) - float(decay.sum()) ** 2 / len(u))


def _fit_at(rate: float, y: Vector, u: Vector) -> tuple[float, float, float]:
    """Sum of squared residuals and amplitude of the best exponential with this rate, then the rate itself."""
    decay = _centred_decay(rate, u)
    amplitude = float(decay @ y) / _squares(decay)
    return _squares(y - amplitude * decay), amplitude, rate


def _centred_decay(rate: float, u: Vector) -> Vector:
    """The decay `exp(-rate * u)` less its mean."""
    decay: Vector = np.expm1(-rate * u)  # a shift by one is absorbed by the mean, and slow rates keep their digits
    decay -= decay.mean()
    return decay


def _effective_sample_size(residuals: Vector, sum_of_squares: float) -> float:
    """
    Number of independent losses that a window is worth, from its residuals about a curve of three parameters.

    Fitting a trend takes correlation out of the residuals. Their expected lag-one correlation is about
    `r - (3 + 6 * r) / n` after a parabola (Kendall's bias, first order). Near r = 1 the true bias is larger; with the
    next term of the series, `(4 + 7 * r) / n`, the level of the test is right from r = 0 to 0.99. The means over
    batches of `b` losses vary less by a share of `3 * b / n`.
    """
    n = len(residuals)
    lag_one = float(residuals[1:] @ residuals[:-1]) / sum_of_squares
    correlation = (n * lag_one + 4.0) / max(n - 7.0, 1.0)
    correlation = min(max(correlation, 0.0), 1.0 - 1.0 / n)
    batch = round(math.sqrt(n))
    cumulative = np.concatenate([[0.0], np.cumsum(residuals)])
    sums = cumulative[batch:] - cumulative[:-batch]
    excess = _squares(sums) / len(sums) / (batch * sum_of_squares / n) + 3.0 * batch / n
    return max(min(n * (1.0 - correlation) / (1.0 + correlation), n / max(excess, 1.0)), 1.0)
