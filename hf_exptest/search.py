# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Which learning rates to try before the first step, and what to conclude: pure functions over trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import scipy.stats

from .config import ExpTestConfig
from .trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The measurements are those of examples/benchmarks/README.md, "What each part is worth", but where another is named.
# Shorter trials order the rates by their first steps rather than by where they lead: with 7 and 28 steps two of three
# ViT searches end at twice the rate and lose.
MIN_STEPS = 14
# The long trials are this much longer: far enough for a drift to show above the noise of the vertices. By a factor of
# two ("12 and 24 steps") the rates of three ViT searches are a factor of 800 apart.
STRETCH = 4
# Five short trials and four long ones are the usual ladder: the search steps of that table.
STEPS_PER_SHORT_STEP = 5 + 4 * STRETCH
# Down to a factor of 3 ** 9 below the bound, which is 3 to 20 times the best rate on the ten tasks.
_MAX_TRIALS = 10
_MAX_CLIMBS = 3
# Ends that differ by less than this share of what the best one gains are equal: DPO losses of 1e-9 and 1e-30 were told
# apart without it, and followed up to a rate of 0.8 (tests/test_search.py).
_TIE = 1e-3
# Rates far too high all end on one plateau, whose trials differ significantly but by next to nothing: the ResNet's.
_NOTICEABLE = 0.1
# Any rate small enough lowers the loss a little: a trial that says something gains this share of it.
_HELPFUL = 0.01
# The best rate goes with a power of the length. Theory has the power between 0 (steps limited by curvature and noise)
# and -1 (by the way still to go); it is the middle where the trials do not say.
_USUAL_DRIFT = -0.5
_DRIFTS = -1.0, 0.5
# A line through two noisy vertices is not followed further down than this: a third is better than a half on LoRA and
# SST-2 by 0.9 and 0.4 %, and no worse elsewhere.
_LOWEST_SHIFT = math.log(1 / 3)


class Stage(Protocol):
    """What makes trials, each from the same weights; `hf_exptest.stage` has the one for a Trainer."""

    untouched: list[float]
    num_steps: int

    def bound(self) -> float:
        """Rate from which to try downwards."""

    def trial(self, learning_rate: float, num_steps: int) -> Trial:
        """Try a rate over so many steps."""


