# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The two tests as the authors of the paper published them, to stand beside ours."""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import curve_fit


def exponential_p_value(losses: ArrayLike) -> float:
    """`curve_fit` from its default start, and a two-sided F-test against the line; 1 where the fit fails."""

    def decay(t, a, b, c):
        return a * np.where(-b * t < -700, 0, np.exp(-b * t)) + c

    y = np.asarray(losses)
    t = np.arange(len(y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parameters, _ = curve_fit(decay, t, y)
        except RuntimeError:
            return 1.0
    line = stats.linregress(t, y)
    sse_exp = np.sum((y - decay(t, *parameters)) ** 2)
    sse_line = np.sum((y - line.slope * t - line.intercept) ** 2)
    return float(stats.f.sf((sse_line - sse_exp) / (sse_exp / (len(t) - 3)), 1, len(t) - 3))


def slope_p_value(losses: ArrayLike) -> float:
    """One-sided t-test on the least-squares line."""
    y = np.asarray(losses)
    line = stats.linregress(np.arange(len(y)), y)
    return float(stats.t.cdf(line.slope / line.stderr, len(y) - 2))
