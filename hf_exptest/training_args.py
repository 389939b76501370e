# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The flag: `--exptest` on the command line of a script that uses `HfArgumentParser`."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from transformers import Seq2SeqTrainingArguments, TrainingArguments
from transformers.utils import logging

from .config import ExpTestConfig
from .reuse import with_reused_rate

logger = logging.get_logger(__name__)


@dataclass
class ExpTestArgumentsMixin:
    """
    Adds ExpTest's flags to any `TrainingArguments`, for example TRL's `SFTConfig`.

    Args:
        exptest (`bool`, *optional*, defaults to `False`): whether the script is to use ExpTest.
        exptest_preset (`str`, *optional*, defaults to `"default"`): `"default"`, or `"paper"` for the paper's rules.
        exptest_alpha (`float`, *optional*, defaults to 0.05): significance level of the tests.
        exptest_beta (`float`, *optional*, defaults to 1/3): factor of each learning-rate decay.
        exptest_learning_rate (`float`, *optional*): starting rate; by default ExpTest finds it.
        exptest_reuse (`str`, *optional*): `exptest.json` of an earlier run, or its folder, whose rate is the starting
            rate.
        exptest_search_budget (`float`, *optional*, defaults to 0.15): steps that all looks may take, as a share of
            the training steps, see [`ExpTestConfig`]; of no effect with the rules of the paper, which has no looks.

    Without `exptest`, the others are of no effect, and a warning names those that were set.

    Example:

        >>> from dataclasses import dataclass
        >>> from transformers import HfArgumentParser, Seq2SeqTrainingArguments
        >>> from hf_exptest import ExpTestArgumentsMixin
        >>> @dataclass
        ... class Arguments(ExpTestArgumentsMixin, Seq2SeqTrainingArguments): ...
        >>> flags = ["--exptest", "--exptest_alpha", "0.01", "--predict_with_generate"]
        >>> (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(flags)
        >>> args.exptest_config().alpha
        0.01
    """

    exptest: bool = field(default=False, metadata={"help": "Let ExpTest find and tune the learning rate."})
    exptest_preset: str = field(
        default="default", metadata={"help": "ExpTest's rules: default, or paper.", "choices": ["default", "paper"]}
    )
    exptest_alpha: float = field(default=0.05, metadata={"help": "Significance level of ExpTest's tests."})
    exptest_beta: float = field(default=1 / 3, metadata={"help": "Factor of each of ExpTest's decays."})
    exptest_learning_rate: float | None = field(
        default=None, metadata={"help": "Starting learning rate; by default ExpTest finds it."}
    )
    exptest_reuse: str | None = field(
        default=None,
        metadata={"help": "Start from the rate in this exptest.json of an earlier run or finder, or in this folder."},
    )
    exptest_search_budget: float = field(
        default=0.15, metadata={"help": "Share of the training steps that ExpTest's looks may take."}
    )

    def __post_init__(self) -> None:
        post_init = getattr(super(), "__post_init__", None)
        if post_init is not None:
            post_init()
        if self.exptest:
            # Bad values fail here, where the arguments are read, rather than after the model is loaded.
            self.exptest_config()
        warn_of_missing_switch(self)

    def exptest_config(self) -> ExpTestConfig:
        """The settings that these arguments describe, with the rate that is to be reused."""
        if self.exptest_preset not in ("default", "paper"):
            raise ValueError(f"exptest_preset={self.exptest_preset!r} must be 'default' or 'paper'.")
        make = ExpTestConfig.paper if self.exptest_preset == "paper" else ExpTestConfig
        config = make(
            alpha=self.exptest_alpha,
            beta=self.exptest_beta,
            learning_rate=self.exptest_learning_rate,
            reuse=self.exptest_reuse,
        )
        return with_reused_rate(dataclasses.replace(config, search_budget=self.exptest_search_budget))


def warn_of_missing_switch(args: Any) -> None:
    """Say which flags were set, where `args.exptest` is not, once and on the main process."""
    given = [f"--{flag.name}" for flag in fields(ExpTestArgumentsMixin) if getattr(args, flag.name) != flag.default]
    if given and not args.exptest and os.environ.get("RANK", "0") == "0":
        logger.warning_once(f"ExpTest is off: {', '.join(given)} without --exptest is of no effect.")


@dataclass
class ExpTestTrainingArguments(ExpTestArgumentsMixin, TrainingArguments):
    """
    [`~transformers.TrainingArguments`] with ExpTest's flags; see [`ExpTestArgumentsMixin`].

    Example:

        >>> from hf_exptest import ExpTestCallback, ExpTestTrainingArguments
        >>> args = ExpTestTrainingArguments(output_dir="out", exptest=True, exptest_beta=0.5)
        >>> callbacks = [ExpTestCallback.from_args(args)] if args.exptest else []
        >>> callbacks[0].config.beta
        0.5
    """


def add_flags_in_place(given: dict[str, Any]) -> None:
    """
    Give the flags to [`~transformers.TrainingArguments`] and [`~transformers.Seq2SeqTrainingArguments`] themselves,
    and so to every class that inherits from them from now on.

    In place, because `training_args.bin` names the class: one of ours could not be read without hf_exptest.

    Args:
        given (`dict[str, Any]`): the values of some flags, for all arguments, whatever they are made with.
    """
    names = {field.name for field in fields(ExpTestArgumentsMixin)}
    post_init, to_dict, to_text = TrainingArguments.__post_init__, TrainingArguments.to_dict, TrainingArguments.__str__

    def post_init_with_flags(args: Any) -> None:
        vars(args).update(given)
        post_init(args)
        if args.exptest:
            args.exptest_config()

    # What a script reports of its arguments is as ever where ExpTest is off.
    def to_dict_without(args: Any) -> dict[str, Any]:
        return {name: value for name, value in to_dict(args).items() if args.exptest or name not in names}

    def to_text_without(args: Any) -> str:
        return to_text(args) if args.exptest else re.sub(r"^exptest.*\n", "", to_text(args), flags=re.MULTILINE)

    additions = {
        # For instances that were pickled without the flags, or whose class was made before.
        **{field.name: field.default for field in fields(ExpTestArgumentsMixin)},
        "__annotations__": {**TrainingArguments.__annotations__, **get_type_hints(ExpTestArgumentsMixin)},
        "__post_init__": post_init_with_flags,
        "__str__": to_text_without,
        "__repr__": to_text_without,
        "to_dict": to_dict_without,
        "exptest_config": ExpTestArgumentsMixin.exptest_config,
    }
    for name, value in additions.items():
        setattr(TrainingArguments, name, value)
    for cls in (TrainingArguments, Seq2SeqTrainingArguments):
        flagged: Any = dataclass(type(cls.__name__, (ExpTestArgumentsMixin, cls), {}))
        for name in ("__init__", "__eq__", "__dataclass_fields__"):
            setattr(cls, name, vars(flagged)[name])
