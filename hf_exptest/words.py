# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What a report says in words: of its rate, its looks and its decisions. Pure functions over values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .config import ExpTestConfig
from .search import LearningRateSearch

_VERDICTS = {
    ("exponential_decay", "detected"): "loss decays exponentially",
    ("exponential_decay", "decay"): "loss does not decay exponentially",
    ("slope", "continue"): "loss still falls",
    ("slope", "undecided"): "too few or too noisy losses to tell whether the loss falls",
    ("slope", "look"): "loss no longer falls, time for a look",
    ("slope", "decay"): "loss no longer falls",
    ("divergence", "decay"): "loss is not finite, so the weights may be lost",
}
_LOOKS = {
    "raise": "a look finds a higher rate better",
    "lower": "a look finds a lower rate better",
    "keep": "a look finds no other rate better",
}
# Where the starting rate is from, by the history's word for it, and by ours for a rate that is not in the history.
SOURCES = {
    "search": "the learning rate that a look found",
    "below_bound": "a thirtieth of the upper bound along the first update",
    "training_arguments": "TrainingArguments.learning_rate",
    "optimizer": "the optimizer's own learning rate",
    "first_update_bound": "the upper bound along the first update",
    "checkpoint": "the learning rate of a checkpoint",
    "given": "the given learning rate",
    "reused": "the learning rate of an earlier run",
}
# The same in a few words, where the history's own are not.
_SHORT_SOURCES = {
    "search": "a look",
    "below_bound": "a thirtieth of the upper bound",
    "training_arguments": "TrainingArguments.learning_rate",
    "first_update_bound": "the upper bound",
}


class _Report(Protocol):
    """What is told of a `Report`."""

    @property
    def config(self) -> ExpTestConfig: ...
    @property
    def num_training_steps(self) -> int: ...
    @property
    def num_steps_made(self) -> int | None: ...
    @property
    def starting_rate(self) -> float: ...
    @property
    def rate_source(self) -> str: ...
    @property
    def search(self) -> LearningRateSearch | None: ...
    @property
    def searches(self) -> Sequence[LearningRateSearch]: ...
    @property
    def history(self) -> Sequence[dict[str, Any]]: ...
    @property
    def is_look_alone(self) -> bool: ...
    @property
    def is_unfinished(self) -> bool: ...


def describe(entry: dict[str, Any], previous: dict[str, Any] | None = None) -> str:
    """One line for one entry of `history`, given the entry before it."""
    rate = f"{entry['learning_rate']:.2g}"
    if entry["decision"] == "start":
        return f"{_when(entry)} with learning rate {rate} ({short_source(entry['test'])})"
    change = f"stays {rate}"
    if entry["decision"] in ("decay", "raise", "lower"):
        change = f"becomes {rate}" if previous is None else f"{previous['learning_rate']:.2g} -> {rate}"
    if entry["test"] == "look":
        return (
            f"step {entry['step']}: {_LOOKS[entry['decision']]} (p = {entry['p_value']:.2g}): learning rate {change}"
        )
    left_out = f", {entry['left_out']} left out" if entry["left_out"] else ""
    test = f" (p = {entry['p_value']:.2g} over {entry['window']} steps{left_out})"
    if entry["test"] == "divergence":
        test = ""
    verdict = _VERDICTS[entry["test"], entry["decision"]]
    return f"step {entry['step']}: {verdict}{test}: learning rate {change}"


def short_source(source: str) -> str:
    """Where a starting rate is from, in a few words, from the history's word for it."""
    return _SHORT_SOURCES.get(source, source)


def _when(entry: dict[str, Any]) -> str:
    return "starts" if entry["step"] == 0 else f"step {entry['step']}: goes on"


def descriptions(history: Sequence[dict[str, Any]]) -> list[str]:
    """One line an entry of `history`."""
    return [describe(*pair) for pair in zip(history, [None, *history], strict=False)]


