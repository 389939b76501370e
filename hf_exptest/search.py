# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The search for the starting learning rate: miniatures of the whole run, rehearsed before its first step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from .config import ExpTestConfig
from .snapshot import Snapshot
from .stage import NUM_EVAL_BATCHES, Stage, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Miniatures shorter than this order the rates by their first steps rather than by where they lead.
MIN_STEPS = 14
# The long miniatures are this much longer: far enough for a drift to show above the noise of the vertices.
STRETCH = 4
# Five short miniatures and four long ones.
_STEPS_PER_SHORT_STEP = 5 + 4 * STRETCH
_MAX_TRIALS = 10
_MAX_CLIMBS = 3
# Rates far too high all end on one plateau, whose trials differ significantly but by next to nothing.
_NOTICEABLE = 0.1
# Any rate small enough lowers the loss a little: a miniature that says something gains this share of it.
_HELPFUL = 0.01
# The best rate goes with a power of the length. Theory has the power between 0 (steps limited by curvature and noise)
# and -1 (by the way still to go); it is the middle where the miniatures do not say.
_USUAL_DRIFT = -0.5
_DRIFTS = -1.0, 0.5
# A line through two noisy vertices is not followed further down than this.
_LOWEST_SHIFT = math.log(1 / 3)


@dataclass(frozen=True)
class LearningRateSearch:
    """
    Result of a search.

    Attributes:
        learning_rate (`float`): the rate found.
        upper_bound (`float`): the bound along the first update, where the ladder of rates begins.
        untouched_losses (`list[float]`): loss of the model as it came, on each held-out batch.
        trials (`list[Trial]`): every rehearsal, the short ones before the long ones.
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
        """Whether any rehearsal lowers the loss on the held-out batches significantly (5 %)."""
        return any(_is_lower(trial.end_losses, self.untouched_losses, alpha=0.05) for trial in self.trials)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss at the end of each rehearsal against its rate, one line a length; returns the axes."""
        from matplotlib import pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        untouched = float(np.mean(self.untouched_losses))
        for length in sorted({trial.num_steps for trial in self.trials}):
            trials = sorted((r for r in self.trials if r.num_steps == length), key=lambda r: r.learning_rate)
            ends = [min(r.end_loss, untouched) for r in trials]
            ax.plot([r.learning_rate for r in trials], ends, marker="o", label=f"rehearsal of {length} steps")
        ax.axhline(untouched, color="gray", linestyle=":", label="untouched model, or worse")
        ax.axvline(
            self.learning_rate,
            color="black",
            linestyle="--",
            label=f"found for {self.num_training_steps} steps: {self.learning_rate:.2g}",
        )
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss on held-out batches")
        # No loss is drawn above that of the untouched model, so the legend hides none there.
        bottom, top = ax.get_ylim()
        ax.set_ylim(bottom, top + 0.35 * (top - bottom))
        ax.legend(fontsize="small", loc="upper center")
        return ax


