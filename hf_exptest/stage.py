# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Where trials take place: the Trainer's own optimizer steps on a few batches, from the weights of a snapshot."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from .bounds import ray_bound
from .controller import DIVERGED_AFTER
from .internals import (
    backward_context,
    call_before_step,
    clip_gradients,
    engine_in_the_way,
    gradient_callbacks,
    is_out_of_memory,
    prepare_inputs,
    quiet,
    read_batches,
)
from .path import PathMeter
from .processes import fewest_over_processes, mean_over_processes, own_part
from .scheduler import reference_group, set_learning_rates
from .search import MAX_STEPS
from .snapshot import Snapshot
from .trial import Trial

# What a look keeps of the data: optimizer batches for its longest trials, so many held out, and these bytes of them.
NUM_EVAL_BATCHES = 12
MAX_BATCHES = MAX_STEPS + NUM_EVAL_BATCHES
MAX_BYTES = 2**30
# A trial rises to its rate over so many steps, which Adam needs to bear a high one, and falls linearly from there.
_RISE = 5
# A trial whose loss is for so many steps above that of the untouched model, by as much as it, does not come back.
_PATIENCE = 4
# With fp16 the gradient scaler may skip a few first steps until its scale fits.
_MAX_SKIPPED = 20
# So many batches may have no gradient, as those of a margin loss that is zero, before a search gives up.
_MAX_IDLE_BATCHES = 8

Batch = tuple[list[Any], Any]


class NoEffect(ValueError):
    """No first step changes a loss."""


class NotSearchable(ValueError):
    """A search would do harm, or cannot be undone."""


@contextlib.contextmanager
def open_stage(trainer: Trainer, num_batches: int, progress: Any = None) -> Iterator[Stage]:
    """
    A [`Stage`] inside a running `train()`; afterwards the Trainer is as it was, also after an exception.

    Args:
        trainer ([`~transformers.Trainer`]): with its model prepared and its optimizer made.
        num_batches (`int`): optimizer batches to read, at most; see [`Stage`].
        progress (`tqdm`, *optional*): moves by one for each step of a trial.

    Raises:
        `NotSearchable`: naming what cannot be put back, before anything is read or changed.
    """
    with quiet(trainer) as callbacks:
        snapshot = Snapshot(trainer, callbacks)
        reason = _why_not_searchable(trainer, snapshot)
        # What cannot be put back now cannot be later. And asking a data set for iterators may have moved it.
        snapshot.places.restore()
        failed = snapshot.places.failed
        snapshot.places.close()
        if reason is None and failed:
            reason = f"{failed[0]} cannot be put back"
        if reason is not None:
            raise NotSearchable(reason)
        with snapshot:
            yield Stage(trainer, snapshot, num_batches, GradientCallbacks(trainer, callbacks), progress)


def _why_not_searchable(trainer: Trainer, snapshot: Snapshot) -> str | None:
    reason = engine_in_the_way(trainer)
    if reason is not None:
        return reason
    dataset = trainer.train_dataset
    if dataset is not None and _is_one_shot(dataset):
        return f"train_dataset={type(dataset).__name__} can be read only once"
    if snapshot.places.consumable:
        return f"{snapshot.places.consumable[0]} can be read only once"
    return None


def _is_one_shot(dataset: Any) -> bool:
    """Whether `dataset` is an iterator, or gives the same one each time: reading it twice is impossible."""
    is_stream = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    return is_stream and iter(dataset) is iter(dataset)


