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
import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from .bounds import ray_bound
from .config import ExpTestConfig
from .controller import schedule_factor
from .loss_signal import mean_over_processes
from .snapshot import Snapshot
from .statistics import exponential_decay_test

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Miniatures shorter than this order the rates by their first steps rather than by where they lead.
MIN_STEPS = 24
NUM_EVAL_BATCHES = 12
# One round of about five short miniatures and one of three that are twice as long.
_STEPS_PER_SHORT_STEP = 5 + 3 * 2
_MAX_RUNGS = 10
_MAX_CLIMBS = 3
# A miniature whose loss stays above twice the untouched model's for this many steps will not come back.
_PATIENCE = 4


@dataclass(frozen=True)
class Rung:
    """
    One rehearsed learning rate.

    Attributes:
        learning_rate (`float`): peak rate of the first parameter group.
        num_steps (`int`): length of the miniature in optimizer steps.
        times (`list[float]`): accumulated learning rate before each step that was made.
        curve (`list[float]`): loss of each step minus the untouched model's loss on the same batch.
        end_losses (`list[float]`): loss after the miniature on each held-out batch; infinite if it diverged.
        p_value (`float`): exponential test of the curve against accumulated learning rate.
    """

    learning_rate: float
    num_steps: int
    times: list[float]
    curve: list[float]
    end_losses: list[float]
    p_value: float

    @property
    def end_loss(self) -> float:
        """Mean of `end_losses`."""
        return float(np.mean(self.end_losses))


