# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Path length over net displacement of the parameters, measured on a fixed sample of their coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from .processes import own_part


class PathMeter:
    """
    Measures how crooked the way of the parameters is: path length over net displacement, S / |V| in the paper.

    For SGD at a constant rate this is the paper's `sum |g_t| / |sum g_t|`, since each step moves by `-eta * g_t`. The
    path is defined for every optimizer, needs no gradient, and is estimated on a sample, so that no buffer is as large
    as the model. Sharded parameters are sampled shard by shard, without communication.

    Args:
        parameters (iterable of `torch.Tensor`): the trained parameters.
        max_coordinates (`int`, *optional*, defaults to 100000):
            Size of the sample over all tensors, in proportion to their sizes (at least one each). A model with no more
            coordinates is measured whole.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], max_coordinates: int = 100_000) -> None:
        self._parameters = [p for p in parameters if p.requires_grad and p.numel() > 0]
        total = sum(p.numel() for p in self._parameters)
        share = min(1.0, max_coordinates / max(total, 1))
        # A generator of its own: measuring must not move the random state of the training.
        generator = torch.Generator().manual_seed(0)
        self._indices = [
            None
            if share == 1.0
            else torch.randint(p.numel(), (math.ceil(share * p.numel()),), generator=generator).to(p.device)
            for p in map(own_part, self._parameters)
        ]
        self.reset()

    def reset(self) -> None:
        """Begin a new path at the present parameters."""
        self._start = self._last = self._sample()
        self._pending: list[torch.Tensor] = []
        self._length = self._displacement = 0.0

    def record(self) -> None:
        """Add the step from the last recorded parameters to the present ones. No device-to-host copy."""
        current = self._sample()
        self._pending.append(_squared_distance(current, self._last))
        self._last = current

    def partial_sums(self) -> list[torch.Tensor]:
        """
        Squared length of each step that `take` has not had yet, and of the displacement, as this process sees them.
        Their mean over processes gives the right ratio for replicated parameters, and for sharded ones, where sums of
        squares add.
        """
        return [*self._pending, _squared_distance(self._last, self._start)]

    def distance_and_size(self) -> list[torch.Tensor]:
        """Squares of how far the present parameters are from the start, and of its size; as `partial_sums`."""
        nothing = [torch.zeros_like(x) for x in self._start]
        return [_squared_distance(self._sample(), self._start), _squared_distance(self._start, nothing)]

    def take(self, sums: Sequence[float]) -> None:
        """Take back what `partial_sums` gave, as numbers, and after reduction where there are several processes."""
        self._length += sum(math.sqrt(x) for x in sums[:-1])
        self._displacement = math.sqrt(sums[-1])
        self._pending = []

    def ratio(self) -> float:
        """Path length over net displacement of what `take` had, at least 1; 1 where nothing moved."""
        if self._length == 0:
            return 1.0
        return max(1.0, self._length / self._displacement) if self._displacement > 0 else math.inf

    def state_dict(self) -> dict[str, Any] | None:
        """The path so far, as tensors and numbers; `None` for shards, of which this process has but a part."""
        if any(isinstance(p, DTensor) for p in self._parameters):
            return None
        return {
            "start": self._start,
            "last": self._last,
            "pending": [float(x) for x in self._pending],
            "length": self._length,
            "displacement": self._displacement,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue the path of `state_dict`; `None` begins a new one."""
        if state is None:
            self.reset()
            return
        for name, here in (("start", self._start), ("last", self._last)):
            shapes = [tuple(x.shape) for x in here], [tuple(x.shape) for x in state[name]]
            if shapes[0] != shapes[1]:
                raise ValueError(f"The saved path has {name} of shapes {shapes[1]}, these parameters {shapes[0]}.")
        self._start = [x.to(y.device) for x, y in zip(state["start"], self._start, strict=True)]
        self._last = [x.to(y.device) for x, y in zip(state["last"], self._last, strict=True)]
        self._pending = [torch.tensor(x) for x in state["pending"]]
        self._length = state["length"]
        self._displacement = state["displacement"]

    @torch.no_grad()
    def _sample(self) -> list[torch.Tensor]:
        values = [
            p.flatten() if index is None else p.flatten()[index]
            for p, index in zip(map(own_part, self._parameters), self._indices, strict=True)
        ]
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for value in values:
            # A complex number is two coordinates.
            value = torch.view_as_real(value).flatten() if value.is_complex() else value
            by_device.setdefault(value.device, []).append(value.float())
        return [torch.cat(group) for group in by_device.values()]


def _squared_distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    if not a:
        return torch.zeros(())
    squares = [(x - y).square().sum().to(a[0].device) for x, y in zip(a, b, strict=True)]
    return torch.stack(squares).sum()
