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
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from .config import ExpTestConfig
from .internals import find_trainer
from .loss_signal import LossSignal
from .report import FIGURE_NAME, Report, add_to_model_card, descriptions, log_values
from .scheduler import ExpTestScheduler, check_optimizer
from .search import LearningRateSearch, first_update_bound, search_learning_rate, why_not_restorable
from .training_args import ExpTestArgumentsMixin

logger = logging.get_logger(__name__)

_REFUSED_OPTIMIZERS = {
    OptimizerNames.GALORE_ADAMW_LAYERWISE: "updates layer by layer during the backward pass; use 'galore_adamw'",
    OptimizerNames.GALORE_ADAMW_8BIT_LAYERWISE: "updates layer by layer during the backward pass; use 'galore_adamw'",
    OptimizerNames.GALORE_ADAFACTOR_LAYERWISE: "updates layer by layer during the backward pass; use 'galore_adamw'",
    OptimizerNames.APOLLO_ADAMW_LAYERWISE: "updates layer by layer during the backward pass; use 'apollo_adamw'",
    OptimizerNames.LOMO: "updates during the backward pass; use 'adamw_torch'",
    OptimizerNames.ADALOMO: "updates during the backward pass; use 'adamw_torch'",
    OptimizerNames.SCHEDULE_FREE_RADAM: "wants a constant learning rate; use 'adamw_torch'",
    OptimizerNames.SCHEDULE_FREE_ADAMW: "wants a constant learning rate; use 'adamw_torch'",
    OptimizerNames.SCHEDULE_FREE_SGD: "wants a constant learning rate; use 'sgd'",
}
_POLICY_GRADIENT_TRAINERS = {"GRPOTrainer", "RLOOTrainer"}


