# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A look at other learning rates inside a running `train()`, after which everything is as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm
from transformers import Trainer

from .config import ExpTestConfig
from .search import LearningRateSearch, search, trial_steps
from .stage import NUM_EVAL_BATCHES, NoEffect, open_stage


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


def look(
    trainer: Trainer, config: ExpTestConfig, learning_rate: float, budget: int, *, is_start: bool
) -> LearningRateSearch:
    """
    Try other rates than `learning_rate` from the present weights; see [`hf_exptest.search.search`].

    Args:
        trainer ([`~transformers.Trainer`]): between two optimizer steps.
        config ([`ExpTestConfig`]): the settings.
        learning_rate (`float`): the present rate, before warm-up and cool-down.
        budget (`int`): optimizer steps to spend.
        is_start (`bool`): whether the rate is a careful start, so that higher ones are tried first.

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
        )
    return dataclasses.replace(found, seconds=time.monotonic() - began)


@contextlib.contextmanager
def _bar(trainer: Trainer, budget: int) -> Iterator[Any]:
    is_off = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
    with tqdm(desc="ExpTest look", unit="step", total=budget, disable=is_off, leave=False) as progress:
        yield progress
