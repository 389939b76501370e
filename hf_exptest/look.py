# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Looks at other learning rates inside a running `train()`: when one is due, the look itself, which leaves everything as
it was, and what follows from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.utils import logging

from .checks import is_preference_trainer, is_rate_given, warn_of_replaced
from .config import ExpTestConfig
from .internals import is_out_of_memory, own_vectors, warn_above_bar
from .processes import mean_over_processes
from .report import search_to_dict
from .scheduler import BELOW_BOUND, ExpTestScheduler
from .search import MIN_STEPS, START_SHARE, LearningRateSearch, search, search_steps, trial_steps
from .snapshot import NotRestored
from .stage import NUM_EVAL_BATCHES, NoEffect, NotSearchable, open_stage

logger = logging.get_logger(__name__)

# Fewer steps than for three short trials are not worth a look.
_FEWEST_STEPS = 3 * MIN_STEPS
# Of new weights nearly all vectors in the models of transformers, two in five where torch draws the biases; of weights
# that were trained, one in twenty.
_FRESH_SHARE = 0.3


class NothingFound(Exception):
    """No rate of a look helps."""

    def __init__(self, found: LearningRateSearch) -> None:
        super().__init__(f"none of {len(found.trials)} trials lowers the loss on held-out batches significantly")
        self.p_value = found.p_value


class Looks:
    """
    The looks of one training, each of which sets the rate of its scheduler.

    Args:
        trainer ([`~transformers.Trainer`]): inside `train()`.
        scheduler ([`ExpTestScheduler`]): that of the training.

    Attributes:
        first ([`LearningRateSearch`] or `None`): the first look that was made here.
        seconds (`float`): wall time of all of them, and of the bound.
    """

    def __init__(self, trainer: Trainer, scheduler: ExpTestScheduler) -> None:
        self._trainer = trainer
        self._scheduler = scheduler
        self._config = scheduler.config
        self.first: LearningRateSearch | None = None
        self.seconds = 0.0

    def find_start(self) -> None:
        """Set the rate of the first steps: a share of the bound if there will be a look, else the bound itself."""
        scheduler = self._scheduler
        began = time.monotonic()
        with self._or_other_rate():
            bound, num_steps = first_update_bound(self._trainer)
            if self._config.search:
                scheduler.bound = {
                    "upper_bound": bound,
                    "num_steps": num_steps,
                    "seconds": time.monotonic() - began,
                    "from_scratch": is_from_scratch(self._trainer),
                }
                scheduler.start(float(f"{START_SHARE * bound:.2g}"), detect=False, reason=BELOW_BOUND)
            else:
                scheduler.start(bound, detect=True, reason="first_update_bound")
        self.seconds += time.monotonic() - began
        if scheduler.history[0]["test"] != BELOW_BOUND:
            self._warn_of_replaced()

    def look_if_due(self) -> None:
        """Look at other rates where it is time to, and go on with what is found."""
        scheduler = self._scheduler
        if scheduler.wants_look:
            began = time.monotonic()
            scheduler.flush()
            is_first = scheduler.bound is not None and not scheduler.searches
            with self._or_other_rate():
                self._look(scheduler.bound if is_first else None)
            if is_first:
                # Only now is it known whether the rate of the arguments is used.
                self._warn_of_replaced()
            self.seconds += time.monotonic() - began
        scheduler.allow_looks(self._steps_left >= _FEWEST_STEPS)

    def _look(self, bound: dict[str, Any] | None) -> None:
        """One look, the first if it has a bound below which the run began."""
        scheduler = self._scheduler
        found = look(
            self._trainer,
            self._config,
            scheduler.learning_rate,
            self._budget,
            is_start=bound is not None,
            # A checkpoint of 0.1 does not say.
            from_scratch=scheduler.bound is not None and scheduler.bound.get("from_scratch", False),
        )
        if bound is not None:
            found = dataclasses.replace(
                found,
                upper_bound=bound["upper_bound"],
                num_steps=found.num_steps + bound["num_steps"],
                seconds=found.seconds + bound["seconds"],
            )
        self.first = self.first or found
        scheduler.searches.append(search_to_dict(found))
        if bound is not None and not found.is_conclusive:
            raise NothingFound(found)
        scheduler.move(found.learning_rate, "look", found.p_value)
        if found.reaches_zero and is_preference_trainer(self._trainer) and self._trainer.is_world_process_zero():
            warn_above_bar(
                logger,
                "In ExpTest's look, the loss came down to zero: the pairs are easy to tell apart. Rates that get"
                f" there are equal to it, and {found.learning_rate:.2g} is the lowest; whether the model is still"
                " good is for an evaluation to say.",
            )

    @property
    def _budget(self) -> int:
        """Optimizer steps for the next look, also where the least that says anything is more than are left."""
        return max(self._steps_left, _FEWEST_STEPS)

    @property
    def _steps_left(self) -> int:
        """Optimizer steps that looks may still take; none where the rate is given, or ExpTest found none."""
        scheduler = self._scheduler
        if not self._config.search or scheduler.bound is None:
            return 0
        spent: int = sum(search["num_steps"] for search in scheduler.searches) or scheduler.bound["num_steps"]
        return search_steps(self._config, self._trainer.state.max_steps) - spent

    @contextlib.contextmanager
    def _or_other_rate(self) -> Iterator[None]:
        """
        Goes on with another rate if what is inside finds none: that of the run where a look has found it, or where the
        user gave none, else the one that the user gave.
        """
        trainer, scheduler = self._trainer, self._scheduler
        p_value = 1.0
        try:
            yield
            return
        except NotRestored:
            raise
        except NotSearchable as error:
            why = str(error)
        except NothingFound as error:
            why, p_value = str(error), error.p_value
        except Exception as error:
            # With several processes, the others would wait for this one.
            if is_out_of_memory(error) or trainer.accelerator.num_processes > 1:
                raise
            why = f"{type(error).__name__}: {error}"
            logger.debug("The error that ended the look:", exc_info=True)
        scheduler.bound = None
        hint = ""
        if scheduler.history and scheduler.history[-1]["decision"] == "look":
            # An earlier look has found it.
            rate, source = scheduler.learning_rate, "the present rate"
            scheduler.move(rate, "look", p_value)
        elif scheduler.history and not is_rate_given(trainer.args, scheduler.given_rate):
            rate, source = scheduler.learning_rate, "the starting rate"
            hint = " A learning_rate in TrainingArguments would be used now."
            scheduler.move(rate, "look", p_value)
        else:
            # An optimizer that the user has made may have a rate of its own.
            rate, source, reason = scheduler.given_rate, "the optimizer's own learning rate", "optimizer"
            if rate == trainer.args.learning_rate:
                source, reason = "TrainingArguments.learning_rate", "training_arguments"
            if scheduler.last_epoch == 0:
                scheduler.start(rate, detect=False, reason=reason)
            else:
                scheduler.move(rate, reason)
        if trainer.is_world_process_zero():
            warn_above_bar(
                logger,
                f"ExpTest found no learning rate: {why}. Everything is as it was, and training goes on with"
                f" {source}={rate}, unchanged.{hint}",
            )

    def _warn_of_replaced(self) -> None:
        """Say what is not as the user may think."""
        is_own = self._scheduler.history[-1]["test"] in ("training_arguments", "optimizer")
        warn_of_replaced(self._trainer, but_for=("learning_rate",) if is_own else ())


