# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Do the two tests keep their promises on the noise of real trainings? Prints a Markdown table.

    python -m examples.benchmarks.calibration --data DATA --out calibration

Eight trainings of each task, which differ in the order of the data alone, record their losses (one text file a task
in `--out`, made once). What tells one from the mean of all is noise, of which stretches of consecutive steps are drawn
onto curves that are known: an exponential, a falling line, a flat line. A test should find the first, and take the
second for an exponential, or the last for falling, in a share `alpha` of the cases at most.

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
from transformers.utils import logging

from hf_exptest import ExpTestCallback, TestResult, exponential_decay_test, slope_test

from ..paper import published
from .methods import grid_rates
from .run import BF16_TASKS, BUDGETS
from .tables import markdown
from .tasks import CPU_TASKS, make_trainer

Vector = NDArray[np.float64]

ALPHAS = (0.01, 0.05, 0.10)
WINDOW = 100
NUM_TRAININGS = 8
# The batches of California housing are all the same, which leaves no noise.
TASKS = [task for task in CPU_TASKS if task != "california"]
# What tells a curve from the simpler one, in standard errors: from a line, or from a constant.
SIGNAL = 6


def record(task: str, data: Path, folder: Path) -> Vector:
    """Losses of the trainings, of shape `(trainings, steps)`; read from the file if there is one."""
    path = folder / f"{task}.txt"
    if not path.exists():
        trainings = []
        for order in range(NUM_TRAININGS):
            # A middling rate that warms up and falls, without a decision that only some of them take.
            callback = ExpTestCallback(learning_rate=grid_rates(task)[3], cooldown=0.9)
            arguments = {"data_seed": order, "bf16": task in BF16_TASKS}
            arguments |= {"logging_strategy": "steps", "logging_steps": 1}
            with tempfile.TemporaryDirectory() as output_dir:
                make_trainer(task, data, 0, BUDGETS[task], output_dir, [callback], **arguments).train()
            trainings.append(callback.report().losses)
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, trainings, fmt="%.6g")
    return np.loadtxt(path)


def deviations(losses: Vector) -> Vector:
    """What tells each training from the mean of all; losses are of shape `(trainings, steps)`."""
    # A training is a part of the mean, which takes some of its noise.
    return (losses - losses.mean(0)) / np.sqrt(1 - 1 / len(losses))


def noise(losses: Vector) -> Vector:
    """What tells each training from the mean of all, in units of its own size in the window of steps around."""
    residuals = deviations(losses)
    around = np.ones(2 * WINDOW + 1)
    num_around = np.convolve(np.ones(losses.shape[1]), around, "same")
    squares = np.array([np.convolve(row**2, around, "same") for row in residuals])
    return residuals / np.sqrt(np.maximum(squares / num_around, 1e-24))


def draw(residuals: Vector, generator: np.random.Generator) -> Vector:
    """The noise of a window, from any training, beginning anywhere."""
    training = generator.integers(len(residuals))
    start = generator.integers(residuals.shape[1] - WINDOW)
    return residuals[training, start : start + WINDOW]


def ours(test: Callable[..., TestResult]) -> Callable[[Vector], float]:
    """p-value of one of our tests as `ExpTestConfig` has it unless told otherwise."""
    return lambda losses: test(losses, autocorrelation=True).p_value


def scaled(curve: Vector, degree: int) -> Vector:
    """The curve at the size at which what no polynomial of `degree` explains of it is `SIGNAL` standard errors."""
    rest = curve - np.polyval(np.polyfit(T, curve, degree), T)
    return SIGNAL * curve / np.sqrt(rest @ rest)


T = np.arange(WINDOW) / WINDOW
EXPONENTIAL = scaled(np.exp(-5 * T), degree=1)
FALLING = scaled(-T, degree=0)
DECAY_TESTS = {"ours": ours(exponential_decay_test), "published": published.exponential_p_value}
SLOPE_TESTS = {"ours": ours(slope_test), "published": published.slope_p_value}
CASES: list[tuple[str, Vector, dict[str, Callable[[Vector], float]]]] = [
    ("finds an exponential", EXPONENTIAL, DECAY_TESTS),
    ("takes a falling line for one", FALLING, DECAY_TESTS),
    ("takes a flat line for one", 0 * T, DECAY_TESTS),
    ("finds a falling line", FALLING, SLOPE_TESTS),
    ("takes a flat line for falling", 0 * T, SLOPE_TESTS),
]


def table(residuals: dict[str, Vector], num_draws: int) -> str:
    """Markdown: in how many of the draws each test has a p-value below alpha."""
    header = ["noise of", "lag-one correlation", "what the test does", "of", *(f"alpha {alpha:g}" for alpha in ALPHAS)]
    lines = []
    for task, pool in residuals.items():
        # The sum makes a zero of a negative one.
        correlation = round(np.corrcoef(pool[:, 1:].ravel(), pool[:, :-1].ravel())[0, 1], 2) + 0.0
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
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="(default: all)")
    parser.add_argument("--draws", type=int, default=10_000, help="windows a case (default: %(default)s)")
    options = parser.parse_args()
    logging.set_verbosity_error()
    residuals = {task: noise(record(task, options.data, options.out)) for task in options.tasks}
    print(table(residuals, options.draws))


if __name__ == "__main__":
    main()
