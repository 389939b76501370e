# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Which learning rate serves best from here on: pure functions over trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import scipy.stats

from .bounds import TIE, levelled
from .config import ExpTestConfig
from .trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Training starts this far below the bound along the first update, which is 2 to 30 times the best rate on the ten
# tasks of examples/benchmarks/. What a rate too high has done to the weights stays; one too low costs some steps.
START_SHARE = 1 / 30
# Rates tried are a factor of three apart: the parabola through three of them has its vertex between.
SPACING = 3.0
# Where the trials begin, in such factors above the rate of a start: those of the best trials of all tasks are 0 to 3.
# From 2 and 3, every third look ended at the lowest rate that it had tried.
FIRST_POWERS = 1, 2
MIN_STEPS, MAX_STEPS = 14, 256
# Three trials usually do. With a fourth in the budget they are too short for a language model from scratch: one seed
# of `characters` found 1.7e-3 where 1e-2 is best.
_TRIALS_IN_BUDGET = 3
# A short run may spend so much, since fewer steps say nothing.
_SHORT_RUN_SHARE, _SHORT_RUN_STEPS = 0.4, 120
# The power of the length by which the best rate of a trial goes over to the rest of the run: where it begins, how it
# falls with the root of the share of the loss that the trial removes, and what it is in fine-tuning (`None`: the
# same). See "The horizon" in examples/benchmarks/README.md.
HorizonRule = tuple[float, float, float | None]
_HORIZON: HorizonRule = 0.4, 0.8, -0.3
# Where the best trial moves weights that were trained before by less than this share of their size, they were good to
# begin with: it is 1 to 6 % in fine-tuning as a whole, a fifth to all of it with LoRA.
_LITTLE_MOVEMENT = 0.1


class Stage(Protocol):
    """What makes trials, each from the same weights; `hf_exptest.stage` has the one for a Trainer."""

    untouched: list[float]
    num_steps: int

    def trial(self, learning_rate: float, num_steps: int) -> Trial:
        """Try a rate over so many steps."""


class Reading(NamedTuple):
    """
    What the trials of a look say.

    The best rate goes over to a longer run upwards where the trials have learnt little, as with language models from
    scratch, and downwards where they have learnt most, or the weights were good to begin with.

    Attributes:
        vertex (`float`): the best rate for a run as long as they are.
        highest (`float`): above it, a rate may only have had luck; infinite where no luck is needed.
        share (`float`): share of the loss that the best trial removes, between 0 and 1.
        is_fine_tuning (`bool`): whether the weights were good to begin with: trained before, and hardly moved.
    """

    vertex: float
    highest: float
    share: float
    is_fine_tuning: bool


@dataclass(frozen=True)
class LearningRateSearch:
    """
    Result of a look at other learning rates from the present weights.

    Attributes:
        step (`int`): optimizer steps that were made before it.
        previous_rate (`float`): the rate until then.
        learning_rate (`float`): the rate from then on; of no worth unless `is_conclusive`.
        p_value (`float`): of the paired one-sided t-test, over the held-out batches, that the best trial ends lower
            than the trial of the previous rate; in the first look, which nobody's choice precedes, lower than the
            untouched model; a trial that ends lowest, but not significantly lower, counts only if none does.
        untouched_losses (`list[float]`): loss of the model as it came, on each held-out batch.
        trials (`list[Trial]`): every trial, by rate.
        num_training_steps (`int`): length of the run that the rate is for.
        num_steps (`int`): optimizer steps spent.
        seconds (`float`): wall time spent.
        upper_bound (`float` or `None`): the bound along the first update, below which the run began; `None` in a look
            that a test asked for.
        alpha (`float`): significance level of the tests.

    Example:

        >>> from hf_exptest import find_learning_rate
        >>> search = find_learning_rate(trainer)
        >>> search.is_conclusive, search.step, search.num_training_steps
        (True, 15, 150)
        >>> search.plot().figure.savefig("search.png")
    """

    step: int
    previous_rate: float
    learning_rate: float
    p_value: float
    untouched_losses: list[float]
    trials: list[Trial]
    num_training_steps: int
    num_steps: int
    seconds: float = math.nan
    upper_bound: float | None = None
    alpha: float = 0.05

    @property
    def is_conclusive(self) -> bool:
        """Whether any trial lowers the loss on the held-out batches significantly."""
        return any(paired_p_value(trial.end_losses, self.untouched_losses) < self.alpha for trial in self.trials)

    @property
    def reaches_zero(self) -> bool:
        """Whether a trial brings the loss to nothing, so that it says little about higher rates."""
        lowest = min(abs(trial.end_loss) for trial in self.trials)
        return lowest <= TIE * abs(float(np.mean(self.untouched_losses)))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss at the end of each trial against its rate; returns the axes."""
        from .figure import plot_search

        return plot_search(self, ax)


def search_steps(config: ExpTestConfig, num_training_steps: int) -> int:
    """Optimizer steps that all looks of a run may take together, its bound's own included."""
    floor = min(_SHORT_RUN_SHARE * num_training_steps, _SHORT_RUN_STEPS)
    return math.floor(max(config.search_budget * num_training_steps, floor))


