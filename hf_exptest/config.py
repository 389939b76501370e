# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Every knob of ExpTest, with its symbol in the paper, its validation, and its JSON form. Pure Python."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ExpTestConfig:
    """
    Settings of ExpTest. The defaults are for fine-tuning with a known number of steps; [`ExpTestConfig.paper`] gives
    the rules of the paper (Chaudhry & Mizuno, arXiv 2411.16975).

    Args:
        alpha (`float`, *optional*, defaults to 0.05):
            Significance level of both tests (alpha in the paper), and of those of a look, in (0, 1).
        beta (`float`, *optional*, defaults to 1/3):
            Factor that multiplies the learning rate when a test fails (beta in the paper), in (0, 1).
        learning_rate (`float`, *optional*):
            Learning rate of the first parameter group. `None` lets ExpTest find it while training. A given rate is
            taken at its word: there is no look at others, and only TUNE may lower it.
        search (`bool`, *optional*, defaults to `True`):
            Whether to look at other rates at the end of the warm-up, and when a test asks for it. Without, training
            starts from the upper bound along the first update, and DETECT lowers it. Of no effect outside the Trainer.
        search_budget (`float`, *optional*, defaults to 0.15):
            Optimizer steps that all looks may take, on top of the training steps and as a share of them. Short runs
            get up to 40 %, at most 120 steps, and any run some 62, since fewer say nothing.
        warmup (`float`, *optional*, defaults to 0.1):
            Share of the training steps in which the learning rate rises linearly to its value; before a look, to one
            that is low, in five of them. 0 turns it off.
        cooldown (`float`, *optional*, defaults to 0.7):
            Share of the training steps, at the end, in which the learning rate falls linearly to zero. 0 turns it off.
        window (`float`, *optional*, defaults to 0.2):
            Length of a test window as a share of the training steps; by default all that is between warm-up and
            cool-down, since shorter windows tell little where the loss is noisy. At least 30 steps in TUNE, and no
            test where there is no room for them. `None` is the paper's rule,
            `W = round(2*sqrt(2) * l_0 / (eta * e))` steps, which needs no number of training steps.
        window_correction (`bool`, *optional*, defaults to `False`):
            Whether to stretch each window by path length over net displacement of the parameters (S / |V| in the
            paper), which allows for the noise of stochastic gradients.
        autocorrelation (`bool`, *optional*, defaults to `True`):
            Whether both tests count correlated losses as fewer observations. The tests of the paper do not.
        reuse (`str` or `Path`, *optional*):
            `exptest.json` of an earlier run with the same set-up, or of a finder, or the folder that holds it. The
            rate that was found there is then the given `learning_rate`. Of no effect outside the Trainer.

    Raises:
        `ValueError` or `TypeError`: quoting the value that is out of range.

    Example:

        >>> from hf_exptest import ExpTestConfig
        >>> config = ExpTestConfig(alpha=0.01, learning_rate=3e-4)
        >>> ExpTestConfig.from_json(config.to_json()) == config
        True
        >>> ExpTestConfig(beta=2.0)
        Traceback (most recent call last):
        ...
        ValueError: beta=2.0 is not a decay factor in (0, 1), say 1/3.
    """

    alpha: float = field(default=0.05, metadata={"help": "Significance level of both tests, in (0, 1)."})
    beta: float = field(default=1 / 3, metadata={"help": "Factor of each learning-rate decay, in (0, 1)."})
    learning_rate: float | None = field(default=None, metadata={"help": "Learning rate; None: ExpTest finds it."})
    search: bool = field(default=True, metadata={"help": "Look at other rates while training."})
    search_budget: float = field(default=0.15, metadata={"help": "Share of the steps that the looks may take."})
    warmup: float = field(default=0.1, metadata={"help": "Share of the steps with a rising rate, in [0, 1)."})
    cooldown: float = field(default=0.7, metadata={"help": "Share of the steps, at the end, with a falling rate."})
    window: float | None = field(default=0.2, metadata={"help": "Window as a share of the steps; None: the paper's."})
    window_correction: bool = field(default=False, metadata={"help": "Stretch windows by path over displacement."})
    autocorrelation: bool = field(default=True, metadata={"help": "Count correlated losses as fewer in the tests."})
    reuse: str | None = field(default=None, metadata={"help": "An earlier exptest.json, whose rate is the given one."})

    def __post_init__(self) -> None:
        _check_number("alpha", self.alpha, 0 < _as_float(self.alpha) < 1, "a significance level in (0, 1), say 0.05")
        _check_number("beta", self.beta, 0 < _as_float(self.beta) < 1, "a decay factor in (0, 1), say 1/3")
        if self.learning_rate is not None:
            rate = _as_float(self.learning_rate)
            _check_number("learning_rate", self.learning_rate, 0 < rate < math.inf, "a positive number or None")
        for name in ("warmup", "cooldown"):
            share = getattr(self, name)
            _check_number(name, share, 0 <= _as_float(share) < 1, "a share of the training steps in [0, 1)")
        if self.warmup + self.cooldown > 1:
            raise ValueError(
                f"warmup={self.warmup!r} and cooldown={self.cooldown!r} add up to more than 1; they are shares of the"
                " same training steps."
            )
        _check_number(
            "search_budget",
            self.search_budget,
            0 < _as_float(self.search_budget) <= 1,
            "a share of the steps in (0, 1]",
        )
        if self.window is not None:
            _check_number(
                "window",
                self.window,
                0 < _as_float(self.window) <= 1,
                "a share of the training steps in (0, 1] or None",
            )
        for name in ("search", "window_correction", "autocorrelation"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False.")
        if self.reuse is not None:
            if not isinstance(self.reuse, (str, os.PathLike)) or not str(self.reuse):
                raise TypeError(f"reuse={self.reuse!r} must be the path of an exptest.json, or of its folder.")
            # JSON has no paths.
            object.__setattr__(self, "reuse", str(self.reuse))

    @classmethod
    def paper(
        cls,
        alpha: float = 0.05,
        beta: float = 1 / 3,
        window_correction: bool = True,
        learning_rate: float | None = None,
        reuse: str | None = None,
    ) -> ExpTestConfig:
        """
        The rules of the paper, for plain SGD: windows from the initial loss, a plain t-test, no warm-up, no cool-down.

        Args:
            alpha (`float`, *optional*, defaults to 0.05): significance level.
            beta (`float`, *optional*, defaults to 1/3):
                decay factor; the paper's runs use 0.33 on MNIST and 0.1 on California housing.
            window_correction (`bool`, *optional*, defaults to `True`): off for full-batch training.
            learning_rate (`float`, *optional*): starting rate; the paper starts from `learning_rate_upper_bound`.
            reuse (`str`, *optional*): file with the starting rate.
        """
        return cls(
            alpha=alpha,
            beta=beta,
            learning_rate=learning_rate,
            search=False,
            warmup=0.0,
            cooldown=0.0,
            window=None,
            window_correction=window_correction,
            autocorrelation=False,
            reuse=reuse,
        )

    @property
    def needs_num_training_steps(self) -> bool:
        """Whether any setting is a share of the training steps."""
        return self.window is not None or self.warmup > 0 or self.cooldown > 0

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExpTestConfig:
        """The inverse of `to_dict`; an unknown key is a `ValueError` that quotes it."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"Unknown ExpTest settings {unknown}; the settings are {sorted(known)}.")
        return cls(**values)

    def to_json(self) -> str:
        """All settings as a JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ExpTestConfig:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))


def _as_float(value: Any) -> float:
    """`value`, or NaN where it is not a real number, so that every range check on it fails."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _check_number(name: str, value: Any, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"{name}={value!r} is not {expected}.")
