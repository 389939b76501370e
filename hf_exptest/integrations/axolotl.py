# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
ExpTest in Axolotl. In its config file:

    plugins:
      - hf_exptest.integrations.axolotl.ExpTestPlugin
    exptest:  # if something is to differ from the defaults
      alpha: 0.01
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model, field_validator
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from hf_exptest.callback import ExpTestCallback
from hf_exptest.training_args import ExpTestArgumentsMixin

try:
    from axolotl.integrations.base import BasePlugin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{__name__} is a plugin of Axolotl; pip install axolotl ({error})") from error

logger = logging.get_logger(__name__)

_PREFIX = "exptest_"
# ExpTest's flags without their prefix, so that pydantic reads a text such as YAML's 1e-2 as the number that is meant.
_TYPES = get_type_hints(ExpTestArgumentsMixin)
_OPTIONS: dict[str, Any] = {
    field.name.removeprefix(_PREFIX): (_TYPES[field.name], field.default)
    for field in fields(ExpTestArgumentsMixin)
    if field.name.startswith(_PREFIX)
}
ExpTestOptions = create_model("ExpTestOptions", __config__=ConfigDict(extra="forbid"), **_OPTIONS)
# Of what Axolotl says of the schedule, that which `TrainingArguments` do not have: ExpTest's warning knows the others.
_REPLACED = (
    "cosine_constant_lr_ratio",
    "cosine_min_lr_ratio",
    "jagged_restart_anneal_steps",
    "jagged_restart_steps",
    "jagged_restart_warmup_steps",
    "lr_quadratic_warmup",
)


def arguments(options: Mapping[str, Any]) -> ExpTestArgumentsMixin:
    """The flags that the options under `exptest:` stand for; a `ValueError` if a value makes no sense."""
    return ExpTestArgumentsMixin(exptest=True, **{_PREFIX + name: value for name, value in options.items()})


class ExpTestArgs(BaseModel):
    """
    What the plugin adds to Axolotl's config.

    Args:
        exptest (`dict`, *optional*): `preset`, `alpha`, `beta`, `learning_rate`, `reuse` and `search_budget`, as in
            [`ExpTestArgumentsMixin`], where their names begin with `exptest_`.
    """

    exptest: ExpTestOptions | None = None  # type: ignore[valid-type]

    @field_validator("exptest")
    @classmethod
    def _check(cls, options: BaseModel | None) -> BaseModel | None:
        # Bad values fail here, before the model is loaded.
        arguments({} if options is None else options.model_dump())
        return options


class ExpTestPlugin(BasePlugin):  # type: ignore[misc]
    """Lets ExpTest choose the learning rate of Axolotl's Trainer. To list it in the config turns ExpTest on."""

    def get_input_args(self) -> str:
        """Where Axolotl finds the model of the plugin's options."""
        return f"{__name__}.{ExpTestArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Trainer) -> list[TrainerCallback]:
        """Axolotl adds what this returns to the Trainer, which it has just made."""
        replaced = [f"{name}={cfg[name]!r}" for name in _REPLACED if cfg.get(name)]
        # Axolotl's own schedules stand in the arguments as "cosine".
        own_schedule = getattr(trainer.args, "alternate_lr_scheduler_type", None)
        if own_schedule:
            replaced.append(f"lr_scheduler={own_schedule!r}")
        if replaced and trainer.is_world_process_zero():
            logger.warning(f"ExpTest makes the schedule of the learning rate: {', '.join(replaced)} will not be used.")
        callback = ExpTestCallback.from_args(arguments(cfg.get("exptest") or {}))
        callback.set_trainer(trainer)
        return [callback]