@dataclass(frozen=True)
class LearningRateSearch:
    """
    Result of a search.

    Attributes:
        learning_rate (`float`): the rate found.
        upper_bound (`float`): the bound along the first update, where the ladder of rates begins.
        untouched_losses (`list[float]`): loss of the model as it came, on each held-out batch.
        rungs (`list[Rung]`): every rehearsal, in the order made.
        num_steps (`int`): optimizer steps spent, the bound's own included.
        seconds (`float`): wall time spent.
    """

    learning_rate: float
    upper_bound: float
    untouched_losses: list[float]
    rungs: list[Rung]
    num_steps: int
    seconds: float

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss at the end of each miniature against its rate, one line a length; returns the axes."""
        from matplotlib import pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        untouched = float(np.mean(self.untouched_losses))
        for length in sorted({rung.num_steps for rung in self.rungs}):
            rungs = sorted((r for r in self.rungs if r.num_steps == length), key=lambda r: r.learning_rate)
            ends = [min(r.end_loss, untouched) for r in rungs]
            ax.plot([r.learning_rate for r in rungs], ends, marker="o", label=f"{length} steps")
        ax.axhline(untouched, color="gray", linestyle=":", label="untouched model, or worse")
        ax.axvline(self.learning_rate, color="black", linestyle="--", label=f"found: {self.learning_rate:.2g}")
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss after the miniature")
        ax.legend(fontsize="small")
        return ax


def find_learning_rate(trainer: Trainer, config: ExpTestConfig | None = None) -> LearningRateSearch:
    """
    Find a learning rate for `trainer` without training: the search of [`ExpTestCallback`], alone.

    The Trainer is left as it was: its next `train()` is the one it would have made.

    Args:
        trainer ([`~transformers.Trainer`]): not yet training.
        config ([`ExpTestConfig`], *optional*): the settings.

    Returns:
        [`LearningRateSearch`]: `.learning_rate`, `.rungs`, and `.plot(ax=None)`.

    Raises:
        `ValueError`: if the Trainer cannot be put back after a search (DeepSpeed, FSDP, one-shot data).
    """
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
    """Whether `dataset` is an iterator, so that reading it twice is impossible."""
    return hasattr(dataset, "__next__")


def first_update_bound(trainer: Trainer) -> float:
    """
    Upper bound of the learning rate, from the loss along the optimizer's first update (no step is kept).

    The linearized loss along the update direction `d` is a parabola in the rate; its minimum bounds the useful rate
    from above, and equals the paper's bound for least squares with gradient descent along the steepest direction.
    """
    with Snapshot(trainer) as snapshot:
        stage = _Stage(trainer, snapshot, ExpTestConfig(), num_batches=1 + NUM_EVAL_BATCHES // 3)
        return stage.bound()


def search_learning_rate(trainer: Trainer, config: ExpTestConfig) -> LearningRateSearch:
    """
    The search inside a running `train()`, after the optimizer is made and before the first step.

    Rates are tried from the bound downwards by `beta`, each as a miniature of the whole schedule on the same cached
    batches from the same weights. The ladder ends when the loss on held-out batches gets significantly worse. The best
    rates are rehearsed again at twice the length, and the vertices of the two parabolas in log rate are extrapolated
    to the length of the run. Everything is put back, also after an exception.
    """
    began = time.monotonic()
    num_training_steps = trainer.state.max_steps
    short = max(MIN_STEPS, round(config.search_budget * num_training_steps / _STEPS_PER_SHORT_STEP))
    short = min(short, max(num_training_steps // 2, 4))
    with Snapshot(trainer) as snapshot:
        stage = _Stage(trainer, snapshot, config, num_batches=2 * short + NUM_EVAL_BATCHES)
        with tqdm(desc="ExpTest search", unit="step", disable=stage.is_quiet, leave=False) as progress:
            stage.progress = progress
            bound = stage.bound()
            rungs = _descend(stage, bound, short, config)
            best = _best(rungs, stage.untouched, config.alpha)
            longer = _rehearse_around(stage, best, rungs, 2 * short, config)
    rate = _extrapolate(rungs, longer, stage.untouched, num_training_steps, config)
    return LearningRateSearch(
        learning_rate=rate,
        upper_bound=bound,
        untouched_losses=stage.untouched,
        rungs=rungs + longer,
        num_steps=stage.num_steps,
        seconds=time.monotonic() - began,
    )


def _descend(stage: _Stage, bound: float, num_steps: int, config: ExpTestConfig) -> list[Rung]:
    """Rehearse from the bound downwards until it gets significantly worse; climb first if the bound itself wins."""
    rungs = [stage.rehearse(bound, num_steps)]
    while len(rungs) < _MAX_RUNGS:
        best = _best(rungs, stage.untouched, config.alpha)
        helps = _is_lower(best.end_losses, stage.untouched, config.alpha)
        lowest = min(rungs, key=lambda rung: rung.learning_rate)
        if helps and best is not lowest and _is_lower(best.end_losses, lowest.end_losses, config.alpha):
            break
        rungs.append(stage.rehearse(lowest.learning_rate * config.beta, num_steps))
    for _ in range(_MAX_CLIMBS):
        best = _best(rungs, stage.untouched, config.alpha)
        highest = max(rungs, key=lambda rung: rung.learning_rate)
        if best is not highest:
            break
        rungs.append(stage.rehearse(highest.learning_rate / config.beta, num_steps))
    return rungs


def _rehearse_around(
    stage: _Stage, best: Rung, rungs: Sequence[Rung], num_steps: int, config: ExpTestConfig
) -> list[Rung]:
    """Rehearse the best rate and its neighbours at another length, and go on towards the side that wins."""
    longer = {best.learning_rate: stage.rehearse(best.learning_rate, num_steps)}
    rates = sorted(rung.learning_rate for rung in rungs)
    place = rates.index(best.learning_rate)
    for neighbour in rates[max(0, place - 1) : place] + rates[place + 1 : place + 2]:
        longer[neighbour] = stage.rehearse(neighbour, num_steps)
    for _ in range(_MAX_CLIMBS):
        winner = min(longer.values(), key=lambda rung: rung.end_loss).learning_rate
        if winner == min(longer):
            candidate = winner * config.beta
        elif winner == max(longer):
            candidate = winner / config.beta
        else:
            break
        longer[candidate] = stage.rehearse(candidate, num_steps)
    return list(longer.values())


def _best(rungs: Sequence[Rung], untouched: Sequence[float], alpha: float) -> Rung:
    """Lowest loss at the end, among the rungs that converge if any does."""
    converging = [r for r in rungs if r.p_value < alpha or _is_lower(r.end_losses, untouched, alpha)]
    return min(converging or rungs, key=lambda rung: rung.end_loss)


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


def _extrapolate(
    short: Sequence[Rung],
    longer: Sequence[Rung],
    untouched: Sequence[float],
    num_training_steps: int,
    config: ExpTestConfig,
) -> float:
    """The vertex of the longer rehearsals, moved on linearly in log length to the length of the run."""
    ceiling = float(np.mean(untouched))
    vertices = [
        vertex([r.learning_rate for r in rungs], [_capped(r.end_loss, ceiling) for r in rungs])
        for rungs in (short, longer)
    ]
    lengths = short[0].num_steps, longer[0].num_steps
    drift = math.log(vertices[1] / vertices[0]) / math.log(lengths[1] / lengths[0])
    shift = drift * math.log(max(1.0, num_training_steps / lengths[1]))
    # Two vertices say little about a run many times longer, so the shift stays within one rung.
    limit = -math.log(config.beta)
    return vertices[1] * math.exp(min(limit, max(-limit, shift)))


def _capped(loss: float, ceiling: float) -> float:
    """A diverged rung counts as one that learnt nothing, so that it cannot bend the parabola without limit."""
    return loss if loss < ceiling else ceiling


class _Stage:
    """The Trainer's own steps on cached batches, from the snapshot's weights."""

    def __init__(self, trainer: Trainer, snapshot: Snapshot, config: ExpTestConfig, num_batches: int) -> None:
        self._trainer = trainer
        self._model = trainer.model_wrapped
        self._snapshot = snapshot
        self._config = config
        self._mean = mean_over_processes(trainer.accelerator)
        assert trainer.optimizer is not None
        self._optimizer = trainer.optimizer
        self._ratios = _group_ratios(self._optimizer)
        self.is_quiet = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
        self.progress: Any = None
        self.num_steps = 0
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        batches = _cache_batches(trainer, num_batches)
        num_eval = min(NUM_EVAL_BATCHES, max(1, len(batches) // 4))
        self._eval_batches, self._train_batches = batches[:num_eval], batches[num_eval:] or batches
        self.untouched = self._evaluate(self._eval_batches)
        self._untouched_curve = self._evaluate(self._train_batches)

    def bound(self) -> float:
        """Rate at which the loss along the optimizer's first update is lowest."""
        self._set_rate(1.0)
        # With fp16 the gradient scaler may skip a few first steps until its scale fits.
        for _ in range(20):
            self._step(self._train_batches[0])
            direction = self._snapshot.displacement()
            if any(bool(d.any()) for d in direction):
                break
        else:
            raise ValueError("The optimizer's first update moves no parameter: is anything trainable?")
        self._snapshot.reset_training()

        def loss_along(distance: float) -> float:
            self._snapshot.move_along(direction, distance)
            return float(np.mean(self._evaluate(self._train_batches[:4])))

        bound = ray_bound(loss_along)
        self._snapshot.reset_training()
        self._snapshot.reset_random()
        return bound

    def rehearse(self, learning_rate: float, num_steps: int) -> Rung:
        """One miniature: the whole schedule in `num_steps` steps, then the loss on the held-out batches."""
        if self.progress is not None:
            self.progress.set_postfix_str(f"learning rate {learning_rate:.2g}")
        self._snapshot.reset_training()
        self._snapshot.reset_random()
        curve: list[float] = []
        rates: list[float] = []
        num_high = 0
        for step in range(num_steps):
            place = step % len(self._train_batches)
            rate = learning_rate * schedule_factor(self._config, step, num_steps)
            self._set_rate(rate)
            loss = self._step(self._train_batches[place])
            untouched = self._untouched_curve[place]
            rates.append(rate)
            curve.append(loss - untouched)
            num_high = num_high + 1 if not loss - untouched < abs(untouched) else 0
            if not math.isfinite(loss) or num_high >= _PATIENCE:
                break
            if self.progress is not None:
                self.progress.update()
        has_diverged = len(curve) < num_steps or not math.isfinite(curve[-1])
        ends = [math.inf] * len(self._eval_batches) if has_diverged else self._evaluate(self._eval_batches)
        times = [0.0, *np.cumsum(rates)[:-1].tolist()]
        p_value = 1.0 if has_diverged else exponential_decay_test(curve, times).p_value
        ends = [loss if math.isfinite(loss) else math.inf for loss in ends]
        return Rung(learning_rate, num_steps, times, curve, ends, p_value)

    def _set_rate(self, rate: float) -> None:
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate * ratio)
            else:
                group["lr"] = rate * ratio

    def _step(self, batch: tuple[list[Any], Any]) -> float:
        """One optimizer step as the Trainer makes it; returns the global loss."""
        micro_batches, num_items = batch
        trainer = self._trainer
        self.num_steps += 1
        trainer.current_gradient_accumulation_steps = len(micro_batches)
        losses = [trainer.training_step(self._model, micro, num_items) for micro in micro_batches]
        if trainer.args.max_grad_norm:
            trainer.accelerator.clip_grad_norm_(self._model.parameters(), trainer.args.max_grad_norm)
        self._optimizer.step()
        self._model.zero_grad()
        return self._reduce([torch.stack([loss.detach().float() for loss in losses]).sum()])[0]

    @torch.no_grad()
    def _evaluate(self, batches: Sequence[tuple[list[Any], Any]]) -> list[float]:
        """Global loss of the present weights on each batch, without dropout."""
        trainer = self._trainer
        self._model.eval()
        losses = []
        for micro_batches, num_items in batches:
            parts = []
            for micro in micro_batches:
                inputs = trainer._prepare_inputs(micro)
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(self._model, inputs, num_items_in_batch=num_items)
                assert isinstance(loss, torch.Tensor)
                parts.append(loss.float())
            losses.append(torch.stack(parts).mean() if num_items is None else torch.stack(parts).sum())
        self._model.train()
        return self._reduce(losses)

    def _reduce(self, losses: list[torch.Tensor]) -> list[float]:
        stacked = torch.stack([loss.detach() for loss in losses])
        return [float(x) for x in (stacked if self._mean is None else self._mean(stacked)).tolist()]


def _group_ratios(optimizer: torch.optim.Optimizer) -> list[float]:
    base = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    return [rate / base[0] for rate in base]


def _cache_batches(trainer: Trainer, num_batches: int) -> list[tuple[list[Any], Any]]:
    """Read up to `num_batches` optimizer batches: micro-batches, and the number of items in all of them."""
    loader = trainer.get_train_dataloader()
    iterator = iter(loader)
    batches: list[tuple[list[Any], Any]] = []
    while len(batches) < num_batches:
        batch = trainer.get_batch_samples(iterator, trainer.args.gradient_accumulation_steps, trainer.args.device)
        if not batch[0]:
            break
        batches.append(batch)
    if hasattr(loader, "end"):
        # Accelerate counts a loader as active until its end; this one is left before it.
        loader.end()
    if not batches:
        raise ValueError(f"train_dataset={type(trainer.train_dataset).__name__} is empty; ExpTest needs one batch.")
    return batches
