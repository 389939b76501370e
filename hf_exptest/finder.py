# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The search for the starting learning rate on a Trainer: inside its `train()`, or alone."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from .config import ExpTestConfig
from .internals import undone_train
from .search import STEPS_PER_SHORT_STEP, STRETCH, LearningRateSearch, search, short_length
from .snapshot import random_states, set_random_states
from .stage import NUM_EVAL_BATCHES, open_stage

logger = logging.get_logger(__name__)


def find_learning_rate(trainer: Trainer, config: ExpTestConfig | None = None) -> LearningRateSearch:
    """
    Find a learning rate for `trainer` without training: the search of [`ExpTestCallback`], alone.

    The Trainer is left as it was: its next `train()` is the one it would have made. Host memory: a copy of what is
    trained, and at most 1 GiB of batches; see [`Snapshot`] and [`Stage`].

    Args:
        trainer ([`~transformers.Trainer`]): not at present training.
        config ([`ExpTestConfig`], *optional*): the settings.

    Returns:
        [`LearningRateSearch`]: `.learning_rate`, `.is_conclusive`, `.trials`, and `.plot(ax=None)`. A search in which
        no rate lowers the loss on held-out batches is not conclusive, and a warning says so.

    Raises:
        `ValueError`: if the Trainer cannot be put back after a search (FSDP1, data that can be read only once).

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
    finder = _SearchOnly(trainer, config or ExpTestConfig())
    callbacks = trainer.callback_handler.callbacks
    random = random_states(trainer.args.device)
    with undone_train(trainer):
        # The user's callbacks see nothing of it but the step of the optimizer, in which they may change gradients.
        trainer.callback_handler.callbacks = [finder]
        finder.callbacks = callbacks
        try:
            trainer.train()
        except _SearchDone:
            pass
        finally:
            trainer.callback_handler.callbacks = callbacks
            set_random_states(random)
    assert finder.search is not None
    if not finder.search.is_conclusive and trainer.is_world_process_zero():
        logger.warning(
            f"No learning rate was found: none of {len(finder.search.trials)} trials lowers the loss on held-out"
            f" batches significantly. {finder.search.learning_rate:.2g} is no better than another."
        )
    return finder.search


class _SearchDone(Exception):
    """Ends a `train()` that was only meant to get as far as its first step."""


class _SearchOnly(TrainerCallback):
    def __init__(self, trainer: Trainer, config: ExpTestConfig) -> None:
        self._trainer = trainer
        self._config = config
        self.callbacks: list[TrainerCallback] = []
        self.search: LearningRateSearch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.callback_handler.callbacks = self.callbacks
        self.search = search_learning_rate(self._trainer, self._config)
        raise _SearchDone


def search_learning_rate(trainer: Trainer, config: ExpTestConfig) -> LearningRateSearch:
    """
    The search inside a running `train()`, after the optimizer is made and before the first step; see
    [`hf_exptest.search.search`]. Everything is put back, also after an exception.

    Raises:
        `NotSearchable`: before anything is read or changed, if it could not be put back.
        `NotRestored`: if something that was not copied has changed.
    """
    began = time.monotonic()
    num_training_steps = trainer.state.max_steps
    short = short_length(config, num_training_steps)
    with (
        # The total is what a ladder of usual height takes.
        tqdm(
            desc="ExpTest search",
            unit="step",
            total=round(STEPS_PER_SHORT_STEP * short),
            disable=trainer.args.disable_tqdm or not trainer.is_world_process_zero(),
            leave=False,
        ) as progress,
        open_stage(trainer, config, STRETCH * short + NUM_EVAL_BATCHES, progress) as stage,
    ):
        progress.set_postfix_str("bound along the first update")
        found = search(stage, config, num_training_steps)
    return dataclasses.replace(found, seconds=time.monotonic() - began)


def first_update_bound(trainer: Trainer, config: ExpTestConfig) -> float:
    """
    Upper bound of the learning rate, from the loss after the optimizer's first step (no step is kept).

    The linearized loss along the update direction `d` is a parabola in the rate; its minimum bounds the useful rate
    from above, and equals the paper's bound for least squares with gradient descent along the steepest direction.
    """
    with open_stage(trainer, config, num_batches=2) as stage:
        return stage.bound()