def find_learning_rate(trainer: Trainer, config: ExpTestConfig | None = None) -> LearningRateSearch:
    """
    Find a learning rate for `trainer` without training: the search of [`ExpTestCallback`], alone.

    The Trainer is left as it was: its next `train()` is the one it would have made.

    Args:
        trainer ([`~transformers.Trainer`]): not yet training.
        config ([`ExpTestConfig`], *optional*): the settings.

    Returns:
        [`LearningRateSearch`]: `.learning_rate`, `.trials`, and `.plot(ax=None)`.

    Raises:
        `ValueError`: if the Trainer cannot be put back after a search (DeepSpeed, FSDP, one-shot data).

    Example:

        >>> from hf_exptest import find_learning_rate
        >>> trainer = Trainer(model=model, args=args, train_dataset=train_dataset)
        >>> search = find_learning_rate(trainer)
        >>> trainer.args.learning_rate = search.learning_rate
        >>> sorted({trial.num_steps for trial in search.trials})
        [14, 56]
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"trainer must be a transformers.Trainer, not {type(trainer).__name__}.")
    if config is not None and not isinstance(config, ExpTestConfig):
        raise TypeError(f"config must be an ExpTestConfig, not {type(config).__name__}.")
    reason = why_not_restorable(trainer)
    if reason is not None:
        raise ValueError(f"Cannot search for the learning rate: {reason}.")
    before = trainer.optimizer, trainer.lr_scheduler, trainer.callback_handler.callbacks
    finder = _SearchOnly(trainer, config or ExpTestConfig())
    trainer.callback_handler.callbacks = [finder]
    try:
        trainer.train()
    except _SearchDone:
        pass
    finally:
        trainer.optimizer, trainer.lr_scheduler, trainer.callback_handler.callbacks = before
        trainer.is_in_train = False
    assert finder.search is not None
    return finder.search


class _SearchDone(Exception):
    """Ends a `train()` that was only meant to get as far as its first step."""


class _SearchOnly(TrainerCallback):
    def __init__(self, trainer: Trainer, config: ExpTestConfig) -> None:
        self._trainer = trainer
        self._config = config
        self.search: LearningRateSearch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.search = search_learning_rate(self._trainer, self._config)
        raise _SearchDone


def why_not_restorable(trainer: Trainer) -> str | None:
    """Why `trainer` cannot be put back after a search, or `None` if it can."""
    if trainer.is_deepspeed_enabled:
        return "DeepSpeed keeps the optimizer's state in its own engine, which cannot be put back"
    if trainer.is_fsdp_enabled:
        return "FSDP shards parameters and optimizer, which this release cannot put back"
    dataset = trainer.train_dataset
    if dataset is not None and _is_one_shot(dataset):
        return f"train_dataset={type(dataset).__name__} can be read only once"
    return None


def _is_one_shot(dataset: Any) -> bool:
    """Whether `dataset` is an iterator, or gives the same one each time: reading it twice is impossible."""
    is_stream = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    return is_stream and iter(dataset) is iter(dataset)


def first_update_bound(trainer: Trainer) -> float:
    """
    Upper bound of the learning rate, from the loss along the optimizer's first update (no step is kept).

    The linearized loss along the update direction `d` is a parabola in the rate; its minimum bounds the useful rate
    from above, and equals the paper's bound for least squares with gradient descent along the steepest direction.
    """
    with Snapshot(trainer) as snapshot:
        stage = Stage(trainer, snapshot, ExpTestConfig(), num_batches=2)
        return stage.bound()


def search_learning_rate(trainer: Trainer, config: ExpTestConfig) -> LearningRateSearch:
    """
    The search inside a running `train()`, after the optimizer is made and before the first step.

    Rates are tried from the bound downwards by `beta`, each as a miniature of the whole schedule on the same cached
    batches from the same weights. The ladder ends when the loss on held-out batches gets noticeably worse. Miniatures
    four times as long are then rehearsed around the best rate, by `sqrt(beta)`, four or more. The vertex of the
    parabola in log rate is moved down to the length of the run by the drift between the two lengths. Everything is put
    back, also after an exception.
    """
    began = time.monotonic()
    num_training_steps = trainer.state.max_steps
    short = max(MIN_STEPS, round(config.search_budget * num_training_steps / _STEPS_PER_SHORT_STEP))
    is_quiet = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
    with (
        Snapshot(trainer) as snapshot,
        # The total is what a ladder of usual height takes.
        tqdm(
            desc="ExpTest search",
            unit="step",
            total=round(_STEPS_PER_SHORT_STEP * short),
            disable=is_quiet,
            leave=False,
        ) as progress,
    ):
        progress.set_postfix_str("bound along the first update")
        stage = Stage(trainer, snapshot, config, num_batches=STRETCH * short + NUM_EVAL_BATCHES, progress=progress)
        bound = stage.bound()
        trials = _descend(stage, bound, short, config)
        # The bound takes a step too.
        budget = max(config.search_budget * num_training_steps, 1 + _STEPS_PER_SHORT_STEP * short)
        best = _best(trials, stage.untouched, config.alpha)
        if _is_helpful(best, stage.untouched, config.alpha):
            start, factor = _vertex(trials, stage.untouched), math.sqrt(config.beta)
        else:
            # Too short to learn anything: the long miniatures look for the valley themselves, below the bound.
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
        seconds=time.monotonic() - began,
    )


def _descend(stage: Stage, bound: float, num_steps: int, config: ExpTestConfig) -> list[Trial]:
    """Rehearse from the bound downwards until it gets noticeably worse or idle, and climb if the bound is best."""
    trials = [stage.rehearse(bound, num_steps)]
    while len(trials) < _MAX_TRIALS:
        best = _best(trials, stage.untouched, config.alpha)
        lowest = min(trials, key=lambda trial: trial.learning_rate)
        if _is_clearly_worse(lowest, best, stage.untouched, config.alpha) or _is_idle(lowest, stage.untouched):
            break
        trials.append(stage.rehearse(lowest.learning_rate * config.beta, num_steps))
    for _ in range(_MAX_CLIMBS):
        best = _best(trials, stage.untouched, config.alpha)
        highest = max(trials, key=lambda trial: trial.learning_rate)
        if best is not highest:
            break
        trials.append(stage.rehearse(highest.learning_rate / config.beta, num_steps))
    return trials


def _walk(stage: Stage, start: float, factor: float, num_steps: int, budget: float) -> list[Trial]:
    """
    Rehearse `start`, one rate below it and one above, by `factor`, and a fourth; then go on within the budget.

    All four, whatever the first ones say: near the edge of stability a single rehearsal is a lottery. The fourth is
    above where the upper one is best, else below: longer runs have their best rate there more often, and a rate too
    high costs more than one too low. From there on it is a better end that asks for more.
    """
    trials = [stage.rehearse(start * factor**power, num_steps) for power in (1, 0, -1)]
    while len(trials) == 3 or stage.num_steps + num_steps <= budget:
        best = min(trials, key=lambda trial: trial.end_loss)
        if best is trials[-1]:
            trials.append(stage.rehearse(best.learning_rate / factor, num_steps))
        elif len(trials) == 3 or best is trials[0]:
            trials.insert(0, stage.rehearse(trials[0].learning_rate * factor, num_steps))
        else:
            break
    return trials


def _best(trials: Sequence[Trial], untouched: Sequence[float], alpha: float) -> Trial:
    """Lowest loss at the end, among the trials that converge if any does."""
    converging = [r for r in trials if r.p_value < alpha or _is_lower(r.end_losses, untouched, alpha)]
    return min(converging or trials, key=lambda trial: trial.end_loss)


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
        `float`: the lowest loss's own rate where it has only one neighbour.
    """
    order = np.argsort(rates)
    x = np.log(np.asarray(rates, dtype=float)[order])
    y = np.asarray(losses, dtype=float)[order]
    place = int(np.argmin(y))
    if not 0 < place < len(x) - 1:
        return float(np.exp(x[place]))
    curvature, slope, _ = np.polyfit(x[place - 1 : place + 2] - x[place], y[place - 1 : place + 2], 2)
    # A minimum in the middle keeps the vertex between the neighbours; equal losses leave no parabola.
    return float(np.exp(x[place] - slope / (2 * curvature))) if curvature > 0 else float(np.exp(x[place]))


def _vertex(trials: Sequence[Trial], untouched: Sequence[float]) -> float:
    ceiling = float(np.mean(untouched))
    return vertex([trial.learning_rate for trial in trials], [_capped(trial.end_loss, ceiling) for trial in trials])


def _extrapolate(
    short: Sequence[Trial], longer: Sequence[Trial], untouched: Sequence[float], num_training_steps: int
) -> float:
    """
    The vertex of the longer rehearsals, moved down to the length of the run by a power of the length.

    The power measured between the two lengths counts as much as the short rehearsals gain of what the long ones do,
    the usual power counts for the rest: short ones that learn next to nothing have no opinion. The rate only moves
    down: next to the edge of stability, one higher than the long rehearsals favour can lose the run.
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
