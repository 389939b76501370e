# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Do the two tests keep their promises on the noise of real trainings? Prints a Markdown table.

    python -m examples.benchmarks.calibration --data DATA --out calibration

A training of each task records its losses (one text file a task in `--out`, made once). What remains of them about a
local line is noise, whose blocks of consecutive steps are drawn again onto curves that are known: an exponential, a
falling line, a flat line. A test should find the first, and take the last for falling in a share `alpha` of the cases.

Beside ours stands the rule that the authors of the paper published: SciPy's `curve_fit` from its default start and a
two-sided F-test for the exponential, a plain t-test for the slope.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_exptest import ExpTestCallback, exponential_decay_test, slope_test

from ..paper import published
from .run import BUDGETS
from .tables import markdown
from .tasks import METRICS, make_trainer

Vector = NDArray[np.float64]

ALPHAS = (0.01, 0.05, 0.10)
WINDOW = 100
# Half the width of the local line, as a share of the run: a narrow one takes slow noise for a part of the curve.
REACH = 0.1
# Long enough for the correlation between neighbours, short enough to draw from a few hundred steps.
BLOCK = 20
# What tells a curve from the simpler one, in standard errors: from a line, or from a constant.
SIGNAL = 6


def record(task: str, data: Path, folder: Path) -> Vector:
    """Losses of one training with the default preset; read from the file if there is one."""
    path = folder / f"{task}.txt"
    if not path.exists():
        with tempfile.TemporaryDirectory() as output_dir:
            callback, logs = ExpTestCallback(), {"logging_strategy": "steps", "logging_steps": 1}
            make_trainer(task, data, 0, BUDGETS[task], output_dir, [callback], **logs).train()
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, callback.report().losses, fmt="%.6g")
    return np.loadtxt(path)


def noise(losses: Vector) -> Vector:
    """What remains about a local line, in units of its own local size, without the steps at both ends."""
    reach = round(REACH * len(losses))
    steps = np.arange(-reach, reach + 1)
    windows = np.lib.stride_tricks.sliding_window_view(losses, len(steps))
    slopes = windows @ steps / (steps @ steps)
    residuals = windows - windows.mean(1, keepdims=True) - slopes[:, None] * steps
    return residuals[:, reach] / np.maximum(residuals.std(1), 1e-12)


def draw(residuals: Vector, generator: np.random.Generator) -> Vector:
    """A window of noise, of blocks that begin anywhere."""
    starts = generator.integers(len(residuals) - BLOCK, size=-(-WINDOW // BLOCK))
    return np.concatenate([residuals[start : start + BLOCK] for start in starts])[:WINDOW]


def ours_exponential(losses: Vector) -> float:
    """p-value of `exponential_decay_test`."""
    return exponential_decay_test(losses).p_value


def ours_slope(losses: Vector) -> float:
    """p-value of `slope_test` as the default preset uses it."""
    return slope_test(losses, autocorrelation=True).p_value


def scaled(curve: Vector, degree: int) -> Vector:
    """The curve at the size at which what no polynomial of `degree` explains of it is `SIGNAL` standard errors."""
    rest = curve - np.polyval(np.polyfit(T, curve, degree), T)
    return SIGNAL * curve / np.sqrt(rest @ rest)


T = np.arange(WINDOW) / WINDOW
EXPONENTIAL = scaled(np.exp(-5 * T), degree=1)
FALLING = scaled(-T, degree=0)
CASES: list[tuple[str, Vector, dict[str, Callable[[Vector], float]]]] = [
    ("finds an exponential", EXPONENTIAL, {"ours": ours_exponential, "published": published.exponential_p_value}),
    ("takes a falling line for one", FALLING, {"ours": ours_exponential, "published": published.exponential_p_value}),
    ("takes a flat line for one", 0 * T, {"ours": ours_exponential, "published": published.exponential_p_value}),
    ("finds a falling line", FALLING, {"ours": ours_slope, "published": published.slope_p_value}),
    ("takes a flat line for falling", 0 * T, {"ours": ours_slope, "published": published.slope_p_value}),
]


def table(residuals: dict[str, Vector], num_draws: int) -> str:
    """Markdown: in how many of the draws each test has a p-value below alpha."""
    header = ["noise of", "lag-one correlation", "what the test does", "of", *(f"alpha {alpha:g}" for alpha in ALPHAS)]
    lines = []
    for task, pool in residuals.items():
        correlation = np.corrcoef(pool[1:], pool[:-1])[0, 1]
        for name, curve, tests in CASES:
            for whose, test in tests.items():
                # The same draws for both.
                generator = np.random.default_rng(0)
                p_values = np.array([test(curve + draw(pool, generator)) for _ in range(num_draws)])
                shares = [f"{np.mean(p_values < alpha):.1%}" for alpha in ALPHAS]
                lines.append([task, f"{correlation:.2f}", name, whose, *shares])
    return markdown(header, lines)


def main() -> None:
    """Record what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see tasks.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the recorded losses")
    parser.add_argument("--tasks", nargs="+", default=list(METRICS), choices=list(METRICS), help="(default: all)")
    parser.add_argument("--draws", type=int, default=1000, help="windows a case (default: %(default)s)")
    options = parser.parse_args()
    residuals = {task: noise(record(task, options.data, options.out)) for task in options.tasks}
    print(table(residuals, options.draws))


if __name__ == "__main__":
    main()
