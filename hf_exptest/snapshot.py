# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What training changes, kept in host memory, so that a search leaves nothing behind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from .internals import DeepSpeedState, gradient_callbacks, running_iterators, warn_above_bar
from .places import Places
from .processes import own_part

logger = logging.get_logger(__name__)

# Frozen tensors, buffers and the like are copied up to this share of what is trained (a teacher that follows the
# student, and one more), the small ones first, and up to so many bytes in any case: observers, codebooks, queues.
_MOST_BESIDE_TRAINED = 2
_SPARE_BYTES = 2**25
# A larger table of integers is a quantised weight, not a counter: it is not copied, only watched.
_LARGE_INTEGERS = 2**20
_NUM_SUMS = 64
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_DEVICES = ("cuda", "xpu", "mps", "npu")


class NotRestored(RuntimeError):
    """The search changed something that it cannot put back."""


class Snapshot:
    """
    Context manager that puts a Trainer back as it was, also after an exception or Ctrl-C: the parameters of the model
    and of the optimizer, also those outside the model, buffers, the optimizer, the gradient scaler, random states on
    every device, and what the user's own objects hold: counters, lists, generators of the data (see [`Places`]).

    Each process keeps what it owns: its shard under FSDP2 and DeepSpeed.

    Host memory: a copy of what is trained and of the optimizer's state; and of all else, the small first, up to twice
    the bytes that are trained plus 32 MiB, so that a teacher that follows the student is among it. The base of a LoRA
    model is larger and is not copied, so it costs megabytes. What is not copied is watched.

    Args:
        trainer ([`~transformers.Trainer`]): after its `create_optimizer`.
        callbacks (`Sequence[TrainerCallback]`, *optional*): the Trainer's; the state of those that a step calls is
            kept too.

    Raises:
        `NotRestored`: on leaving, naming what has changed without having been copied.

    Attributes:
        places ([`Places`]): what is kept besides tensors; its `consumable` names what a search would use up for good.
    """

    def __init__(self, trainer: Trainer, callbacks: Sequence[TrainerCallback] = ()) -> None:
        self._trainer = trainer
        self._model = trainer.model_wrapped
        self.places = _places(trainer, callbacks, whole=not trainer.is_deepspeed_enabled)

    def __enter__(self) -> Snapshot:
        trainer = self._trainer
        self._random = random_states(trainer.args.device)
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._engine = DeepSpeedState(trainer) if trainer.is_deepspeed_enabled else None
        self._tensors = _Tensors(self.places.tensors)
        # A trial goes on with the scale that the one before it has found.
        scaler = Places()
        if getattr(trainer.accelerator, "scaler", None) is not None:
            scaler.add_attributes("scaler", trainer.accelerator.scaler)
        self._scaler, self._scaler_tensors = scaler, _Tensors(scaler.tensors)
        # From now on, copies are moved in the place of iterators.
        self.places.restore()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._engine is not None and exc is not None and self._trainer.accelerator.num_processes > 1:
            # DeepSpeed puts weights back with all processes together. Those without an error would never get here, and
            # it is the error that the user should see.
            warn_above_bar(
                logger,
                "An error ended ExpTest's search with DeepSpeed; the weights are not put back, load them again.",
            )
            return
        self.reset()
        if self._engine is not None:
            self._engine.close()
        self.places.close()
        self._scaler.restore()
        self._scaler_tensors.restore()
        for module, mode in self._modes:
            module.training = mode
        self.check()
        different = self._tensors.different()
        if different:
            warn_above_bar(
                logger, f"ExpTest put {_listed(different)} back after its search, but not to the same values."
            )

    def reset(self) -> None:
        """
        Put everything back but the gradient scaler, gradients too. And the random states, so that every trial draws
        the same dropout masks.
        """
        for module in self._model.modules():
            # After a forward pass alone, FSDP2 keeps some parameters whole, and would go on with those.
            if isinstance(module, FSDPModule):
                module.reshard()
        self.places.restore()
        self._tensors.restore()
        if self._engine is not None:
            self._engine.reset()
        self.reset_random()

    def reset_random(self) -> None:
        """Put the random states back."""
        set_random_states(self._random)

    def check(self) -> None:
        """Raise [`NotRestored`] if something was not put back, or has changed that was not copied."""
        if self.places.failed:
            raise NotRestored(
                f"The search could not put {_listed(self.places.failed)} back, of the user's own objects; weights and"
                " optimizer are as they were. Give the rate: ExpTestCallback(learning_rate=...)."
            )
        changed = self._tensors.changed()
        if changed:
            raise NotRestored(
                f"The search has changed {_listed(changed)}, which it did not copy since they are frozen and large, so"
                " the weights are no longer as they came. Load the model again and give the rate:"
                " ExpTestCallback(learning_rate=...)."
            )