def first_update_bound(trainer: Trainer) -> tuple[float, int]:
    """
    Upper bound of the learning rate, from the loss after the optimizer's first step (no step is kept).

    The linearized loss along the update direction `d` is a parabola in the rate; its minimum bounds the useful rate
    from above, and equals the paper's bound for least squares with gradient descent along the steepest direction.

    Returns:
        `tuple[float, int]`: the bound, and the optimizer steps that it took.

    Raises:
        `NotSearchable`: before anything is read or changed, if it could not be put back.
        `NotRestored`: if something that was not copied has changed.
        `NoEffect`: if no first step changes a loss.
    """
    try:
        return _bound(trainer, num_batches=4)
    except NoEffect:
        # With a margin loss, most batches may have none.
        return _bound(trainer, num_batches=64)


def _bound(trainer: Trainer, num_batches: int) -> tuple[float, int]:
    with open_stage(trainer, num_batches) as stage:
        return stage.bound(), stage.num_steps


def is_from_scratch(trainer: Trainer) -> bool:
    """
    Whether no training has touched the weights yet.

    Then many biases, and scales of normalization layers, have one value throughout, such as 0 or 1, which no training
    leaves. Not all have, since some layers draw their biases; of weights that were trained, hardly any.
    """
    vectors = [vector for vector in own_vectors(trainer.model_wrapped) if vector.numel() > 1]
    device = trainer.accelerator.device
    equal = [torch.all(vector == vector[0]).to(device) for vector in vectors]
    counts = torch.tensor([0.0, len(vectors)], device=device)
    if equal:
        counts[0] = torch.stack(equal).sum()
    num_equal, total = mean_over_processes(counts, trainer.accelerator).tolist()
    return bool(num_equal > _FRESH_SHARE * total)


def look(
    trainer: Trainer,
    config: ExpTestConfig,
    learning_rate: float,
    budget: int,
    *,
    is_start: bool,
    from_scratch: bool,
) -> LearningRateSearch:
    """
    Try other rates than `learning_rate` from the present weights; see [`hf_exptest.search.search`].

    Args:
        trainer ([`~transformers.Trainer`]): between two optimizer steps.
        config ([`ExpTestConfig`]): the settings.
        learning_rate (`float`): the present rate, before warm-up and cool-down.
        budget (`int`): optimizer steps to spend.
        is_start (`bool`): whether the rate is a careful start, so that higher ones are tried first.
        from_scratch (`bool`): whether the run began with weights that no training had touched.

    Raises:
        As [`first_update_bound`].
    """
    began = time.monotonic()
    with (
        _bar(trainer, budget) as progress,
        open_stage(trainer, trial_steps(budget) + NUM_EVAL_BATCHES, progress) as stage,
    ):
        found = search(
            stage,
            learning_rate,
            config,
            step=trainer.state.global_step,
            num_training_steps=trainer.state.max_steps,
            budget=budget,
            is_start=is_start,
            from_scratch=from_scratch,
        )
    return dataclasses.replace(found, seconds=time.monotonic() - began)


@contextlib.contextmanager
def _bar(trainer: Trainer, budget: int) -> Iterator[Any]:
    is_off = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
    with tqdm(desc="ExpTest look", unit="step", total=budget, disable=is_off, leave=False) as progress:
        yield progress
