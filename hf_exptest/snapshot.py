# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What training changes, kept in host memory, so that a search before the first step leaves nothing behind."""

from __future__ import annotations

import copy
import random
from types import TracebackType
from typing import Any

import numpy as np
import torch
from transformers import Trainer


class Snapshot:
    """
    Context manager that puts a Trainer back as it was: trained parameters, buffers, optimizer, gradient scaler, random
    states on every device, and the plain counters of the Trainer. Also after an exception or Ctrl-C.

    Frozen parameters are not copied, so a LoRA model costs megabytes.

    Args:
        trainer ([`~transformers.Trainer`]): between its `create_optimizer` and its first step.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._model = trainer.model_wrapped
        assert trainer.optimizer is not None
        # Inside Accelerate's wrapper, whose load_state_dict would move the state by its own rules.
        self._optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)

    def __enter__(self) -> Snapshot:
        self._parameters = [(p, _to_host(p)) for p in self._model.parameters() if p.requires_grad]
        self._buffers = [(b, _to_host(b)) for b in self._model.buffers()]
        self._optimizer_state = _copy_to_host(self._optimizer.state_dict())
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        self._scaler_state = None if scaler is None else copy.deepcopy(scaler.state_dict())
        self._random = _random_states()
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._counters = {k: copy.deepcopy(v) for k, v in vars(self._trainer).items() if _is_plain(v)}
        self._sync_gradients = self._trainer.accelerator.gradient_state.sync_gradients
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.reset_training()
        if self._scaler_state is not None:
            self._trainer.accelerator.scaler.load_state_dict(self._scaler_state)
        for module, mode in self._modes:
            module.training = mode
        vars(self._trainer).update(self._counters)
        self._trainer.accelerator.gradient_state._set_sync_gradients(self._sync_gradients)
        _set_random_states(self._random)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put parameters and buffers back."""
        for tensor, saved in self._parameters + self._buffers:
            tensor.detach().copy_(saved)

    def reset_training(self) -> None:
        """Put parameters, buffers and optimizer back, and drop the gradients."""
        self.reset_parameters()
        self._optimizer.load_state_dict(copy.deepcopy(self._optimizer_state))
        self._optimizer.zero_grad(set_to_none=True)

    def reset_random(self) -> None:
        """Put the random states back, so that every rehearsal draws the same dropout masks."""
        _set_random_states(self._random)

    @torch.no_grad()
    def displacement(self) -> list[torch.Tensor]:
        """Present parameters minus saved ones, one tensor a trained parameter, on its device."""
        return [p.detach() - saved.to(p.device) for p, saved in self._parameters]

    @torch.no_grad()
    def move_along(self, direction: list[torch.Tensor], distance: float) -> None:
        """Set the trained parameters to the saved ones plus `distance * direction`."""
        for (parameter, saved), d in zip(self._parameters, direction, strict=True):
            parameter.detach().copy_(saved.to(d.device) + distance * d)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copy_to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _to_host(value)
    if isinstance(value, dict):
        return {k: _copy_to_host(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_copy_to_host(v) for v in value]
    return copy.deepcopy(value)


def _is_plain(value: Any) -> bool:
    """Whether `value` is a number, a string, or a container of such: the counters that trainers keep."""
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _random_states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_random_states(states: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
