# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The decisions of ExpTest: losses go in, learning rates come out. No torch, no input or output, plain state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .config import ExpTestConfig
from .statistics import exponential_decay_test, is_spike, slope_test

DETECT = "detect"
TUNE = "tune"
# Both tests spend up to three parameters and need one point more.
MIN_WINDOW = 4
STATE_VERSION = 2
# On fewer losses the slope of a good run is rarely significant, and its rate would be lowered for want of evidence.
_MIN_TUNE_WINDOW = 30
# An upper bound is meant to be lowered, so DETECT asks after a quarter of a window; each decay then lengthens it.
_DETECT_SHARE = 0.25
# One loss that is not finite may be a batch without labels or a step that a gradient scaler skips; two are divergence.
DIVERGED_AFTER = 2
# TUNE lowers a rate only if the loss clearly falls by less than this share of what a step has brought so far.
_USEFUL_SHARE = 0.1
# The loss at the start is the median of so many, since one of them may be anything.
_FIRST_LOSSES = 10
# A raised rate is reached in as many steps as the warm-up had, and in so many at least; a careful start in so many.
_RISE_SHARE, _MIN_RISE = 1.0, 5
# A rate that is still positive in single precision, however often it was lowered.
_LOWEST_RATE = 1e-30


def paper_window(initial_loss: float, learning_rate: float) -> int:
    """
    Window length in steps, `W = round(2*sqrt(2) * l_0 / (eta * e))` (the paper's rule), at least `MIN_WINDOW`.

    A loss that gives no length (zero, negative, non-finite) gets the minimum, whose test then decides.
    """
    length = 2 * math.sqrt(2) * initial_loss / (learning_rate * math.e)
    return max(MIN_WINDOW, round(length)) if math.isfinite(length) else MIN_WINDOW


def schedule_bounds(config: ExpTestConfig, num_training_steps: int | None) -> tuple[int, float]:
    """Steps `(start, end)` between warm-up and cool-down, where the tests run; `end` is infinite without a budget."""
    if num_training_steps is None:
        return 0, math.inf
    warmup_steps = math.ceil(config.warmup * num_training_steps)
    cooldown_steps = math.floor(config.cooldown * num_training_steps)
    return warmup_steps, num_training_steps - cooldown_steps


def schedule_factor(
    config: ExpTestConfig, step: int, num_training_steps: int | None, is_careful: bool = False
) -> float:
    """
    Factor of the learning rate at optimizer step `step` (from 0): a linear rise, 1, and a linear fall.

    No step has factor zero before the end: the first of `w` warm-up steps gets `1/w`, the last of `c` cool-down
    steps `1/c`. Steps past the end get 0, unless there is no cool-down. A rate that `is_careful` by itself is reached
    in five steps, so that the rest of the warm-up trains with it.
    """
    start, end = schedule_bounds(config, num_training_steps)
    if step < start:
        return min(1.0, (step + 1) / (min(start, _MIN_RISE) if is_careful else start))
    if num_training_steps is None or step < end or end == num_training_steps:
        return 1.0
    return max(0.0, (num_training_steps - step) / (num_training_steps - end))


