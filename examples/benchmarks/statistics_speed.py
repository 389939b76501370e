# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Time of the two tests against the length of the window: `python -m examples.benchmarks.statistics_speed`."""

import argparse
import statistics
import timeit
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from hf_exptest.statistics import exponential_decay_test, slope_test

LENGTHS = (100, 1_000, 10_000, 100_000)
REPEATS = 30


def median_milliseconds(function: Callable[[], object]) -> float:
    function()  # the first call also pays for imports and caches
    return 1e3 * statistics.median(timeit.repeat(function, number=1, repeat=REPEATS))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    tests: dict[str, Callable[[np.ndarray], object]] = {
        "exponential_decay_test": exponential_decay_test,
        "slope_test": slope_test,
        "slope_test, autocorrelation": partial(slope_test, autocorrelation=True),
    }
    rng = np.random.default_rng(0)
    windows = [2 * np.exp(-3 * np.linspace(0, 1, n)) + rng.standard_normal(n) for n in LENGTHS]
    print(f"{'median ms, n =':34}" + "".join(f"{n:>20,}" for n in LENGTHS))
    for name, test in tests.items():
        times = [median_milliseconds(partial(test, window)) for window in windows]
        ratios = ["", *(f" ({after / before:.1f}x)" for before, after in pairwise(times))]
        cells = (f"{time:.3f}{ratio}" for time, ratio in zip(times, ratios, strict=True))
        print(f"{name:34}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