def start_sentence(report: _Report) -> str:
    """Which rate was used, and whether a look found it."""
    search, source = report.search, report.rate_source
    if report.is_look_alone and math.isnan(report.starting_rate):
        return f"ExpTest tried {len(report.searches[0].trials)} learning rates and found none that is better."
    if report.is_look_alone:
        return f"ExpTest found the learning rate {report.starting_rate:.3g}, and trained nothing."
    if source == "search":
        step = "" if search is None else f" at step {search.step}"
        return f"ExpTest found the learning rate {report.starting_rate:.3g} while training{step}."
    started = f"Training started from {source_in_words(report)}, {report.starting_rate:.3g}"
    if search is None:
        return f"{started}: there was no look at other rates."
    result = (
        f"tried {len(search.trials)} learning rates and found none that lowers the loss on held-out batches"
        " significantly"
    )
    if search.is_conclusive:
        # Before the checkpoint that training went on from.
        result = f"found the learning rate {search.learning_rate:.3g} while training at step {search.step}"
    return f"ExpTest {result}. Training went on with {source_in_words(report)}, {report.starting_rate:.3g}."


def steps_made(report: _Report) -> str:
    """The steps of a run; also those that were planned, if they are others."""
    planned = str(report.num_training_steps)
    return f"{report.num_steps_made} of {planned}" if report.is_unfinished else planned


def source_in_words(report: _Report) -> str:
    """Where the starting rate is from; a run that was resumed need not name the file again."""
    words = SOURCES[report.rate_source]
    is_reused = report.rate_source == "reused" and report.config.reuse is not None
    return f"{words} ({report.config.reuse})" if is_reused else words


def summary_lines(report: _Report) -> list[str]:
    """The rate and its source, how far a training came, each look, and the decisions."""
    progress = [f"Training has made {steps_made(report)} steps."] if report.is_unfinished else []
    looks = [line for search in report.searches for line in _search_lines(search)]
    decisions = [] if report.is_look_alone else _decision_lines(report.history)
    return [start_sentence(report), *progress, *looks, *decisions]


def _search_lines(search: LearningRateSearch) -> list[str]:
    return [
        trials_sentence(search),
        "    learning rate   steps   loss on held-out batches",
        *(f"    {rate:<13}   {steps:>5}   {end}" for rate, steps, end in trial_rows(search)),
        *result_sentences(search),
    ]


def trials_sentence(search: LearningRateSearch) -> str:
    """When a look was made, as the heading of its trials."""
    bound = "" if search.upper_bound is None else f", upper bound {search.upper_bound:.3g}"
    return (
        f"At step {search.step} of {search.num_training_steps} it tried rates on the weights of the run"
        f" (rate until then {search.previous_rate:.3g}{bound}):"
    )


def trial_rows(search: LearningRateSearch) -> list[tuple[str, str, str]]:
    """Rate, steps made and outcome of each trial, and of none."""
    trials = sorted(search.trials, key=lambda trial: -trial.learning_rate)
    rows = [
        (
            f"{trial.learning_rate:.2e}",
            str(len(trial.curve)),
            f"{trial.end_loss:.4f}" if trial.outcome == "ended" else trial.outcome,
        )
        for trial in trials
    ]
    return [*rows, ("untouched", "0", f"{np.mean(search.untouched_losses):.4f}")]


def result_sentences(search: LearningRateSearch) -> list[str]:
    """What the trials led to, and what they cost."""
    # Nobody has chosen the rate below the bound, so the first look does not compare with it.
    rival = f"the rate until then, {search.previous_rate:.3g}" if search.upper_bound is None else "the untouched model"
    length, left = search.trials[0].num_steps, search.num_training_steps - search.step
    if search.p_value < search.alpha:
        result = (
            f"The best of them ends lower than {rival} (p = {search.p_value:.2g}); carried over from {length} steps to"
            f" the {left} that were left, it gives {search.learning_rate:.3g}."
        )
    else:
        result = f"None ends lower than {rival} by more than chance (p = {search.p_value:.2g})."
    steps = f"{search.num_steps} steps in {search.seconds:.0f} s"
    if search.upper_bound is not None:
        num_in_trials = sum(len(trial.curve) for trial in search.trials)
        steps += f", {search.num_steps - num_in_trials} of them for the upper bound"
    cost = f"The look took {steps}; then the model was put back as it was."
    return [result, cost] if search.is_conclusive else [cost]


def _decision_lines(history: Sequence[dict[str, Any]]) -> list[str]:
    if not history:
        return ["No test was made while training."]
    return ["Decisions:", *(f"    {line}" for line in descriptions(history))]