def _places(trainer: Trainer, callbacks: Sequence[TrainerCallback], whole: bool) -> Places:
    """Everything of a Trainer that a step, or reading a batch, may change; but for DeepSpeed's, if not `whole`."""
    places = Places()
    if not whole:
        engine: Any = trainer.model_wrapped
        # It can be reached through its hooks, too.
        places.skip(engine)
        for tensor in (*engine.parameters(), *(p for group in engine.optimizer.param_groups for p in group["params"])):
            places.skip(tensor)
    places.skip(trainer)
    for iterator in running_iterators(trainer.callback_handler.train_dataloader):
        places.skip(iterator)
    places.add("model", trainer.model)
    data = trainer.train_dataset, trainer.data_collator, trainer.callback_handler.train_dataloader
    for name, source in zip(("train_dataset", "data_collator", "train_dataloader"), data, strict=True):
        places.add(name, source, is_data=True)
    # Only now, since it may be that of the training, or hold it.
    places.skip(trainer.eval_dataset)
    if whole:
        places.add("optimizer", getattr(trainer.optimizer, "optimizer", trainer.optimizer))
        # Accelerate's wrapper has counters of its own.
        places.add_attributes("accelerated_optimizer", trainer.optimizer)
    for owner in (trainer, trainer.state, trainer.control):
        places.add_attributes(type(owner).__name__, owner)
    # The others are not called. Their threads go on meanwhile, and what these have done must stay done.
    for callback in gradient_callbacks(callbacks):
        places.add(type(callback).__name__, callback)
    return places


@dataclass
class _Copied:
    name: str
    tensor: torch.Tensor
    saved: torch.Tensor
    requires_grad: bool
    # Of a parameter outside the model, whose gradients Trainer's `model.zero_grad()` does not drop.
    gradient: torch.Tensor | None
    saved_gradient: torch.Tensor | None


@dataclass
class _Watched:
    name: str
    tensor: torch.Tensor
    mark: tuple[Any, ...]