class Stage:
    """
    Makes trials, each from the same weights and random states, on the same batches.

    The batches are in host memory: at most 268 optimizer batches, and at most 1 GiB of them, whatever the run's
    length. Up to `NUM_EVAL_BATCHES` are held out; a trial that is longer than the rest begins them anew. Each use gets
    a copy, which the user's code may change. They are in another order than the run's, where data can be shuffled.

    Use [`open_stage`].

    Attributes:
        untouched (`list[float]`): loss of the untouched model on each held-out batch.
        num_steps (`int`): optimizer steps made so far.
    """

    def __init__(
        self,
        trainer: Trainer,
        snapshot: Snapshot,
        num_batches: int,
        callbacks: GradientCallbacks,
        progress: tqdm[Any] | None,
    ) -> None:
        self._trainer = trainer
        self._model = trainer.model_wrapped
        self._snapshot = snapshot
        assert trainer.optimizer is not None
        self._optimizer = trainer.optimizer
        self._ratios = _group_ratios(self._optimizer)
        self._callbacks = callbacks
        self._progress = progress
        self._path = PathMeter(p for group in self._optimizer.param_groups for p in group["params"])
        self._batch_norms = _batch_norms(self._model)
        self.num_steps = 0
        batches = _cache_batches(trainer, num_batches)
        num_eval = min(NUM_EVAL_BATCHES, max(1, len(batches) // 4))
        self._eval_batches, self._train_batches = batches[:num_eval], batches[num_eval:] or batches
        losses = self._first_losses()
        # A batch without labels has no loss, whatever the weights.
        has_loss = np.isfinite(losses)
        if has_loss.any():
            self._eval_batches = list(itertools.compress(self._eval_batches, has_loss))
            losses = list(itertools.compress(losses, has_loss))
        self.untouched = losses

    def bound(self) -> float:
        """
        Rate after whose first step the loss of that batch is lowest, on a coarse ladder; the lower one of two batches.

        Raises:
            `NoEffect`: if no first step changes a loss.
        """
        with_losses = zip(self._evaluate(self._train_batches), self._train_batches, strict=True)
        finite = [(loss, batch) for loss, batch in with_losses if math.isfinite(loss)]
        # A batch without a loss can only get one, so it says nothing of where it would be lowest.
        batches = [batch for _, batch in sorted(finite, key=lambda pair: pair[0] == 0)]
        for number, batch in enumerate(batches[:_MAX_IDLE_BATCHES], start=1):
            if self._loss_after_a_step(1.0, batch) != self._loss_after_a_step(0.0, batch):
                # A search that has to end with an error ends soon.
                self._snapshot.check()
                bound = ray_bound(lambda rate, batch=batch: self._loss_after_a_step(rate, batch))  # type: ignore[misc]
                # One batch may bear fifty times the rate of another; a second one says which it is.
                other = batches[number % len(batches)]
                bound = min(
                    (bound, bound / 3, bound / 10, bound / 30),
                    key=lambda rate: (self._loss_after_a_step(rate, other), rate),
                )
                self._snapshot.reset()
                return bound
        raise NoEffect("The optimizer's first step changes no finite loss: is anything trainable?")

    def _loss_after_a_step(self, rate: float, batch: Batch) -> float:
        self._snapshot.reset()
        # Also with a rate of 0: a step may move buffers that the loss depends on.
        self._set_rate(rate)
        for _ in range(_MAX_SKIPPED):
            self._step(batch)
            if not self._trainer.accelerator.optimizer_step_was_skipped:
                break
        return self._evaluate([batch])[0]

    def trial(self, learning_rate: float, num_steps: int) -> Trial:
        """Rise and fall of the rate in `num_steps` steps, then the loss on the held-out batches."""
        if self._progress is not None:
            self._progress.set_postfix_str(f"learning rate {learning_rate:.2g}")
        self._snapshot.reset()
        curve: list[float] = []
        num_high = num_not_finite = 0
        for step in range(num_steps):
            self._set_rate(learning_rate * trial_factor(step, num_steps))
            curve.append(self._step(self._train_batches[step % len(self._train_batches)]))
            if self._progress is not None:
                self._progress.update()
            # The first loss is that of the untouched model, as training sees it: with dropout.
            num_high = num_high + 1 if self._is_high(curve[-1], curve[0]) else 0
            num_not_finite = 0 if math.isfinite(curve[-1]) else num_not_finite + 1
            if num_high >= _PATIENCE or num_not_finite >= DIVERGED_AFTER:
                return self._diverged(learning_rate, num_steps, curve)
        *ends, distance, size = self._reduce([*self._losses(self._eval_batches), *self._path.distance_and_size()])
        if not np.all(np.isfinite(ends)):
            return self._diverged(learning_rate, num_steps, curve)
        movement = distance / size if size > 0 else math.nan
        return Trial(learning_rate, num_steps, curve, ends, math.sqrt(movement) if math.isfinite(movement) else None)

    def _diverged(self, learning_rate: float, num_steps: int, curve: list[float]) -> Trial:
        return Trial(learning_rate, num_steps, curve, [math.inf] * len(self._eval_batches))

    def _is_high(self, loss: float, first: float) -> bool:
        """Whether a loss is above the untouched model's by as much as they are, and by far more than they vary."""
        first = first if math.isfinite(first) else self.untouched[0]
        size, spread = float(np.mean(np.abs([*self.untouched, first]))), float(np.std(self.untouched))
        return loss - max(float(np.mean(self.untouched)), first) > max(size, 4 * spread)

    def _set_rate(self, rate: float) -> None:
        set_learning_rates(self._optimizer, [rate * ratio for ratio in self._ratios])

    def _step(self, batch: Batch) -> float:
        """One optimizer step as the Trainer makes it; returns the global loss."""
        trainer = self._trainer
        micro_batches, num_items = self._copy(batch)
        self.num_steps += 1
        trainer.current_gradient_accumulation_steps = len(micro_batches)
        losses = []
        for number, micro in enumerate(micro_batches, start=1):
            with backward_context(trainer, is_last=number == len(micro_batches)):
                losses.append(trainer.training_step(self._model, micro, num_items))
        clip_gradients(trainer)
        self._callbacks.before_step()
        self._optimizer.step()
        self._model.zero_grad()
        return self._reduce([torch.stack([loss.detach().float() for loss in losses]).sum()])[0]

    def _first_losses(self) -> list[float]:
        """
        Global loss on each held-out batch. Finds out whether the model has to be in training mode for it, as detection
        models have, and whether gradients have to be on, as for losses that contain some.
        """
        for mode in ((False, False), (False, True), (True, False)):
            self._in_training_mode, self._with_grad = mode
            losses: list[torch.Tensor] = []
            try:
                losses = self._losses(self._eval_batches)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
            # Some models have NaN, or a zero, in the place of a loss that they only compute in training.
            has_loss = any(math.isfinite(loss) and loss != 0 for loss in map(float, losses))
            # All processes go the same way, also where one alone has failed.
            if fewest_over_processes(int(has_loss), self._trainer.accelerator) == 1:
                return self._reduce(losses)
        # As in a training step.
        self._in_training_mode = self._with_grad = True
        return self._evaluate(self._eval_batches)

    def _evaluate(self, batches: Sequence[Batch]) -> list[float]:
        """Global loss of the present weights on each batch, without dropout where there is a loss without it."""
        return self._reduce(self._losses(batches))

    def _losses(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """The same, as this process alone sees it."""
        self._model.train(self._in_training_mode)
        if self._in_training_mode:
            # The same dropout masks each time.
            self._snapshot.reset_random()
        elif self._batch_norms:
            with _averages_over_batches(self._batch_norms):
                self._forward(batches)
        losses = self._forward(batches)
        self._model.train()
        return losses

    def _forward(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        trainer = self._trainer
        losses = []
        for batch in batches:
            micro_batches, num_items = self._copy(batch)
            parts = []
            for micro in micro_batches:
                inputs = prepare_inputs(trainer, micro)
                with torch.set_grad_enabled(self._with_grad), trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(self._model, inputs, num_items_in_batch=num_items)
                assert isinstance(loss, torch.Tensor)
                parts.append(loss.detach().float())
            losses.append(torch.stack(parts).mean() if num_items is None else torch.stack(parts).sum())
        return losses

    def _copy(self, batch: Batch) -> Batch:
        # The user's training_step gets what the Trainer's loader would give it: batches on the device.
        copied: Batch = send_to_device(copy.deepcopy(batch), self._trainer.args.device)
        return copied

    def _reduce(self, losses: list[torch.Tensor]) -> list[float]:
        """Means over the processes; one collective, and one copy to the host."""
        stacked = torch.stack([loss.detach().to(losses[0].device) for loss in losses])
        return [float(x) for x in mean_over_processes(stacked, self._trainer.accelerator).tolist()]


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those whose running averages follow the weights; detection models freeze theirs."""
    model.train()
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]


@contextlib.contextmanager
def _averages_over_batches(batch_norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """
    The running averages become those of the batches that are seen in this context.

    By themselves they lag behind the weights, in EfficientNet by a hundred steps, so that after a short trial the loss
    would tell of the lag, not of the rate.
    """
    momenta = [module.momentum for module in batch_norms]
    for module in batch_norms:
        module.train()
        # A plain mean, which begins with the next batch.
        module.momentum = None
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.zero_()
    try:
        yield
    finally:
        for module, momentum in zip(batch_norms, momenta, strict=True):
            module.eval()
            module.momentum = momentum


class GradientCallbacks:
    """
    Those callbacks of the user's that change gradients before a step, and so take part in it.

    The first step tells which they are; what the others do is nobody's business in a step that is not kept.
    """

    def __init__(self, trainer: Trainer, callbacks: Sequence[TrainerCallback]) -> None:
        self._trainer = trainer
        self._candidates = gradient_callbacks(callbacks)
        self._chosen: list[TrainerCallback] | None = None

    def before_step(self) -> None:
        """Call them, between the backward pass and the step of the optimizer."""
        if self._chosen is None:
            self._chosen = [callback for callback in self._candidates if self._changes_gradients(callback)]
        elif self._chosen:
            call_before_step(self._trainer, self._chosen)

    def _changes_gradients(self, callback: TrainerCallback) -> bool:
        model = self._trainer.model_wrapped
        before = _fingerprint(model)
        call_before_step(self._trainer, [callback])
        # All processes go the same way, also where a shard of one alone has changed.
        is_same = _fingerprint(model) == before
        return fewest_over_processes(int(is_same), self._trainer.accelerator) == 0


def trial_factor(step: int, num_steps: int) -> float:
    """Factor of the rate at step `step` (from 0) of a trial: a rise over five steps, and a linear fall to zero."""
    return (step + 1) / _RISE if step < _RISE else (num_steps - step) / (num_steps - _RISE)


def _group_ratios(optimizer: torch.optim.Optimizer) -> list[float]:
    base = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    return [rate / base[reference_group(base)] for rate in base]


def _fingerprint(model: torch.nn.Module) -> list[float]:
    """Sums that tell whether gradients are the same, as far as they are in this process; one copy to the host."""
    gradients = [own_part(p.grad).float() for p in model.parameters() if p.grad is not None]
    sums = [x for gradient in gradients for x in (gradient.sum(), gradient.square().sum())]
    return [float(x) for x in torch.stack([x.to(sums[0].device) for x in sums]).tolist()] if sums else []


def _cache_batches(trainer: Trainer, num_batches: int) -> list[Batch]:
    """Read up to `num_batches` optimizer batches into host memory, as far as [`Stage`] keeps them."""
    batches: list[Batch] = []
    size = 0
    with contextlib.closing(read_batches(trainer, min(num_batches, MAX_BATCHES))) as reader:
        for batch in reader:
            on_host: Batch = send_to_device(batch, "cpu")
            size += _nbytes(on_host)
            if not batches or size <= MAX_BYTES:
                batches.append(on_host)
            elif trainer.accelerator.num_processes == 1:
                # One of several goes on reading, since the others may wait for it, but keeps nothing more.
                break
    # A process that has more batches than another would wait for it.
    batches = batches[: fewest_over_processes(len(batches), trainer.accelerator)]
    if not batches:
        raise ValueError(f"train_dataset={type(trainer.train_dataset).__name__} is empty; ExpTest needs one batch.")
    return batches


def _nbytes(value: Any) -> int:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(map(_nbytes, value.values()))
    return sum(map(_nbytes, value)) if isinstance(value, (list, tuple)) else 0