class ExpTestController:
    """
    The two phases of ExpTest. DETECT asks of each window whether the loss decays exponentially, and lowers the
    learning rate until one does; TUNE asks of each window whether the loss still falls, and lowers the rate when it
    does not (paper, sections 2 and 3).

    Outside the paper's own rules (`window=None`) TUNE has a third answer. The rate is lowered only if a second test
    says that the loss falls by less than a tenth of what a step has brought on the average so far. Where neither test
    is significant, the window has too few losses, or too noisy ones: "undecided", and nothing changes.

    Args:
        config ([`ExpTestConfig`]): the settings.
        learning_rate (`float`): rate at the start, eta in the paper.
        num_training_steps (`int`, *optional*):
            Number of optimizer steps of the whole run. Needed if the config states any share of it.
        phase (`str`, *optional*, defaults to `"detect"`):
            `"tune"` where the starting rate is known to be good.

    Attributes:
        history (`list[dict]`): one entry a decision, with the keys `step` (observations so far), `phase`, `test`,
            `p_value`, `learning_rate` (in force after the decision), `window` (losses tested), `left_out` (losses of
            the window that were not: spikes, and those that are not finite) and `decision` (`"start"`, `"detected"`,
            `"continue"`, `"undecided"`, `"decay"`, `"look"`, or what a look led to: `"raise"`, `"lower"`, `"keep"`).
            `test` is `"divergence"` for the second loss in a row that is not finite, which lowers the rate at once.
        can_look (`bool`): whether a failed test asks for a look at other rates (`"look"`), rather than lower this one.

    Example:

        >>> from hf_exptest import ExpTestConfig, ExpTestController
        >>> config = ExpTestConfig(warmup=0.0, cooldown=0.0, window=0.5)
        >>> controller = ExpTestController(config, learning_rate=0.3, num_training_steps=200, phase="tune")
        >>> for step in range(200):
        ...     window_ended = controller.observe(max(1 - 0.01 * step, 0.2))
        >>> [(entry["step"], entry["decision"], round(entry["learning_rate"], 2)) for entry in controller.history]
        [(100, 'continue', 0.3), (200, 'decay', 0.1)]
    """

    def __init__(
        self,
        config: ExpTestConfig,
        learning_rate: float,
        num_training_steps: int | None = None,
        phase: str = DETECT,
    ) -> None:
        if num_training_steps is None and config.needs_num_training_steps:
            raise ValueError(
                "num_training_steps=None, but warmup, cooldown or window are shares of it. Pass the number of"
                " optimizer steps, or use ExpTestConfig.paper()."
            )
        if num_training_steps is not None and not (num_training_steps >= 1 and num_training_steps % 1 == 0):
            raise ValueError(f"num_training_steps={num_training_steps!r} must be a whole number, at least 1.")
        self.config = config
        self.num_training_steps = num_training_steps
        self.history: list[dict[str, Any]] = []
        self.step = 0
        self._initial_loss: float | None = None
        self._losses: list[float] = []
        self._window: float | None = None
        self._is_corrected = False
        self._num_non_finite = 0
        self._first_losses: list[float] = []
        self._rise: tuple[int, float] | None = None
        self.can_look = False
        self._start_step, self._end_step = schedule_bounds(config, num_training_steps)
        self.start(learning_rate, phase)

    def start(self, learning_rate: float, phase: str = DETECT, reason: str | None = None) -> None:
        """Set the starting rate before the first observation; a `reason` is recorded in the history."""
        if self.step > 0:
            raise RuntimeError(f"The starting rate can only be set before the first step, not at step {self.step}.")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate={learning_rate!r} must be positive and finite.")
        if phase not in (DETECT, TUNE):
            raise ValueError(f"phase={phase!r} must be {DETECT!r} or {TUNE!r}.")
        self.learning_rate = float(learning_rate)
        self.phase = phase
        self._initial_loss = None
        self._first_losses = []
        self._rise = None
        self._num_decays = 0
        self._open_window()
        self.history = []
        if reason is not None:
            self._record(reason, None, "start")

    def move(self, learning_rate: float, test: str, p_value: float | None = None) -> None:
        """
        Go on with another rate, as a look says; `test` is recorded. Without a `p_value` it is a new start, from a rate
        that no look has found.
        """
        # An earlier rise may not be over.
        present = self.rate_at(self.step)
        before, self.learning_rate = self.learning_rate, float(learning_rate)
        self._rise = (self.step, present) if learning_rate > present else None
        decision = "start"
        if p_value is not None:
            decision = "keep" if learning_rate == before else "raise" if learning_rate > before else "lower"
        self._losses = []
        self._record(test, p_value, decision)
        self._open_window()

    def take_over(self, step: int, learning_rate: float) -> None:
        """Continue a run of `step` steps that began without ExpTest, at the rate that it had."""
        self.start(learning_rate, TUNE, "checkpoint")
        self.step = step

    def rate_at(self, step: int) -> float:
        """
        Rate of optimizer step `step` (from 0), before warm-up and cool-down.

        A rate that was raised is reached by another warm-up, since the first one did not lead so far.
        """
        if self._rise is None:
            return self.learning_rate
        began, before = self._rise
        share = (step - began + 1) / max(_MIN_RISE, self._start_step * _RISE_SHARE)
        return self.learning_rate if share >= 1 else before + max(0.0, share) * (self.learning_rate - before)

    @property
    def observations_until_test(self) -> float:
        """Observations until the next test or window correction, at least 1; infinite if none will come."""
        if self.step < self._start_step:
            # Not a test yet, but the first window's path begins there.
            return self._start_step - self.step
        if self.step >= self._end_step:
            return math.inf
        if self._window is None:
            return 1
        return max(1, self._window - len(self._losses))

    @property
    def measures_path(self) -> bool:
        """Whether the window is still in its first W steps, whose path length corrects it."""
        return self.config.window_correction and not self._is_corrected and self.step >= self._start_step

    def observe(self, loss: float, path_ratio: Callable[[], float] | None = None) -> bool:
        """
        Take the loss of the next optimizer step and decide if a window is full.

        Args:
            loss (`float`): the loss of one step, the mean over micro-batches and processes.
            path_ratio (`Callable`, *optional*):
                Returns path length over net displacement of the parameters since the window began, at least 1. Called
                once a window, and only if the config corrects windows.

        Returns:
            `bool`: whether a new window begins with the next observation.
        """
        loss = float(loss)
        is_finite = math.isfinite(loss)
        if self._initial_loss is None and is_finite:
            self._initial_loss = loss
        if is_finite and len(self._first_losses) < _FIRST_LOSSES:
            self._first_losses.append(loss)
        step, self.step = self.step, self.step + 1
        self._num_non_finite = 0 if is_finite else self._num_non_finite + 1
        if self._num_non_finite == DIVERGED_AFTER:
            # Waiting for the end of the window cannot change the verdict.
            return self._decide(is_diverged=True)
        if self._num_non_finite > DIVERGED_AFTER:
            # More of them say no more: the weights are lost, whatever the rate, until somebody puts them back.
            return self.step == self._start_step
        if not self._start_step <= step < self._end_step:
            return self.step == self._start_step
        if self._window is None:
            self._window = self._planned_window(step)
        self._losses.append(loss)
        if len(self._losses) >= self._window and self.measures_path:
            if path_ratio is None:
                raise ValueError("window_correction=True needs path_ratio; the scheduler supplies it.")
            self._is_corrected = True
            self._window = self._stretched_window(path_ratio())
        if len(self._losses) >= self._window:
            return self._decide()
        return False

    def _planned_window(self, step: int) -> float:
        """Length of a window that begins at `step`; infinite if no room is left for one before the cool-down."""
        if self.config.window is None:
            initial_loss = math.nan if self._initial_loss is None else self._initial_loss
            return paper_window(initial_loss, self.learning_rate)
        assert self.num_training_steps is not None
        share = self.config.window * (_DETECT_SHARE if self.phase == DETECT else 1)
        # No factor is too small to divide by, and a window longer than the run is cut to it anyway.
        length = share * self.num_training_steps / max(self.config.beta**self._num_decays, 1e-9)
        shortest = MIN_WINDOW if self.phase == DETECT else _MIN_TUNE_WINDOW
        room = self._end_step - step
        return min(max(shortest, round(length)), room) if room >= shortest else math.inf

    def _stretched_window(self, ratio: float) -> float:
        assert self._window is not None
        if not math.isfinite(ratio):
            return self._window
        stretched = max(self._window, round(self._window * ratio))
        if self.config.window is None:
            return stretched
        return min(stretched, self._end_step - (self.step - len(self._losses)))

    def _open_window(self) -> None:
        self._losses = []
        self._window = None
        self._is_corrected = False

    def _decide(self, is_diverged: bool = False) -> bool:
        losses = self._tested()
        if is_diverged:
            test, p_value, decision = "divergence", 1.0, "decay"
        elif self.phase == DETECT:
            test, p_value, decision = "exponential_decay", *self._detect(losses)
        else:
            test, p_value, decision = "slope", *self._tune(losses)
        if decision == "decay":
            before = self.learning_rate
            self.learning_rate = min(self.learning_rate, max(self.config.beta * self.learning_rate, _LOWEST_RATE))
            if self._rise is not None:
                # As in the first warm-up, so that the rate is lowered at once.
                self._rise = (self._rise[0], self._rise[1] * self.learning_rate / before)
            self._num_decays += 1
        self._record(test, p_value, decision, len(losses))
        if decision == "detected":
            self.phase = TUNE
        self._open_window()
        return True

    def _detect(self, losses: list[float]) -> tuple[float, str]:
        """p-value and decision of DETECT; too few losses tell nothing for a rate."""
        if len(losses) < MIN_WINDOW:
            return 1.0, "decay"
        p_value = exponential_decay_test(losses, autocorrelation=self.config.autocorrelation).p_value
        return p_value, "detected" if p_value < self.config.alpha else "decay"

    def _tune(self, losses: list[float]) -> tuple[float, str]:
        """p-value and decision of TUNE; too few losses tell nothing against a rate, but by the paper's rules."""
        is_papers = self.config.window is None
        if len(losses) < MIN_WINDOW:
            return 1.0, "decay" if is_papers else "undecided"
        result = slope_test(losses, autocorrelation=self.config.autocorrelation)
        if result.p_value < self.config.alpha:
            return result.p_value, "continue"
        if not is_papers and result.p_value_of_fall(self._useful_fall(losses)) >= self.config.alpha:
            return result.p_value, "undecided"
        return result.p_value, "look" if self.can_look else "decay"

    def _useful_fall(self, losses: list[float]) -> float:
        """Loss a step: a share of what the steps so far have brought on the average."""
        if not self._first_losses:
            return 0.0
        middle = self.step - (len(losses) + len(self._first_losses)) / 2
        fall = (float(np.median(self._first_losses)) - float(np.mean(losses))) / max(1.0, middle)
        return _USEFUL_SHARE * max(0.0, fall)

    def _tested(self) -> list[float]:
        """The window without the losses that are no part of the curve."""
        return _without_spikes([loss for loss in self._losses if math.isfinite(loss)])

    def _record(self, test: str, p_value: float | None, decision: str, window: int = 0) -> None:
        self.history.append(
            {
                "step": self.step,
                "phase": self.phase,
                "test": test,
                "p_value": p_value,
                "learning_rate": self.learning_rate,
                "window": window,
                "left_out": len(self._losses) - window,
                "decision": decision,
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training, as plain Python values."""
        return {
            "version": STATE_VERSION,
            "step": self.step,
            "phase": self.phase,
            "learning_rate": self.learning_rate,
            "initial_loss": self._initial_loss,
            "first_losses": list(self._first_losses),
            "rise": None if self._rise is None else list(self._rise),
            "num_decays": self._num_decays,
            "losses": list(self._losses),
            "window": self._window,
            "is_corrected": self._is_corrected,
            "num_non_finite": self._num_non_finite,
            "history": [dict(entry) for entry in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; a state of another version is a `ValueError` that quotes it."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"This ExpTest state has version {state.get('version')!r}; this release reads version {STATE_VERSION}."
            )
        self.step = state["step"]
        self.phase = state["phase"]
        self.learning_rate = state["learning_rate"]
        self._initial_loss = state["initial_loss"]
        # States of 0.1 lack these.
        self._first_losses = list(state.get("first_losses", []))
        rise = state.get("rise")
        self._rise = None if rise is None else (rise[0], rise[1])
        self._num_decays = state["num_decays"]
        self._losses = list(state["losses"])
        self._window = state["window"]
        self._is_corrected = state["is_corrected"]
        self._num_non_finite = state["num_non_finite"]
        self.history = [dict(entry) for entry in state["history"]]


def _without_spikes(losses: list[float]) -> list[float]:
    return [loss for loss, left_out in zip(losses, is_spike(losses), strict=True) if not left_out]