class ExpTestCallback(TrainerCallback):
    """
    [`TrainerCallback`] that chooses the learning rate: `Trainer(..., callbacks=[ExpTestCallback()])`.

    It replaces the Trainer's learning-rate scheduler by an [`ExpTestScheduler`], finds the starting rate before the
    first step, and feeds the scheduler with the loss of every optimizer step, reduced over all processes. The value of
    `TrainingArguments.learning_rate` does not matter; ratios between parameter groups do, and are kept.

    Args:
        config ([`ExpTestConfig`], *optional*): the settings.
        **overrides: single settings, for example `ExpTestCallback(alpha=0.01)`.

    Each logged training step carries `exptest_phase` (0 warm-up, 1 DETECT, 2 TUNE, 3 cool-down), `exptest_decays` and,
    once there was a test, `exptest_p_value` and `exptest_window` of the last one. At the end, `exptest.json` and, with
    matplotlib, `exptest.png` are written to `output_dir`, see [`Report`] and the command `hf-exptest`. The model card
    (`create_model_card`, `push_to_hub`) tells of them too.

    Attributes:
        history (`list[dict]`): the decisions, see [`ExpTestController`].
        search ([`LearningRateSearch`] or `None`): how the starting rate was found.

    Example:

        >>> from transformers import Trainer
        >>> from hf_exptest import ExpTestCallback
        >>> callback = ExpTestCallback()
        >>> trainer = Trainer(model=model, args=args, train_dataset=train_dataset, callbacks=[callback])
        >>> result = trainer.train()
        >>> [entry["decision"] for entry in callback.history][0]
        'start'
        >>> callback.search.learning_rate == callback.history[0]["learning_rate"]
        True
    """

    def __init__(self, config: ExpTestConfig | None = None, **overrides: Any) -> None:
        if config is not None and not isinstance(config, ExpTestConfig):
            raise TypeError(f"config must be an ExpTestConfig, not {type(config).__name__}.")
        self.config = ExpTestConfig.from_dict({**(config or ExpTestConfig()).to_dict(), **overrides})
        self.search: LearningRateSearch | None = None
        self._signal = LossSignal()
        self._trainer: Trainer | None = None
        self._scheduler: ExpTestScheduler | None = None
        self._num_reported = 0

    @classmethod
    def from_args(cls, args: ExpTestArgumentsMixin) -> ExpTestCallback:
        """The callback that an [`ExpTestTrainingArguments`] describes."""
        return cls(args.exptest_config())

    @property
    def history(self) -> list[dict[str, Any]]:
        """The decisions so far; empty before training."""
        return [] if self._scheduler is None else self._scheduler.history

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
        if self._trainer is trainer:
            return
        _check_trainer(trainer)
        self._trainer = trainer
        # Instance attributes: the class, and every other Trainer, stay as they are.
        vars(trainer).update(
            training_step=functools.partial(self._training_step, trainer.training_step),
            log=functools.partial(self._log, trainer.log),
            create_scheduler=self._create_scheduler,
            create_model_card=functools.partial(self._create_model_card, trainer.create_model_card),
        )

    def _training_step(self, training_step: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = training_step(*args, **kwargs)
        self._signal.add(loss)
        return loss

    def _log(self, log: Callable[..., None], logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # The Trainer's own row of a training step, so that every reporter gets these beside the loss.
        if "loss" in logs and self._scheduler is not None:
            logs.update(log_values(self.history, self._scheduler.phase))
        log(logs, *args, **kwargs)

    def _create_model_card(self, create_model_card: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        create_model_card(*args, **kwargs)
        trainer = self._trainer
        assert trainer is not None
        if self._scheduler is None or not trainer.is_world_process_zero():
            return
        assert trainer.args.output_dir is not None
        folder = Path(trainer.args.output_dir)
        card = folder / "README.md"
        # As text, so that the metadata stay as they are.
        text = add_to_model_card(card.read_text(encoding="utf-8"), self.report(), (folder / FIGURE_NAME).is_file())
        card.write_text(text, encoding="utf-8")

    def _create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        trainer = self._trainer
        assert trainer is not None
        if trainer.lr_scheduler is not None and optimizer is None:
            return trainer.lr_scheduler
        chosen = trainer.optimizer if optimizer is None else optimizer
        assert chosen is not None
        self._scheduler = ExpTestScheduler(
            chosen,
            self.config,
            num_training_steps,
            accelerator=trainer.accelerator,
        )
        # DeepSpeed asks for another one, through a copy of a Trainer that has its stand-in already.
        if trainer.lr_scheduler is None:
            vars(trainer)["lr_scheduler"] = self._scheduler
            trainer._created_lr_scheduler = True
        return self._scheduler

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = find_trainer(self)
        if trainer is not None:
            self.set_trainer(trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer is None or self._scheduler is None:
            raise RuntimeError(
                "ExpTestCallback is not connected to the Trainer. Give it to the constructor, Trainer(...,"
                " callbacks=[callback]), or call callback.set_trainer(trainer) after trainer.add_callback(callback)."
            )
        self._num_reported = 0
        self.search = None
        if self._scheduler.last_epoch == 0 and self.config.learning_rate is None:
            self._find_start(self._trainer)
        self._signal.clear()
        self._report(state, args)

    def _find_start(self, trainer: Trainer) -> None:
        assert self._scheduler is not None
        reason = why_not_restorable(trainer)
        if reason is None and self.config.search:
            self.search = search_learning_rate(trainer, self.config)
            if not self.search.is_conclusive:
                reason = "no rehearsed rate lowers the loss on held-out batches"
        if reason is not None:
            if trainer.is_world_process_zero():
                logger.warning(
                    f"ExpTest found no learning rate: {reason}. Training starts from TrainingArguments.learning_rate="
                    f"{trainer.args.learning_rate}, and DETECT lowers it where needed."
                )
            self._scheduler.start(trainer.args.learning_rate, detect=True, reason="training_arguments")
        elif self.search is not None:
            self._scheduler.start(self.search.learning_rate, detect=False, reason="search")
        else:
            self._scheduler.start(first_update_bound(trainer), detect=True, reason="first_update_bound")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._signal.clear()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loss = self._signal.take()
        assert self._scheduler is not None
        if loss is not None:
            self._scheduler.observe(loss)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._scheduler is not None
        assert self._trainer is not None
        # With an optimizer in its config, DeepSpeed steps the scheduler inside backward, before the loss is observed.
        was_skipped = self._trainer.accelerator.optimizer_step_was_skipped
        scheduler: Any = self._trainer.lr_scheduler
        if scheduler is not self._scheduler and not was_skipped:
            self._scheduler.step()
        if control.should_save or control.should_evaluate:
            # A checkpoint may follow, which only the main process writes: what it holds must be reduced by then.
            self._scheduler.flush()
        self._report(state, args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._scheduler is not None
        self._scheduler.flush()
        self._report(state, args)

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
            say = logger.warning if is_doubtful else logger.info
            say(message)
            if not args.disable_tqdm and entry["decision"] != "continue":
                tqdm.write(message)

    def report(self) -> Report:
        """What happened so far, with everything that is needed to draw it again."""
        if self._trainer is None or self._scheduler is None:
            raise RuntimeError("There is nothing to report before training.")
        rows = [row for row in self._trainer.state.log_history if "loss" in row and "learning_rate" in row]
        return Report(
            config=self.config,
            num_training_steps=self._trainer.state.max_steps,
            history=self.history,
            search=self.search,
            steps=[int(row["step"]) for row in rows],
            losses=[row["loss"] for row in rows],
            learning_rates=[row["learning_rate"] for row in rows],
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._scheduler is not None
        self._scheduler.flush()
        self._report(state, args)
        if state.is_world_process_zero and args.output_dir is not None:
            report = self.report()
            report.save(args.output_dir)
            report.save_figure(args.output_dir)

    def __getstate__(self) -> dict[str, Any]:
        # Hyper-parameter search pickles callbacks; the Trainer connects a copy anew.
        return {**self.__dict__, "_trainer": None, "_scheduler": None}


def _check_trainer(trainer: Trainer) -> None:
    """Raise a `ValueError` for a set-up in which ExpTest cannot set the learning rate; warn where it is doubtful."""
    others = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, ExpTestCallback)]
    if len(others) > 1:
        raise ValueError(f"The Trainer has {len(others)} ExpTestCallback; one sets the learning rate, so pass one.")
    # A scheduler of the Trainer's own making, from an earlier train(), is made anew by the next.
    if trainer.lr_scheduler is not None and not getattr(trainer, "_created_lr_scheduler", False):
        raise ValueError(
            f"optimizers=(..., {type(trainer.lr_scheduler).__name__}) sets the learning rate as ExpTest does; pass"
            " optimizers=(optimizer, None) or drop ExpTestCallback."
        )
    if trainer.args.optim in _REFUSED_OPTIMIZERS:
        optim = OptimizerNames(trainer.args.optim)
        raise ValueError(f"optim={optim.value!r} {_REFUSED_OPTIMIZERS[optim]} with ExpTest.")
    if trainer.optimizer is not None:
        check_optimizer(trainer.optimizer)
    if not trainer.args.learning_rate > 0:
        raise ValueError(
            f"learning_rate={trainer.args.learning_rate!r} must be positive: ExpTest replaces it, but keeps the ratios"
            " of the parameter groups to it. Leave it at its default."
        )
    # From TrainingArguments, or from `accelerate launch`.
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    deepspeed = {} if plugin is None else plugin.deepspeed_config
    if "scheduler" in deepspeed:
        raise ValueError(
            f"The DeepSpeed config has scheduler={deepspeed['scheduler']!r}, which sets the learning rate as"
            " ExpTest does; remove it."
        )
    if _POLICY_GRADIENT_TRAINERS & {base.__name__ for base in type(trainer).__mro__}:
        logger.warning(
            f"{type(trainer).__name__} minimises a policy-gradient loss, which does not fall while training goes well;"
            " ExpTest's tests say little about it."
        )
