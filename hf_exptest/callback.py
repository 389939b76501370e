# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""ExpTest in the Trainer: the callback that brings loss, tests, decisions and learning rate together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from .checks import check_trainer, warn_of_replaced
from .config import ExpTestConfig
from .internals import (
    adopt_scheduler,
    after_model_card,
    after_saved_card,
    find_trainer,
    is_patched_by,
    patch,
    warn_above_bar,
)
from .look import Looks
from .loss_signal import LossSignal
from .model_card import add_to_card_file
from .processes import same_on_all
from .report import REPORT_NAME, Report, log_values, search_from_dict, search_to_dict, write
from .reuse import doubts, setup_of, with_reused_rate
from .scheduler import ExpTestScheduler
from .search import LearningRateSearch
from .training_args import ExpTestArgumentsMixin
from .words import descriptions

logger = logging.get_logger(__name__)


class ExpTestCallback(TrainerCallback):
    """
    [`TrainerCallback`] that chooses the learning rate: `Trainer(..., callbacks=[ExpTestCallback()])`.

    It replaces the Trainer's learning-rate scheduler by an [`ExpTestScheduler`], and feeds it with the loss of every
    optimizer step, reduced over all processes. Training starts far below an upper bound. At the end of the warm-up
    ExpTest looks at other rates: it trains a few steps with each, from the present weights, and goes on with the one
    whose loss on held-out batches is lowest, if the difference is significant. A later test that finds the loss
    standing still asks for another look, as far as its steps allow. Ratios between the rates of parameter groups are
    kept. `TrainingArguments.learning_rate` is only used where there can be no look, or where it is not the default and
    no rate of the first look helps: a warning says why.

    A look runs the user's code, and puts everything back (see [`Snapshot`]). Nothing that is logged meanwhile is seen.
    Of the other callbacks, those that change gradients in `on_pre_optimizer_step` take part in it. One callback serves
    several Trainers, one training after the other.

    Args:
        config ([`ExpTestConfig`], *optional*): the settings.
        **overrides: single settings, for example `ExpTestCallback(alpha=0.01)`, or `ExpTestCallback(reuse="out")` to
            start from the rate that an earlier run or finder left in that folder; a warning says if it was for another
            set-up.

    Each logged training step carries `exptest_phase` (0 warm-up, 1 DETECT, 2 TUNE, 3 cool-down), `exptest_decays` and,
    once there was a test, `exptest_p_value` and `exptest_window` of the last one; the last row carries
    `exptest_search_runtime` and `exptest_search_steps`, the seconds and optimizer steps of all looks, which
    `train_runtime` and the speeds leave out. `exptest.json` is written to `output_dir` at the start, after each look,
    at each checkpoint and at the end, and then, with matplotlib, `exptest.png`: see [`Report`] and the command
    `hf-exptest`. The model card (`create_model_card`, `push_to_hub`) tells of them too.

    Attributes:
        history (`list[dict]`): the decisions, see [`ExpTestController`].
        search ([`LearningRateSearch`] or `None`): the first look of this training; all of them, also those made before
            it was resumed, are in `report().searches`.

    Example:

        >>> from transformers import Trainer
        >>> from hf_exptest import ExpTestCallback
        >>> callback = ExpTestCallback()
        >>> trainer = Trainer(model=model, args=args, train_dataset=train_dataset, callbacks=[callback])
        >>> result = trainer.train()
        ExpTest: starts with learning rate ...
        >>> [entry["decision"] for entry in callback.history][:2]
        ['start', 'raise']
        >>> callback.search.learning_rate == callback.history[1]["learning_rate"]
        True
    """

    def __init__(self, config: ExpTestConfig | None = None, **overrides: Any) -> None:
        if config is not None and not isinstance(config, ExpTestConfig):
            raise TypeError(f"config must be an ExpTestConfig, not {type(config).__name__}.")
        self.config = with_reused_rate(ExpTestConfig.from_dict({**(config or ExpTestConfig()).to_dict(), **overrides}))
        # Read now, since this run may write to the same place.
        self._reused = None if self.config.reuse is None else Report.load(self.config.reuse)
        self._signal = LossSignal()
        self._trainer: Trainer | None = None
        self._scheduler: ExpTestScheduler | None = None
        self._looks: Looks | None = None
        self._num_reported = 0
        self._sees_losses = False

    @classmethod
    def from_args(cls, args: ExpTestArgumentsMixin) -> ExpTestCallback:
        """The callback that an [`ExpTestTrainingArguments`] describes."""
        return cls(args.exptest_config())

    @property
    def history(self) -> list[dict[str, Any]]:
        """The decisions so far; empty before training."""
        return [] if self._scheduler is None else self._scheduler.history

    @property
    def search(self) -> LearningRateSearch | None:
        """The first look of this training, if there was one."""
        return None if self._looks is None else self._looks.first

    @property
    def learning_rate(self) -> float:
        """The rate of the first parameter group, before warm-up and cool-down."""
        if self._scheduler is None:
            raise RuntimeError("There is no learning rate before training.")
        return self._scheduler.learning_rate

    def set_trainer(self, trainer: Trainer) -> None:
        """
        Connect to `trainer`. Only needed after `trainer.add_callback(callback)`; a callback that is given to the
        Trainer's constructor connects by itself.

        Raises:
            `ValueError`: if the Trainer's set-up leaves ExpTest no learning rate to choose.
        """
        if is_patched_by(trainer, self):
            return
        others = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, ExpTestCallback)]
        if len(others) > 1:
            raise ValueError(
                f"The Trainer has {len(others)} ExpTestCallback; one sets the learning rate, so pass one."
            )
        check_trainer(trainer)
        self._trainer = trainer
        patch(
            trainer,
            training_step=self._training_step,
            log=self._log,
            create_scheduler=self._create_scheduler,
        )
        after_model_card(trainer, self._add_to_model_card)

    def _is_in(self, trainer: Trainer) -> bool:
        """Whether `trainer` still has this callback; `remove_callback` tells nobody."""
        return self in trainer.callback_handler.callbacks

    def _training_step(
        self, trainer: Trainer, training_step: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        loss = training_step(*args, **kwargs)
        self._signal.add(loss)
        return loss

    def _log(
        self,
        trainer: Trainer,
        log: Callable[..., None],
        logs: dict[str, float],
        start_time: float | None = None,
        **kwargs: Any,
    ) -> None:
        if self._scheduler is not None and self._is_in(trainer):
            # The Trainer's own row of a training step, so that every reporter gets these beside the loss.
            if "loss" in logs:
                logs.update(log_values(self.history, self._scheduler.phase))
            if "learning_rate" in logs and self._scheduler.is_first_group_frozen:
                logs["learning_rate"] = self._scheduler.previous_rate
            seconds = 0.0 if self._looks is None else self._looks.seconds
            if "train_runtime" in logs and seconds:
                # These are the metrics that `train()` returns, too.
                num_steps = sum(search["num_steps"] for search in self._scheduler.searches)
                logs.update(_without_search(logs, seconds, num_steps))
            start_time = None if start_time is None else start_time + seconds
        log(logs, *([] if start_time is None else [start_time]), **kwargs)

    def _add_to_model_card(self, trainer: Trainer) -> None:
        scheduler = self._scheduler if trainer is self._trainer else trainer.lr_scheduler
        if not isinstance(scheduler, ExpTestScheduler) or not trainer.is_world_process_zero():
            return
        assert trainer.args.output_dir is not None
        add_to_card_file(_report(trainer, scheduler), Path(trainer.args.output_dir))

    def _create_scheduler(
        self,
        trainer: Trainer,
        create_scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler],
        num_training_steps: int,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if not self._is_in(trainer):
            return create_scheduler(num_training_steps, optimizer)
        if trainer.lr_scheduler is not None and self._scheduler is None and not trainer.is_deepspeed_enabled:
            # Neither ours nor DeepSpeed's stand-in: it has come since the callback was connected.
            check_trainer(trainer)
        if trainer.lr_scheduler is not None and optimizer is None:
            return trainer.lr_scheduler
        chosen = trainer.optimizer if optimizer is None else optimizer
        assert chosen is not None
        # Of several Trainers, the one that trains.
        self._trainer = trainer
        self._scheduler = ExpTestScheduler(chosen, self.config, num_training_steps, accelerator=trainer.accelerator)
        # DeepSpeed asks for another one, through a copy of a Trainer that has its stand-in already.
        if trainer.lr_scheduler is None:
            adopt_scheduler(trainer, self._scheduler)
        return self._scheduler

    def _connected(self) -> tuple[Trainer, ExpTestScheduler]:
        if self._trainer is not None and self._scheduler is None:
            raise RuntimeError(
                "The Trainer did not ask ExpTest for its learning-rate scheduler: create_scheduler was replaced after"
                " ExpTestCallback was connected. Leave it as it is, or drop ExpTestCallback."
            )
        if self._trainer is None or self._scheduler is None:
            raise RuntimeError(
                "ExpTestCallback is not connected to the Trainer. Give it to the constructor, Trainer(...,"
                " callbacks=[callback]), or call callback.set_trainer(trainer) after trainer.add_callback(callback)."
            )
        return self._trainer, self._scheduler

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = find_trainer(self)
        if trainer is not None:
            self.set_trainer(trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if find_trainer(self) is not self._trainer:
            # It was added to this Trainer without being connected.
            self._trainer = None
        trainer, scheduler = self._connected()
        self._num_reported = 0
        self._sees_losses = False
        self._looks = self._new_looks(trainer, scheduler)
        if scheduler.last_epoch == 0 and state.global_step > 0:
            self._go_on_without_state(trainer, scheduler)
        elif scheduler.last_epoch == 0 and self.config.learning_rate is None:
            self._looks.find_start()
        elif scheduler.last_epoch == 0:
            warn_of_replaced(trainer)
            if self._reused is not None:
                self._start_as_before(self._reused, trainer, scheduler)
        if state.global_step > 0:
            # The run that left the checkpoint has told what it decided.
            self._num_reported = len(self.history)
            if state.is_world_process_zero:
                rate = f"{self.learning_rate:.2g}"
                _print(f"ExpTest: resumes at step {state.global_step} with learning rate {rate}", args)
        self._looks.look_if_due()
        self._signal.clear()
        self._report(state, args)
        self._write(state, args)

    def _new_looks(self, trainer: Trainer, scheduler: ExpTestScheduler) -> Looks:
        return Looks(trainer, scheduler)

    def _start_as_before(self, earlier: Report, trainer: Trainer, scheduler: ExpTestScheduler) -> None:
        """Start from the rate of an earlier run, as from a given one, and say if that may not be the right one."""
        scheduler.start(scheduler.learning_rate, detect=self.config.window is None, reason="reused")
        doubt = doubts(earlier, self.report())
        if doubt is not None and trainer.is_world_process_zero():
            warn_above_bar(
                logger,
                f"ExpTest reuses the learning rate {scheduler.learning_rate:.3g} from {self.config.reuse!r}, which is"
                f" {doubt}. Without `reuse`, ExpTest finds the rate of this run.",
            )

    def _go_on_without_state(self, trainer: Trainer, scheduler: ExpTestScheduler) -> None:
        """Resume from a checkpoint without the scheduler's state, as `save_only_model` leaves it."""
        step, rate, source = trainer.state.global_step, self.config.learning_rate, "as it was given"
        if rate is None:
            rate, source = trainer.args.learning_rate, "from TrainingArguments"
            try:
                report = Report.load(str(trainer.args.output_dir))
                # A look alone is not of the run that left the checkpoint.
                if not report.is_look_alone:
                    rate, source = report.rate_at(step), f"from {REPORT_NAME}"
                    scheduler.searches = [search_to_dict(search) for search in report.searches if search.step <= step]
            except ValueError:
                # Nothing was left there, or it is unreadable: it is not what training needs.
                pass
        rate = same_on_all(rate, trainer.accelerator)
        scheduler.take_over(step, rate)
        if trainer.is_world_process_zero():
            warn_above_bar(
                logger,
                "The checkpoint has no state of the learning-rate scheduler. ExpTest looks at no other rates now: its"
                f" schedule goes on at step {step} with the learning rate {rate:.2g}, {source}.",
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # After the last `on_train_begin`, from which on the model's card is that of this training.
        self._keep_for_card(self.report())

    def _keep_for_card(self, report: Report) -> None:
        """For a model that writes its own card whenever it is saved; the report's history is that of the run."""
        after_saved_card(self._connected()[0].model, functools.partial(add_to_card_file, report))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._signal.clear()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loss = self._signal.take()
        if loss is not None:
            self._sees_losses = True
            self._connected()[1].observe(loss)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer, scheduler = self._connected()
        if not self._sees_losses:
            raise RuntimeError(
                "ExpTest saw no loss in the first step, so it cannot set the learning rate: a training loop of one's"
                " own does not call Trainer.training_step, or that was replaced after ExpTestCallback was connected."
                " Add the callback and call callback.set_trainer(trainer) after that, or drop ExpTestCallback."
            )
        installed: Any = trainer.lr_scheduler
        # With an optimizer in its config, DeepSpeed steps the scheduler inside backward, before the loss is observed.
        if installed is not scheduler and not trainer.accelerator.optimizer_step_was_skipped:
            scheduler.step()
        if control.should_save or control.should_evaluate:
            # A checkpoint may follow, which only the main process writes: what it holds must be reduced by then.
            scheduler.flush()
        if scheduler.wants_look:
            self._report(state, args)
            assert self._looks is not None
            self._looks.look_if_due()
            self._signal.clear()
            self._write(state, args)
        self._report(state, args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._connected()[1].flush()
        self._report(state, args)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._write(state, args)

    def _write(self, state: TrainerState, args: TrainingArguments, with_figure: bool = False) -> None:
        if state.is_world_process_zero and args.output_dir is not None:
            report = self.report()
            write(report, args.output_dir, with_figure)
            self._keep_for_card(report)

    def _report(self, state: TrainerState, args: TrainingArguments) -> None:
        """Say what was decided since the last report, on the main process."""
        history, num_reported = self.history, self._num_reported
        if len(history) == num_reported:
            return
        self._num_reported = len(history)
        if not state.is_world_process_zero:
            return
        for entry, line in zip(history[num_reported:], descriptions(history)[num_reported:], strict=True):
            message = f"ExpTest: {line}"
            is_doubtful = entry["test"] == "divergence" or entry["left_out"] > 0
            if is_doubtful:
                warn_above_bar(logger, message)
            else:
                logger.info(message)
            if entry["decision"] not in ("continue", "undecided"):
                _print(message, args)

    def report(self) -> Report:
        """What happened so far, with everything that is needed to draw it again."""
        if self._trainer is None or self._scheduler is None:
            raise RuntimeError("There is nothing to report before training.")
        return _report(self._trainer, self._scheduler)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._connected()[1].flush()
        self._report(state, args)
        self._write(state, args, with_figure=True)

    def __getstate__(self) -> dict[str, Any]:
        # Hyper-parameter search pickles callbacks; the Trainer connects a copy anew.
        return {**self.__dict__, "_trainer": None, "_scheduler": None, "_looks": None}


def _print(message: str, args: TrainingArguments) -> None:
    """Also where there is no bar: the rate is what a later run can start from."""
    print(message) if args.disable_tqdm else tqdm.write(message)


def _report(trainer: Trainer, scheduler: ExpTestScheduler) -> Report:
    rows = [row for row in trainer.state.log_history if "loss" in row and "learning_rate" in row]
    return Report(
        config=scheduler.config,
        num_training_steps=trainer.state.max_steps,
        history=scheduler.history,
        searches=[search_from_dict(search) for search in scheduler.searches],
        steps=[int(row["step"]) for row in rows],
        losses=[row["loss"] for row in rows],
        learning_rates=[row["learning_rate"] for row in rows],
        setup=setup_of(trainer, scheduler.optimizer),
        num_steps_made=trainer.state.global_step,
    )


def _without_search(metrics: dict[str, float], seconds: float, num_steps: int) -> dict[str, float]:
    """The Trainer's speeds, as if it had not counted while looking at other rates."""
    total = metrics["train_runtime"]
    training = max(total - seconds, 1e-4)
    speeds = {key: value for key, value in metrics.items() if key.startswith("train_") and key.endswith("_per_second")}
    return {
        "train_runtime": round(training, 4),
        **{key: round(value * total / training, 3) for key, value in speeds.items()},
        "exptest_search_runtime": round(seconds, 4),
        "exptest_search_steps": num_steps,
    }
