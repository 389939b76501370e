# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The flag: `--exptest` on the command line of a script that uses `HfArgumentParser`."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .config import ExpTestConfig


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

    def __post_init__(self) -> None:
        post_init = getattr(super(), "__post_init__", None)
        if post_init is not None:
            post_init()
        if self.exptest:
            # Bad values fail here, where the arguments are read, rather than after the model is loaded.
            self.exptest_config()

    def exptest_config(self) -> ExpTestConfig:
        """The settings that these arguments describe."""
        if self.exptest_preset not in ("default", "paper"):
            raise ValueError(f"exptest_preset={self.exptest_preset!r} must be 'default' or 'paper'.")
        make = ExpTestConfig.paper if self.exptest_preset == "paper" else ExpTestConfig
        return make(alpha=self.exptest_alpha, beta=self.exptest_beta, learning_rate=self.exptest_learning_rate)


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


@dataclass
class ExpTestSeq2SeqTrainingArguments(ExpTestArgumentsMixin, Seq2SeqTrainingArguments):
    """[`~transformers.Seq2SeqTrainingArguments`] with ExpTest's flags; see [`ExpTestArgumentsMixin`]."""