class _Tensors:
    """Tensors that may change: copies of what is trained and of what is small, and an eye on the rest."""

    def __init__(self, found: Sequence[tuple[str, torch.Tensor]]) -> None:
        found = [(name, t) for name, t in found if _is_plain(t)]
        trained = {id(t) for name, t in found if t.requires_grad or name.startswith("optimizer.")}
        room = _SPARE_BYTES + _MOST_BESIDE_TRAINED * sum(_nbytes(t) for _, t in found if t.requires_grad)
        self._copied: list[_Copied] = []
        self._watched: list[_Watched] = []
        for name, tensor in sorted(found, key=lambda item: (id(item[1]) not in trained, _nbytes(item[1]))):
            size = _nbytes(tensor)
            is_weight = not tensor.is_floating_point() and not tensor.is_complex() and size > _LARGE_INTEGERS
            if id(tensor) not in trained:
                if is_weight or size > room:
                    self._watched.append(_Watched(name, tensor, _mark(tensor)))
                    continue
                room -= size
            gradient = tensor.grad if tensor.is_leaf else None
            saved_gradient = None if gradient is None else _saved(gradient)
            self._copied.append(_Copied(name, tensor, _saved(tensor), tensor.requires_grad, gradient, saved_gradient))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values back, and the gradients, of which there are none between two steps in a usual training."""
        for copied in self._copied:
            _put_back(copied.tensor, copied.saved)
            if copied.tensor.is_leaf:
                copied.tensor.requires_grad_(copied.requires_grad)
                if copied.gradient is not None and copied.saved_gradient is not None:
                    _put_back(copied.gradient, copied.saved_gradient)
                copied.tensor.grad = copied.gradient

    def changed(self) -> list[str]:
        """Names of watched tensors that have changed."""
        return [watched.name for watched in self._watched if _mark(watched.tensor) != watched.mark]

    def different(self) -> list[str]:
        """Names of copied tensors that differ from their copies, bit by bit."""
        return [copied.name for copied in self._copied if not _is_same(own_part(copied.tensor), copied.saved)]


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether values lie in memory one by one; others are not touched."""
    return tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized


def _saved(tensor: torch.Tensor) -> torch.Tensor:
    return own_part(tensor).to("cpu", copy=True)


def _nbytes(tensor: torch.Tensor) -> int:
    return own_part(tensor).nbytes


def _put_back(tensor: torch.Tensor, saved: torch.Tensor) -> None:
    here = own_part(tensor)
    if here.shape != saved.shape or here.dtype != saved.dtype:
        # Resized meanwhile, as observers of quantisation-aware training are by their first batch.
        tensor.data = saved.to(here.device, copy=True)
    elif not _is_expanded(here):
        with torch.inference_mode(here.is_inference()):
            here.copy_(saved)
    elif not _is_same(here, saved):
        tensor.data = saved.to(here.device, copy=True)


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Whether several elements share a place in memory, as after `expand`, so that nobody can write to them."""
    return tensor.nbytes > tensor.untyped_storage().nbytes() or any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _is_same(tensor: torch.Tensor, saved: torch.Tensor) -> bool:
    """Whether all bits are equal, those of NaN too."""
    values = tensor.detach().to("cpu")
    if values.shape != saved.shape or values.dtype != saved.dtype:
        return False
    return torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (values, saved)))


def _mark(tensor: torch.Tensor) -> tuple[Any, ...]:
    """
    What tells whether a tensor was rebound, resized or given other values: its place, and sums over its bits.

    Not its version: DDP writes every buffer anew in each forward pass, with the values that it has.
    """
    here = own_part(tensor)
    if not here.is_contiguous():
        here = torch.empty(0, dtype=here.dtype, device=here.device).set_(here.untyped_storage())
    words = here.reshape(-1).view(_INTEGERS.get(here.element_size(), torch.int64))
    even = len(words) - len(words) % _NUM_SUMS
    sums = words[:even].view(_NUM_SUMS, -1).sum(1).tolist() if even else []
    return here.data_ptr(), tuple(tensor.shape), tensor.dtype, sums, int(words[even:].sum())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def random_states(device: torch.device) -> tuple[Any, ...]:
    """The random states of Python, NumPy and torch, on the CPU, on `device`, and on all others that are there."""
    on_devices = []
    for kind in dict.fromkeys((device.type, *_DEVICES)):
        module: Any = getattr(torch, kind, None)
        if hasattr(module, "get_rng_state") and module.is_available():
            one_or_all = "_all" if hasattr(module, "get_rng_state_all") else ""
            state = getattr(module, f"get_rng_state{one_or_all}")()
            on_devices.append((getattr(module, f"set_rng_state{one_or_all}"), state))
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_devices


def set_random_states(states: tuple[Any, ...]) -> None:
    """The inverse of [`random_states`]."""
    python, numpy, cpu, on_devices = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    for set_state, state in on_devices:
        set_state(state)
