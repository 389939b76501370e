# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Set-ups in which ExpTest cannot set the learning rate, or can say little about it: told before training starts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from .internals import has_own_scheduler, warn_above_bar
from .scheduler import check_optimizer

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
# TRL's, whose losses go to zero once the pairs are told apart.
_PREFERENCE_TRAINERS = {"BCOTrainer", "CPOTrainer", "DPOTrainer", "KTOTrainer", "OnlineDPOTrainer", "RewardTrainer"}
# What ExpTest replaces, of all that TrainingArguments say of the learning rate.
_REPLACED = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")


def check_trainer(trainer: Trainer) -> None:
    """Raise a `ValueError` for a set-up in which ExpTest cannot set the learning rate; warn where it is doubtful."""
    if has_own_scheduler(trainer):
        raise ValueError(
            f"The Trainer has a scheduler, {type(trainer.lr_scheduler).__name__}, which sets the learning rate as"
            " ExpTest does; pass optimizers=(optimizer, None), or drop ExpTestCallback."
        )
    _check_override(trainer)
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
    if _is_any(trainer, _POLICY_GRADIENT_TRAINERS) and trainer.is_world_process_zero():
        logger.warning(
            f"{type(trainer).__name__} minimises a policy-gradient loss, which does not fall while training goes well;"
            " ExpTest's tests say little about it."
        )


def _check_override(trainer: Trainer) -> None:
    """A `create_scheduler` of the user's is not called; one that makes another schedule cannot be meant so."""
    owner = next(base for base in type(trainer).__mro__ if "create_scheduler" in vars(base))
    if owner.__module__.partition(".")[0] == "transformers":
        return
    name = f"{owner.__name__}.create_scheduler"
    if {"super", "create_scheduler"} <= set(inspect.unwrap(vars(owner)["create_scheduler"]).__code__.co_names):
        # As frameworks do for schedules that are asked for by options of theirs, which most users do not ask for.
        if trainer.is_world_process_zero():
            logger.warning(f"ExpTest sets the learning rate, so that {name} is not called.")
    else:
        raise ValueError(
            f"{name} makes a scheduler, which sets the learning rate as ExpTest does; remove it or drop"
            " ExpTestCallback."
        )


def is_preference_trainer(trainer: Trainer) -> bool:
    """Whether the loss is that of preference pairs, which goes to zero once they are told apart."""
    return _is_any(trainer, _PREFERENCE_TRAINERS)


def _is_any(trainer: Trainer, names: set[str]) -> bool:
    return not names.isdisjoint(base.__name__ for base in type(trainer).__mro__)


def is_rate_given(args: TrainingArguments, learning_rate: float) -> bool:
    """Whether somebody chose the rate of the optimizer, rather than leave it at the default of the arguments."""
    return bool(learning_rate != _defaults(args)["learning_rate"])


def warn_of_replaced(trainer: Trainer, but_for: Sequence[str] = ()) -> None:
    """Say what the arguments ask for, beside the default, that ExpTest replaces, `but_for` some of it."""
    defaults = _defaults(trainer.args)
    values = {name: getattr(trainer.args, name) for name in defaults if name not in but_for}
    replaced = [
        f"{name}={getattr(value, 'value', value)!r}"
        for name, value in values.items()
        # An empty dict, 0 or None stands for no value, whatever the default.
        if value and value != defaults[name]
    ]
    if replaced and trainer.is_world_process_zero():
        verb = "is" if len(replaced) == 1 else "are"
        warn_above_bar(logger, f"ExpTest sets the learning rate, so that {', '.join(replaced)} {verb} not used.")


def _defaults(args: TrainingArguments) -> dict[str, Any]:
    """Default of each of the arguments that ExpTest replaces, as far as this class of arguments has them."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    return {name: defaults[name] for name in _REPLACED if name in defaults}
