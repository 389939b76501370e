# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The learning rate that a training would find, without the training."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from .callback import ExpTestCallback
from .config import ExpTestConfig
from .internals import undone_train
from .look import Looks, NothingFound
from .report import Report
from .scheduler import ExpTestScheduler
from .search import LearningRateSearch
from .snapshot import Snapshot, random_states, set_random_states
from .stage import GradientCallbacks

logger = logging.get_logger(__name__)


def find_learning_rate(trainer: Trainer, config: ExpTestConfig | None = None) -> LearningRateSearch:
    """
    Find a learning rate for `trainer` without training: the first look of [`ExpTestCallback`], alone.

    The Trainer trains through the warm-up, looks at other rates there, and is put back as it was: its next `train()`
    is the one it would have made. Host memory: two copies of what is trained, and at most 1 GiB of batches; see
    [`Snapshot`] and [`Stage`].

    Args:
        trainer ([`~transformers.Trainer`]): not at present training.
        config ([`ExpTestConfig`], *optional*): the settings; `learning_rate` and `reuse` in it are of no effect.

    Returns:
        [`LearningRateSearch`]: `.learning_rate`, `.is_conclusive`, `.trials`, and `.plot(ax=None)`. A search in which
        no rate lowers the loss on held-out batches significantly is not conclusive, and a warning says so.

    Raises:
        `ValueError`: if the Trainer cannot be put back after a search (FSDP1, data that can be read only once).

    Example:

        >>> from hf_exptest import find_learning_rate
        >>> trainer = Trainer(model=model, args=args, train_dataset=train_dataset)
        >>> search = find_learning_rate(trainer)
        >>> if search.is_conclusive:
        ...     trainer.args.learning_rate = search.learning_rate
        >>> search.step, len(search.trials) >= 3
        (15, True)
    """
    return find(trainer, config).searches[0]


def find(trainer: Trainer, config: ExpTestConfig | None = None) -> Report:
    """[`find_learning_rate`], as a report that can be kept and reused."""
    if not isinstance(trainer, Trainer):
        raise TypeError(f"trainer must be a transformers.Trainer, not {type(trainer).__name__}.")
    if config is not None and not isinstance(config, ExpTestConfig):
        raise TypeError(f"config must be an ExpTestConfig, not {type(config).__name__}.")
    settings = {**(config or ExpTestConfig()).to_dict(), "learning_rate": None, "search": True, "reuse": None}
    callbacks = trainer.callback_handler.callbacks
    random = random_states(trainer.args.device)
    with undone_train(trainer):
        undo = contextlib.ExitStack()
        finder = _Finder(ExpTestConfig.from_dict(settings), lambda: undo.enter_context(Snapshot(trainer, callbacks)))
        # The user's callbacks see nothing of it but the step of the optimizer, in which they may change gradients.
        trainer.callback_handler.callbacks = [finder, _BeforeStep(trainer, callbacks)]
        finder.set_trainer(trainer)
        try:
            with undo:
                with contextlib.suppress(_Found):
                    trainer.train()
                search, report = finder.search, finder.report()
        finally:
            trainer.callback_handler.callbacks = callbacks
            set_random_states(random)
    assert search is not None
    if not search.is_conclusive and trainer.is_world_process_zero():
        logger.warning(
            f"No learning rate was found: none of {len(search.trials)} trials lowers the loss on held-out batches"
            f" significantly. {search.learning_rate:.2g} is no better than another."
        )
    # The decision that a training would have made of it is none of ours.
    return dataclasses.replace(report, history=[], searches=[search], steps=[], losses=[], learning_rates=[])


class _Found(Exception):
    """Ends a `train()` that was only meant to get as far as its first look."""


class _FirstLook(Looks):
    """Ends the training after its first look."""

    def look_if_due(self) -> None:
        super().look_if_due()
        if self.first is not None:
            raise _Found

    @contextlib.contextmanager
    def _or_other_rate(self) -> Iterator[None]:
        # There is no training that would go on.
        with contextlib.suppress(NothingFound):
            yield

    def _warn_of_replaced(self) -> None:
        pass


class _Finder(ExpTestCallback):
    """ExpTest as in a training, up to its first look, but for what it says and writes."""

    def __init__(self, config: ExpTestConfig, keep: Callable[[], object]) -> None:
        super().__init__(config)
        self._keep = keep

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Everything is in place, and no step is made.
        self._keep()
        super().on_train_begin(args, state, control, **kwargs)

    def _new_looks(self, trainer: Trainer, scheduler: ExpTestScheduler) -> Looks:
        return _FirstLook(trainer, scheduler)

    def _log(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _report(self, *args: Any) -> None:
        pass

    def _write(self, *args: Any, **kwargs: Any) -> None:
        pass


class _BeforeStep(TrainerCallback):
    """Stands for the user's callbacks that change gradients."""

    def __init__(self, trainer: Trainer, callbacks: Sequence[TrainerCallback]) -> None:
        self._callbacks = GradientCallbacks(trainer, callbacks)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._callbacks.before_step()