def trial_steps(budget: int) -> int:
    """Length of the trials of a look that may take `budget` steps."""
    return max(MIN_STEPS, min(MAX_STEPS, budget // _TRIALS_IN_BUDGET))


def search(
    stage: Stage,
    learning_rate: float,
    config: ExpTestConfig,
    *,
    step: int,
    num_training_steps: int,
    budget: int,
    is_start: bool,
    from_scratch: bool,
) -> LearningRateSearch:
    """
    Try rates around `learning_rate` from the weights after `step` steps, and say which to go on with.

    The rate moves only if the best trial ends significantly lower than the trial of the present rate, on the same
    held-out batches: to the vertex of the parabola in log rate, carried over to the length of the rest of the run, but
    no lower than a third of the present rate if that is of use. A careful start claims nothing for itself; there the
    best trial must lower the loss of the untouched model, and there is no limit.

    Args:
        stage (`Stage`): makes the trials.
        learning_rate (`float`): the present rate.
        config ([`ExpTestConfig`]): gives the significance level.
        step (`int`): optimizer steps made so far.
        num_training_steps (`int`): length of the run.
        budget (`int`): optimizer steps to spend.
        is_start (`bool`): whether `learning_rate` is a careful start, so that higher rates come first.
        from_scratch (`bool`): whether the run began with weights that no training had touched.
    """
    length = trial_steps(budget)
    # A start is too low if anything; a rate whose loss stands still is too high if anything.
    first_powers = FIRST_POWERS if is_start else (0, -1)
    trials = walk(stage, learning_rate, length, budget, first_powers)
    counted = _without_lucky_ones(trials, stage.untouched, config.alpha) if is_start else trials
    best = counted[best_power(counted, stage.untouched)]
    p_value = paired_p_value(best.end_losses, stage.untouched if is_start else trials[0].end_losses)
    rate = learning_rate
    if p_value < config.alpha:
        reading = read_trials(counted, stage.untouched, config.alpha, from_scratch)
        rate = carried_over(reading, max(1.0, (num_training_steps - step) / length), _HORIZON)
        if not is_start and trials[-1].end_loss < np.mean(stage.untouched):
            # In a few steps, a lower rate always brings a noisy loss down, as the cool-down does anyway; so a look
            # goes down one step at a time, as TUNE does.
            rate = max(rate, learning_rate / SPACING)
        # No search knows more than two digits; the rest would only differ with the number of processes.
        rate = float(f"{rate:.2g}")
    return LearningRateSearch(
        step=step,
        previous_rate=learning_rate,
        learning_rate=rate,
        p_value=p_value,
        untouched_losses=stage.untouched,
        trials=[trials[power] for power in sorted(trials)],
        num_training_steps=num_training_steps,
        num_steps=stage.num_steps,
        alpha=config.alpha,
    )


def walk(stage: Stage, rate: float, length: int, budget: int, first_powers: tuple[int, int]) -> dict[int, Trial]:
    """
    Trials by their power of the spacing: the first two, then on to the better side until the best has a neighbour on
    either side, or the budget is spent.
    """
    trials: dict[int, Trial] = {}

    def add(power: int) -> None:
        trials[power] = stage.trial(rate * SPACING**power, length)

    for power in first_powers:
        add(power)
    while len(trials) < 3 or stage.num_steps + length <= budget:
        best = best_power(trials, stage.untouched)
        missing = [power for power in (best + 1, best - 1) if power not in trials]
        if not missing:
            break
        add(missing[0])
    return trials


def _without_lucky_ones(trials: dict[int, Trial], untouched: Sequence[float], alpha: float) -> dict[int, Trial]:
    """
    The trials without those that end lowest, but not significantly lower than the untouched model, since they are of
    use on some batches only; all of them where no trial does.
    """
    counted = dict(trials)
    while counted:
        best = best_power(counted, untouched)
        if paired_p_value(counted[best].end_losses, untouched) < alpha:
            return counted
        del counted[best]
    return trials


def best_power(trials: Mapping[int, Trial], untouched: Sequence[float]) -> int:
    """The trial with the lowest loss at the end; of equals, and of all that do not help, that with the lowest rate."""
    powers = sorted(trials)
    ends = _levelled_ends([trials[power] for power in powers], untouched)
    return powers[ends.index(min(ends))]


def _levelled_ends(trials: Sequence[Trial], untouched: Sequence[float]) -> list[float]:
    """
    Losses at the ends, as they are compared: next to no difference is none, and a trial that diverged counts as one
    that learnt nothing, so that it cannot bend a parabola without limit.
    """
    ceiling = float(np.mean(untouched))
    return levelled([min(trial.end_loss, ceiling) for trial in trials], ceiling)


def paired_p_value(losses: Sequence[float], others: Sequence[float]) -> float:
    """p-value of the paired one-sided t-test that `losses` are lower than `others`, which are of the same batches."""
    if not np.all(np.isfinite(losses)):
        return 1.0
    if not np.all(np.isfinite(others)):
        return 0.0
    difference = np.subtract(losses, others)
    # All the same but for rounding: one held-out batch, or a loss of which only a constant has changed.
    if np.ptp(difference) <= 1e-9 * np.max(np.abs(difference)):
        return 0.0 if difference[0] < 0 else 1.0
    return float(scipy.stats.ttest_1samp(difference, 0.0, alternative="less").pvalue)


def vertex(rates: Sequence[float], losses: Sequence[float]) -> float:
    """
    Rate at the minimum of the parabola in log rate through the lowest loss and its two neighbours.

    Args:
        rates (`Sequence[float]`): positive, in any order.
        losses (`Sequence[float]`): finite.

    Returns:
        `float`: at an edge, where the neighbours are the next two, no further than the edge. Where the rate above has
        the same loss, or too few were tried, the lowest one with the lowest loss.
    """
    order = np.argsort(rates)
    x = np.log(np.asarray(rates, dtype=float)[order])
    y = np.asarray(losses, dtype=float)[order]
    place, last = int(np.argmin(y)), len(x) - 1
    if last < 2 or (place < last and y[place + 1] == y[place]):
        return float(np.exp(x[place]))
    middle = min(max(place, 1), last - 1)
    curvature, slope, _ = np.polyfit(x[middle - 1 : middle + 2] - x[middle], y[middle - 1 : middle + 2], 2)
    if curvature <= 0:
        # Only at an edge, which the loss falls towards ever more steeply.
        return float(np.exp(x[place]))
    return float(np.exp(np.clip(x[middle] - slope / (2 * curvature), x[0], x[last])))


def _highest_rate(trials: Sequence[Trial], best: Trial, alpha: float) -> float:
    """The middle between the best rate and the lowest one of those next to it that do not end significantly higher."""
    lowest = best.learning_rate
    for trial in sorted(trials, key=lambda trial: -trial.learning_rate):
        if trial.learning_rate < lowest:
            if paired_p_value(best.end_losses, trial.end_losses) < alpha:
                break
            lowest = trial.learning_rate
    return math.inf if lowest == best.learning_rate else math.sqrt(lowest * best.learning_rate)


def carried_over(reading: Reading, times: float, rule: HorizonRule) -> float:
    """The rate for a run that is `times` longer than the trials; `rule` as for [`horizon_power`]."""
    horizon: float = times ** horizon_power(rule, reading)
    if reading.is_fine_tuning:
        # High rates look too good in short trials: the horizon lowers them for that, and `highest` need not again.
        return min(reading.vertex * horizon, reading.highest)
    return min(reading.vertex, reading.highest) * horizon


def horizon_power(rule: HorizonRule, reading: Reading) -> float:
    """
    The power of the length by which the best rate of a trial goes over to a longer run.

    Args:
        rule (`tuple`): where the power begins, how it falls with the root of `reading.share`, and what it is in
            fine-tuning (`None`: the same).
        reading ([`Reading`]): of the trials.
    """
    start, by_share, fine_tuning = rule
    if reading.is_fine_tuning and fine_tuning is not None:
        return fine_tuning
    return start - by_share * math.sqrt(reading.share)


def read_trials(trials: Mapping[int, Trial], untouched: Sequence[float], alpha: float, from_scratch: bool) -> Reading:
    """What trials, by their power of the spacing, say of a run that is as long as they are, and of a longer one."""
    tried = list(trials.values())
    best = trials[best_power(trials, untouched)]
    loss = float(np.mean(untouched))
    share = (loss - best.end_loss) / loss if loss > 0 else 0.0
    return Reading(
        vertex=vertex([trial.learning_rate for trial in tried], _levelled_ends(tried, untouched)),
        highest=_highest_rate(tried, best, alpha),
        share=min(1.0, max(0.0, share)),
        is_fine_tuning=not from_scratch and best.movement is not None and best.movement < _LITTLE_MOVEMENT,
    )