@dataclass(frozen=True)
class LearningRateSearch:
    """
    Result of a search.

    Attributes:
        learning_rate (`float`): the rate found; of no worth unless `is_conclusive`.
        upper_bound (`float`): the bound along the first update, where the ladder of rates begins.
        untouched_losses (`list[float]`): loss of the model as it came, on each held-out batch.
        trials (`list[Trial]`): every trial, the short ones before the long ones.
        num_training_steps (`int`): length of the run that the rate is for.
        num_steps (`int`): optimizer steps spent, the bound's own included.
        seconds (`float`): wall time spent.

    Example:

        >>> from hf_exptest import find_learning_rate
        >>> search = find_learning_rate(trainer)
        >>> search.is_conclusive, search.num_training_steps
        (True, 150)
        >>> search.plot().figure.savefig("search.png")
    """

    learning_rate: float
    upper_bound: float
    untouched_losses: list[float]
    trials: list[Trial]
    num_training_steps: int
    num_steps: int
    seconds: float

    @property
    def is_conclusive(self) -> bool:
        """Whether any trial lowers the loss on the held-out batches significantly (5 %)."""
        return any(_is_lower(trial.end_losses, self.untouched_losses, alpha=0.05) for trial in self.trials)

    @property
    def reaches_zero(self) -> bool:
        """Whether a trial brings the loss to nothing, so that it says little about higher rates."""
        lowest = min(abs(trial.end_loss) for trial in self.trials)
        return lowest <= _TIE * abs(float(np.mean(self.untouched_losses)))

    @property
    def rungs(self) -> list[Trial]:
        """The former name of `trials`."""
        return self.trials

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss at the end of each trial against its rate, one line a length; returns the axes."""
        from .figure import plot_search

        return plot_search(self, ax)


def short_length(config: ExpTestConfig, num_training_steps: int) -> int:
    """Optimizer steps of a short trial in a run of `num_training_steps`."""
    return max(MIN_STEPS, round(config.search_budget * num_training_steps / STEPS_PER_SHORT_STEP))


def search(stage: Stage, config: ExpTestConfig, num_training_steps: int) -> LearningRateSearch:
    """
    Try rates from the bound downwards by `beta`, each as the whole schedule in a few steps, until the loss on held-out
    batches gets noticeably worse. Then try around the best rate, by `sqrt(beta)`, over four times as many steps, four
    rates or more. The vertex of the parabola in log rate is moved down to the length of the run by the drift between
    the two lengths.
    """
    short = short_length(config, num_training_steps)
    bound = stage.bound()
    budget = max(config.search_budget * num_training_steps, STEPS_PER_SHORT_STEP * short) + stage.num_steps
    trials = _descend(stage, bound, short, config)
    best = _best(trials, stage.untouched, config.alpha)
    if _is_helpful(best, stage.untouched, config.alpha):
        start, factor = _vertex(trials, stage.untouched), math.sqrt(config.beta)
    else:
        # Too short to learn anything: the long trials look for the valley themselves, below the bound.
        start, factor = bound * config.beta, config.beta
    longer = _walk(stage, start, factor, STRETCH * short, budget)
    # No search knows more than two digits; the rest would only differ with the number of processes.
    rate = float(f"{_extrapolate(trials, longer, stage.untouched, num_training_steps):.2g}")
    return LearningRateSearch(
        learning_rate=rate,
        upper_bound=bound,
        untouched_losses=stage.untouched,
        trials=trials + longer,
        num_training_steps=num_training_steps,
        num_steps=stage.num_steps,
        seconds=math.nan,
    )


def _descend(stage: Stage, bound: float, num_steps: int, config: ExpTestConfig) -> list[Trial]:
    """Try from the bound downwards until it gets noticeably worse or idle, and climb if the bound is best."""
    trials = [stage.trial(bound, num_steps)]
    while len(trials) < _MAX_TRIALS:
        best = _best(trials, stage.untouched, config.alpha)
        lowest = min(trials, key=lambda trial: trial.learning_rate)
        if _is_clearly_worse(lowest, best, stage.untouched, config.alpha) or _is_idle(lowest, stage.untouched):
            break
        trials.append(stage.trial(lowest.learning_rate * config.beta, num_steps))
    for _ in range(_MAX_CLIMBS):
        best = _best(trials, stage.untouched, config.alpha)
        highest = max(trials, key=lambda trial: trial.learning_rate)
        if best is not highest:
            break
        trials.append(stage.trial(highest.learning_rate / config.beta, num_steps))
    return trials


def _walk(stage: Stage, start: float, factor: float, num_steps: int, budget: float) -> list[Trial]:
    """
    Try `start`, one rate below it and one above, by `factor`, and a fourth; then go on within the budget.

    All four, whatever the first ones say: near the edge of stability a single trial is a lottery. The fourth is above
    where the upper one is best, else below: longer runs have their best rate there more often, and a rate too high
    costs more than one too low. From there on it is a better end that asks for more.
    """
    trials = [stage.trial(start * factor**power, num_steps) for power in (1, 0, -1)]
    while len(trials) == 3 or stage.num_steps + num_steps <= budget:
        best = _lowest(trials, stage.untouched)
        if best is trials[-1]:
            trials.append(stage.trial(best.learning_rate / factor, num_steps))
        elif len(trials) == 3 or best is trials[0]:
            trials.insert(0, stage.trial(trials[0].learning_rate * factor, num_steps))
        else:
            break
    return trials


def _lowest(trials: Sequence[Trial], untouched: Sequence[float]) -> Trial:
    """The trial with the lowest loss at the end; of equals, that with the lowest rate."""
    ends = _levelled([trial.end_loss for trial in trials], float(np.mean(untouched)))
    return min(zip(ends, trials, strict=True), key=lambda item: (item[0], item[1].learning_rate))[1]


def _levelled(ends: Sequence[float], untouched: float) -> list[float]:
    """The same losses, but those that differ from the lowest by next to nothing of what it gains are equal to it."""
    lowest = min(ends)
    margin = _TIE * (untouched - lowest) if lowest < untouched else 0.0
    return [lowest if end <= lowest + margin else end for end in ends]


def _best(trials: Sequence[Trial], untouched: Sequence[float], alpha: float) -> Trial:
    """Lowest loss at the end, among the trials that converge if any does."""
    converging = [t for t in trials if t.p_value < alpha or _is_lower(t.end_losses, untouched, alpha)]
    return _lowest(converging or trials, untouched)


def _is_clearly_worse(trial: Trial, best: Trial, untouched: Sequence[float], alpha: float) -> bool:
    """Whether `best` helps, and `trial` is significantly worse by a noticeable part of what `best` gains."""
    if not _is_lower(best.end_losses, untouched, alpha) or not _is_lower(best.end_losses, trial.end_losses, alpha):
        return False
    gain = float(np.mean(untouched)) - best.end_loss
    return trial.end_loss - best.end_loss > _NOTICEABLE * gain


def _is_helpful(trial: Trial, untouched: Sequence[float], alpha: float) -> bool:
    """Whether `trial` lowers the loss of the untouched model significantly and noticeably."""
    loss = float(np.mean(untouched))
    return _is_lower(trial.end_losses, untouched, alpha) and loss - trial.end_loss > _HELPFUL * abs(loss)


def _is_idle(trial: Trial, untouched: Sequence[float]) -> bool:
    """Whether `trial` leaves the loss where it was, so that lower rates would too."""
    loss = float(np.mean(untouched))
    return abs(trial.end_loss - loss) < _HELPFUL * abs(loss)


def _is_lower(losses: Sequence[float], others: Sequence[float], alpha: float) -> bool:
    """Whether `losses` are significantly lower than `others` on the same batches (paired one-sided t-test)."""
    if not np.all(np.isfinite(losses)):
        return False
    if not np.all(np.isfinite(others)):
        return True
    difference = np.subtract(losses, others)
    if np.ptp(difference) == 0:
        return bool(difference[0] < 0)
    return bool(scipy.stats.ttest_1samp(difference, 0.0, alternative="less").pvalue < alpha)


def vertex(rates: Sequence[float], losses: Sequence[float]) -> float:
    """
    Rate at the minimum of the parabola in log rate through the lowest loss and its two neighbours.

    Args:
        rates (`Sequence[float]`): positive, in any order.
        losses (`Sequence[float]`): finite.

    Returns:
        `float`: the lowest loss's own rate where it has only one neighbour, or one with the same loss; the lowest rate
        where several have that loss.
    """
    order = np.argsort(rates)
    x = np.log(np.asarray(rates, dtype=float)[order])
    y = np.asarray(losses, dtype=float)[order]
    place = int(np.argmin(y))
    if not 0 < place < len(x) - 1 or y[place + 1] == y[place]:
        return float(np.exp(x[place]))
    # The minimum is in the middle, so the parabola opens upwards and its vertex is between the neighbours.
    curvature, slope, _ = np.polyfit(x[place - 1 : place + 2] - x[place], y[place - 1 : place + 2], 2)
    return float(np.exp(x[place] - slope / (2 * curvature)))


def _vertex(trials: Sequence[Trial], untouched: Sequence[float]) -> float:
    ceiling = float(np.mean(untouched))
    ends = _levelled([_capped(trial.end_loss, ceiling) for trial in trials], ceiling)
    return vertex([trial.learning_rate for trial in trials], ends)


def _extrapolate(
    short: Sequence[Trial], longer: Sequence[Trial], untouched: Sequence[float], num_training_steps: int
) -> float:
    """
    The vertex of the longer trials, moved down to the length of the run by a power of the length.

    The power measured between the two lengths counts as much as the short trials gain of what the long ones do, the
    usual power counts for the rest: short ones that learn next to nothing have no opinion. The rate only moves down:
    next to the edge of stability, one higher than the long trials favour can lose the run.
    """
    ceiling = float(np.mean(untouched))
    gains = [ceiling - min(_capped(trial.end_loss, ceiling) for trial in trials) for trials in (short, longer)]
    weight = min(1.0, gains[0] / gains[1]) if gains[1] > 0 else 0.0
    vertices = [_vertex(trials, untouched) for trials in (short, longer)]
    lengths = short[0].num_steps, longer[0].num_steps
    measured = math.log(vertices[1] / vertices[0]) / math.log(lengths[1] / lengths[0])
    drift = weight * min(_DRIFTS[1], max(_DRIFTS[0], measured)) + (1 - weight) * _USUAL_DRIFT
    shift = drift * math.log(max(1.0, num_training_steps / lengths[1]))
    return vertices[1] * math.exp(min(0.0, max(_LOWEST_SHIFT, shift)))


def _capped(loss: float, ceiling: float) -> float:
    """A diverged trial counts as one that learnt nothing, so that it cannot bend the parabola without limit."""
    return loss if loss < ceiling else ceiling
