# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The controller's decisions, applied to the parameter groups of a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers.utils import logging

from .config import ExpTestConfig
from .controller import DETECT, TUNE, ExpTestController, schedule_bounds, schedule_factor
from .path import PathMeter
from .processes import check_agreement, mean_over_processes

logger = logging.get_logger(__name__)

# Where a run starts that looks at other rates: a share of the bound along the first update.
BELOW_BOUND = "below_bound"
# Losses stay on the device for this many steps at most, so divergence is noticed within as many.
CHECK_INTERVAL = 32


class ExpTestScheduler(LRScheduler):
    """
    Learning-rate scheduler for any torch loop: `observe(loss)`, then `step()`, once per optimizer step.

    A decision takes effect from the next optimizer step on. `step()` without a new observation changes nothing, so it
    may be called once per process, as a bare Accelerate loop does, and not at all on a skipped step. Ratios between
    the groups' learning rates are kept: ExpTest moves one common factor, and speaks of the first group's rate.

    Args:
        optimizer (`torch.optim.Optimizer`):
            The `lr` of its first group is the starting rate unless `config.learning_rate` is set. Groups with `lr=0`
            stay frozen, and the first of the others counts as the first.
        config ([`ExpTestConfig`], *optional*): the settings.
        num_training_steps (`int`, *optional*):
            Number of optimizer steps of the whole run. Needed unless the config is [`ExpTestConfig.paper`]'s.
        accelerator ([`~accelerate.Accelerator`], *optional*):
            With several processes: `observe` then takes this process's loss, and the scheduler averages the losses of
            many steps in one collective. Not needed where `observe` already gets the global loss. Construction is
            collective too, and checks that all processes were given the same.

    Attributes:
        history (`list[dict]`): the decisions, see [`ExpTestController`].
        learning_rate (`float`): the rate of the first group, before warm-up and cool-down.
        searches (`list[dict]`): the looks at other rates so far, in plain values, which checkpoints keep.
        bound (`dict` or `None`): the upper bound that the starting rate is from, and what it cost; kept too.

    Raises:
        `ValueError`: for an optimizer that sets its own rates, or none of whose groups has a positive `lr`.
        `RuntimeError`: naming the ranks, on all processes alike, if these differ in settings or in a decision.

    Example:

        >>> import torch
        >>> from hf_exptest import ExpTestConfig, ExpTestScheduler
        >>> weight = torch.ones(10, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> scheduler = ExpTestScheduler(optimizer, ExpTestConfig.paper(window_correction=False))
        >>> for _ in range(200):
        ...     loss = weight.square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     scheduler.observe(loss)
        ...     scheduler.step()
        >>> [(entry["step"], entry["decision"]) for entry in scheduler.history]
        [(104, 'detected')]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        config: ExpTestConfig | None = None,
        num_training_steps: int | None = None,
        *,
        accelerator: Accelerator | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}.")
        check_optimizer(optimizer)
        self.config = config if config is not None else ExpTestConfig()
        self.num_training_steps = num_training_steps
        self._accelerator = accelerator
        self._pending: float | torch.Tensor | None = None
        self._buffer: list[float | torch.Tensor] = []
        self.searches: list[dict[str, Any]] = []
        self.bound: dict[str, Any] | None = None
        super().__init__(optimizer)
        rate = self.config.learning_rate
        self._controller = ExpTestController(
            self.config,
            self.given_rate if rate is None else rate,
            num_training_steps,
            # The paper tests even a given rate; with a budget, a given rate is taken at its word.
            phase=DETECT if rate is None or self.config.window is None else TUNE,
        )
        parameters = _trained_parameters(optimizer)
        if self.config.window_correction and not parameters:
            raise ValueError(
                "window_correction=True measures the path of the parameters, but the optimizer shows none, as under"
                " DeepSpeed ZeRO-3; set window_correction=False."
            )
        self._meter = PathMeter(parameters) if self.config.window_correction else None
        self._agree()
        self._apply()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The decisions so far, as plain dicts."""
        return self._controller.history

    @property
    def learning_rate(self) -> float:
        """Rate of the first group, before warm-up and cool-down."""
        return self._controller.learning_rate

    @property
    def phase(self) -> int:
        """0 in warm-up, 1 in DETECT, 2 in TUNE, 3 in cool-down."""
        start, end = schedule_bounds(self.config, self.num_training_steps)
        if self.last_epoch < start:
            return 0
        if self.last_epoch >= end:
            return 3
        return 1 if self._controller.phase == DETECT else 2

    def start(self, learning_rate: float, *, detect: bool, reason: str) -> None:
        """
        Set the starting rate before the first step.

        Args:
            learning_rate (`float`): the rate of the first group.
            detect (`bool`): whether it is only an upper bound, to be lowered until the loss decays exponentially.
            reason (`str`): where the rate comes from; becomes the first entry of `history`.
        """
        self._controller.start(learning_rate, DETECT if detect else TUNE, reason)
        self._agree()
        self._apply()

    @property
    def wants_look(self) -> bool:
        """Whether it is time for a look at other rates: at the end of the warm-up, or when a test asks for one."""
        if not self.history or self.last_epoch >= (self.num_training_steps or math.inf):
            return False
        is_warm = self.last_epoch >= schedule_bounds(self.config, self.num_training_steps)[0]
        # The rate may have been lowered before the first look.
        choices = [entry["test"] for entry in self.history if entry["test"] == "look" or entry["decision"] == "start"]
        return self.history[-1]["decision"] == "look" or (is_warm and choices[-1:] == [BELOW_BOUND])

    def allow_looks(self, can_look: bool) -> None:
        """Say whether a failed test may ask for a look."""
        self._controller.can_look = can_look

    def move(self, learning_rate: float, test: str, p_value: float | None = None) -> None:
        """Go on with another rate, see [`ExpTestController`]; all losses so far are tested by then."""
        self.flush()
        self._controller.move(learning_rate, test, p_value)
        if self._meter is not None:
            self._meter.reset()
        self._agree()
        self._apply()

    def observe(self, loss: float | torch.Tensor) -> None:
        """
        Take the loss of the optimizer step just made. A second call before `step()` replaces the first, so that a
        skipped optimizer step leaves nothing behind.

        Args:
            loss (`float` or 0-dim `torch.Tensor`): a tensor stays on its device until a test needs it.
        """
        if isinstance(loss, torch.Tensor):
            if loss.numel() != 1:
                raise ValueError(f"observe needs one loss, got a tensor of shape {tuple(loss.shape)}.")
            # A clone, since the caller may go on adding to the tensor.
            self._pending = loss.detach().reshape(()).to(torch.float32, copy=True)
        else:
            self._pending = float(loss)

    def step(self, epoch: int | None = None) -> None:
        """Count the observed step, test where a test is due, and set the rates of the next optimizer step."""
        if self._pending is None:
            return
        self._buffer.append(self._pending)
        self._pending = None
        self.last_epoch += 1
        self._step_count += 1
        if self._meter is not None and self._controller.measures_path:
            self._meter.record()
        if len(self._buffer) >= min(CHECK_INTERVAL, self._controller.observations_until_test):
            self.flush()
        else:
            self._apply()

    def flush(self) -> None:
        """Hand all buffered losses to the controller. With several processes, all of them must call it together."""
        has_decided = False
        for loss in self._drain():
            has_window_ended = self._controller.observe(loss, None if self._meter is None else self._meter.ratio)
            has_decided |= has_window_ended
            if self._meter is not None and has_window_ended:
                self._meter.reset()
        if has_decided:
            self._agree()
        self._apply()

    def _drain(self) -> list[float]:
        """The buffered losses, reduced together with the sums of the path: one collective, one copy to the host."""
        buffer, self._buffer = self._buffer, []
        if not buffer:
            return []
        meter = self._meter if self._controller.measures_path else None
        sums = [] if meter is None else meter.partial_sums()
        values = mean_over_processes(_stack([*buffer, *sums]), self._accelerator).tolist()
        if meter is not None:
            meter.take(values[len(buffer) :])
        return values[: len(buffer)]

    def _agree(self) -> None:
        state = {**self._controller.state_dict(), "settings": [self.config.to_dict(), self.num_training_steps]}
        del state["losses"], state["first_losses"], state["history"]
        check_agreement(state, self._accelerator, f"at step {self._controller.step}")

    @property
    def is_first_group_frozen(self) -> bool:
        """Whether the first group has the rate 0, so that the rate which loggers read there says nothing."""
        return float(self.base_lrs[0]) == 0

    @property
    def previous_rate(self) -> float:
        """Rate of the first group that is trained, in the optimizer step before this one."""
        return self._rate_at(max(0, self.last_epoch - 1))

    def get_lr(self) -> list[float | torch.Tensor]:
        """Rates of all groups for the next optimizer step."""
        return self._group_rates(self._rate_at(self.last_epoch))

    def _rate_at(self, step: int) -> float:
        """Rate of the first group in optimizer step `step`."""
        is_careful = bool(self.history) and self.history[0]["test"] == BELOW_BOUND
        factor = schedule_factor(self.config, step, self.num_training_steps, is_careful)
        return self._controller.rate_at(step) * factor

    def _group_rates(self, rate: float) -> list[float | torch.Tensor]:
        """Rates of all groups if that of the first is `rate`."""
        return [rate * (float(base) / self.given_rate) for base in self.base_lrs]

    @property
    def given_rate(self) -> float:
        """Rate that the first group that is trained was given by whoever made the optimizer."""
        rates = [float(base) for base in self.base_lrs]
        return rates[reference_group(rates)]

    def _initial_step(self) -> None:
        # Called by the base class before there is a controller; the constructor applies the first rates itself.
        self._step_count = 1
        self.last_epoch = 0

    def _apply(self) -> None:
        self._last_lr = self.get_lr()
        set_learning_rates(self.optimizer, self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """State that `torch.load(weights_only=True)` accepts: plain values, and tensors for the path."""
        return {
            "controller": self._controller.state_dict(),
            "last_epoch": self.last_epoch,
            "group_lrs": [float(base) for base in self.base_lrs],
            "buffer": _stack(self._buffer).tolist() if self._buffer else [],
            "path": None if self._meter is None else self._meter.state_dict(),
            # For Trainer's own schedulers: a checkpoint also resumes without ExpTest, from the rate that it found.
            "base_lrs": self._group_rates(self._controller.learning_rate),
            "lr_lambdas": [None] * len(self.base_lrs),
            "searches": self.searches,
            "bound": self.bound,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Continue where `state_dict` was taken, and set the optimizer's rates accordingly. The path of sharded
        parameters, for `window_correction`, begins anew. The state of another scheduler gives its number of steps and
        its highest rates, with a warning.

        Raises:
            `ValueError`: if the state is no scheduler's, or fits another optimizer.
        """
        if not {"last_epoch", "base_lrs"} <= state_dict.keys():
            raise ValueError(
                f"This is not the state of a scheduler with a rate for each group: it has the keys"
                f" {sorted(state_dict)}. A run that began with it must be resumed without ExpTest."
            )
        if len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"The state has {len(state_dict['base_lrs'])} parameter groups, the optimizer {len(self.base_lrs)}."
            )
        self.last_epoch = state_dict["last_epoch"]
        if "controller" in state_dict:
            self._load_own(state_dict)
        else:
            self._take_over(state_dict)
        self._apply()

    def _take_over(self, state_dict: dict[str, Any]) -> None:
        self.base_lrs = list(state_dict["base_lrs"])
        given = self.config.learning_rate
        rate = self.given_rate if given is None else given
        self._controller.take_over(self.last_epoch, rate)
        if self._accelerator is None or self._accelerator.is_main_process:
            logger.warning(
                f"The checkpoint is from {self.last_epoch} steps without ExpTest. It makes no search now: training"
                f" goes on with the learning rate {rate:.2g}, which ExpTest tests and lowers where needed."
            )

    def take_over(self, step: int, learning_rate: float) -> None:
        """Go on at optimizer step `step`, with `learning_rate`, where the state of the steps before is not known."""
        self.last_epoch = step
        self._controller.take_over(step, learning_rate)
        self._agree()
        self._apply()

    def _load_own(self, state_dict: dict[str, Any]) -> None:
        self.base_lrs = list(state_dict["group_lrs"])
        self._controller.load_state_dict(state_dict["controller"])
        self._buffer = list(state_dict["buffer"])
        self._pending = None
        # States of 0.1 have neither.
        self.searches = list(state_dict.get("searches", []))
        self.bound = state_dict.get("bound")
        if self._meter is not None:
            self._meter.load_state_dict(state_dict["path"])


def set_learning_rates(optimizer: Optimizer, rates: Sequence[float | torch.Tensor]) -> None:
    """Give each parameter group its rate, in place where the rate is a tensor that a compiled step may hold."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise a `ValueError` for an optimizer whose learning rate a scheduler cannot or must not move."""
    # Accelerate wraps the user's optimizer; the checks are about the one inside.
    inner = getattr(optimizer, "optimizer", optimizer)
    name = type(inner).__name__
    if "schedulefree" in name.lower():
        raise ValueError(
            f"{name} weights its average by the learning rate and wants it constant; use its plain counterpart (AdamW"
            " or SGD) with ExpTest."
        )
    if name in ("LayerWiseDummyOptimizer", "Lomo", "AdaLomo"):
        raise ValueError(f"{name} updates layers during the backward pass, out of ExpTest's reach; use AdamW or SGD.")
    if any(group.get("relative_step") for group in optimizer.param_groups):
        raise ValueError(
            f"{name} with relative_step=True sets its own learning rate; pass relative_step=False,"
            " scale_parameter=False and lr=1e-3, say."
        )
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    if not any(rate is not None and float(rate) > 0 for rate in rates):
        raise ValueError(
            f"The parameter groups have lr={', '.join(map(repr, rates))}; ExpTest scales the rates that they have, so"
            " at least one must be positive."
        )


def reference_group(rates: Sequence[float]) -> int:
    """The group whose rate ExpTest speaks of: the first that is not frozen by a rate of 0."""
    return next(i for i, rate in enumerate(rates) if rate > 0)


def _trained_parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _stack(losses: list[float | torch.Tensor]) -> torch.Tensor:
    tensors = [x for x in losses if isinstance(x, torch.Tensor)]
    if not tensors:
        return torch.tensor(losses, dtype=torch.float64)
    # After a resume the buffer may begin with floats from the checkpoint.
    return torch.stack([torch.as_tensor(x, dtype=torch.float32, device=tensors[0].device) for x in losses])
