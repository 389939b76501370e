# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""One rehearsal: the Trainer's own optimizer steps on cached batches, from the weights of a snapshot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from .bounds import ray_bound
from .config import ExpTestConfig
from .controller import schedule_factor
from .processes import fewest_over_processes, mean_over_processes
from .scheduler import set_learning_rates
from .snapshot import Snapshot
from .statistics import exponential_decay_test

NUM_EVAL_BATCHES = 12
# Adam needs some steps of warm-up to bear a high rate, however long the run: a miniature keeps those of the run, up to
# this share of its own length.
_MAX_WARMUP = 0.3
# A miniature whose loss stays above twice the untouched model's for this many steps will not come back.
_PATIENCE = 4


@dataclass(frozen=True)
class Trial:
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


class Stage:
    """
    Where rehearsals take place: cached batches, and the Trainer's own steps on them.

    Args:
        trainer ([`~transformers.Trainer`]): with its model prepared and its optimizer made.
        snapshot ([`Snapshot`]): entered; every rehearsal begins from it.
        config ([`ExpTestConfig`]): gives the shape of the schedule.
        num_batches (`int`): batches to read, of which up to `NUM_EVAL_BATCHES` are held out.
        progress (`tqdm`, *optional*): moves by one for each step of a rehearsal.

    Attributes:
        untouched (`list[float]`): loss of the untouched model on each held-out batch.
        num_steps (`int`): optimizer steps made so far.
    """

    def __init__(
        self, trainer: Trainer, snapshot: Snapshot, config: ExpTestConfig, num_batches: int, progress: Any = None
    ) -> None:
        self._trainer = trainer
        self._model = trainer.model_wrapped
        self._snapshot = snapshot
        self._config = config
        assert trainer.optimizer is not None
        self._optimizer = trainer.optimizer
        self._ratios = _group_ratios(self._optimizer)
        self._progress = progress
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
            return self._evaluate(self._train_batches[:1])[0]

        bound = ray_bound(loss_along)
        self._snapshot.reset_training()
        self._snapshot.reset_random()
        return bound

    def rehearse(self, learning_rate: float, num_steps: int) -> Trial:
        """One miniature: the whole schedule in `num_steps` steps, then the loss on the held-out batches."""
        if self._progress is not None:
            self._progress.set_postfix_str(f"learning rate {learning_rate:.2g}")
        self._snapshot.reset_training()
        self._snapshot.reset_random()
        shape = _miniature(self._config, num_steps, self._trainer.state.max_steps)
        curve: list[float] = []
        rates: list[float] = []
        num_high = 0
        for step in range(num_steps):
            place = step % len(self._train_batches)
            rate = learning_rate * schedule_factor(shape, step, num_steps)
            self._set_rate(rate)
            loss = self._step(self._train_batches[place])
            untouched = self._untouched_curve[place]
            rates.append(rate)
            curve.append(loss - untouched)
            num_high = num_high + 1 if not loss - untouched < abs(untouched) else 0
            if not math.isfinite(loss) or num_high >= _PATIENCE:
                break
            if self._progress is not None:
                self._progress.update()
        has_diverged = len(curve) < num_steps or not math.isfinite(curve[-1])
        ends = [math.inf] * len(self._eval_batches) if has_diverged else self._evaluate(self._eval_batches)
        times = [0.0, *np.cumsum(rates)[:-1].tolist()]
        p_value = 1.0 if has_diverged else exponential_decay_test(curve, times).p_value
        ends = [loss if math.isfinite(loss) else math.inf for loss in ends]
        return Trial(learning_rate, num_steps, times, curve, ends, p_value)

    def _set_rate(self, rate: float) -> None:
        set_learning_rates(self._optimizer, [rate * ratio for ratio in self._ratios])

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
        return [float(x) for x in mean_over_processes(stacked, self._trainer.accelerator).tolist()]


def _miniature(config: ExpTestConfig, num_steps: int, num_training_steps: int) -> ExpTestConfig:
    """The shape of the run in `num_steps` steps: the same shares, but as many steps of warm-up as fit."""
    share = min(config.warmup * num_training_steps / num_steps, _MAX_WARMUP, 1 - config.cooldown)
    return dataclasses.replace(config, warmup=max(config.warmup, share))


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
    # A process that has more batches than another would wait for it.
    batches = batches[: fewest_over_processes(len(batches), trainer.accelerator)]
    if not batches:
        raise ValueError(f"train_dataset={type(trainer.train_dataset).__name__} is empty; ExpTest needs one batch.")
    return batches
