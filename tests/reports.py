# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Hand-made searches and reports that several test files share."""

import dataclasses
import math

from hf_exptest import ExpTestConfig, LearningRateSearch, Report
from hf_exptest.trial import Trial

STEPS = list(range(1, 101))
LOSSES = [1 / step for step in STEPS]
RATES = [0.3] * 60 + [0.1 * (100 - step) / 40 for step in range(60, 100)]
# Warm-up to step 10, cool-down from step 60.
CONFIG = ExpTestConfig(warmup=0.1, cooldown=0.4)
GIVEN = dataclasses.replace(CONFIG, learning_rate=0.7)


def entry(step, decision, learning_rate=0.3, phase="tune", test="slope", p_value=0.01, window=20):
    return {
        "step": step,
        "phase": phase,
        "test": test,
        "p_value": p_value,
        "learning_rate": learning_rate,
        "window": window,
        "left_out": 0,
        "decision": decision,
    }


def start(test, learning_rate=0.3, phase="tune"):
    return entry(0, "start", learning_rate, phase, test, p_value=None, window=0)


def look(step, decision, learning_rate=0.3, p_value=0.002):
    return entry(step, decision, learning_rate, test="look", p_value=p_value, window=0)


HISTORY = [
    start("below_bound", learning_rate=0.03),
    look(10, "raise"),
    entry(20, "continue"),
    entry(40, "continue"),
    entry(60, "decay", learning_rate=0.1, p_value=0.4),
]
# As after a look that finds nothing.
FALLBACK_HISTORY = [
    start("below_bound", learning_rate=0.03),
    {**start("training_arguments", learning_rate=5e-5), "step": 10},
]

SEARCH = LearningRateSearch(
    step=10,
    previous_rate=0.03,
    learning_rate=0.3,
    p_value=0.002,
    untouched_losses=[0.625, 0.875] * 6,
    trials=[
        Trial(0.03, 24, [0.75] * 24, [0.625, 0.8125] * 6),
        Trial(0.1, 24, [0.75] * 24, [0.5, 0.625] * 6),
        Trial(0.3, 24, [0.75] * 24, [0.375, 0.625] * 6),
        Trial(0.9, 24, [0.75] * 4, [math.inf] * 12),
    ],
    num_training_steps=100,
    num_steps=96,
    seconds=12.4,
    upper_bound=0.9,
)
INCONCLUSIVE_SEARCH = dataclasses.replace(
    SEARCH,
    trials=[
        dataclasses.replace(trial, end_losses=[loss + 0.5 for loss in trial.end_losses]) for trial in SEARCH.trials
    ],
)
# A second look, which a failed test asked for, and a history with both.
LATER_SEARCH = LearningRateSearch(
    step=60,
    previous_rate=0.3,
    learning_rate=0.1,
    p_value=0.01,
    untouched_losses=[0.5, 0.625] * 6,
    trials=[
        Trial(0.1, 14, [0.5] * 14, [0.375, 0.5] * 6),
        Trial(0.3, 14, [0.5] * 14, [0.4375, 0.5625] * 6),
        Trial(0.9, 14, [0.5] * 14, [0.5, 0.75] * 6),
    ],
    num_training_steps=100,
    num_steps=42,
    seconds=3.6,
)
TWO_LOOKS_HISTORY = [
    start("below_bound", learning_rate=0.03),
    look(10, "raise"),
    entry(20, "continue"),
    entry(40, "undecided", p_value=0.2),
    entry(60, "look", p_value=0.4),
    look(60, "lower", learning_rate=0.1, p_value=0.01),
]


def make_report(history=HISTORY, searches=(), config=CONFIG, losses=LOSSES, rates=RATES):
    return Report(config, 100, history, list(searches), STEPS, losses, rates)


def look_alone(search=SEARCH):
    """As a finder leaves it."""
    return Report(CONFIG, 100, [], [search], [], [], [], {"model": "Toy", "total_batch_size": 8})
