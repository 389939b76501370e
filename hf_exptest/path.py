# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Path length over net displacement of the parameters, measured on a fixed sample of their coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


class PathMeter:
    """
    Measures how crooked the way of the parameters is: path length over net displacement, S / |V| in the paper.

    For SGD at a constant rate this is the paper's `sum |g_t| / |sum g_t|`, since each step moves by `-eta * g_t`. The
    path is defined for every optimizer, needs no gradient, and is estimated on a sample, so that no buffer is as large
    as the model.

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
            for p in self._parameters
        ]
        self.reset()

    def reset(self) -> None:
        """Begin a new path at the present parameters."""
        self._start = self._last = self._sample()
        self._length = [torch.zeros((), device=x.device) for x in self._start[:1]]

    def record(self) -> None:
        """Add the step from the last recorded parameters to the present ones. No device-to-host copy."""
        if not self._parameters:
            return
        current = self._sample()
        self._length[0] = self._length[0] + _distance(current, self._last)
        self._last = current

    def ratio(self) -> float:
        """Path length over net displacement, at least 1; 1 where nothing moved. Copies one number to the host."""
        if not self._parameters:
            return 1.0
        length = self._length[0]
        ratio = torch.where(length > 0, length / _distance(self._last, self._start), 1.0).item()
        return max(1.0, ratio)

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        """The path so far, as tensors."""
        return {"start": self._start, "last": self._last, "length": self._length}

    def load_state_dict(self, state: dict[str, list[torch.Tensor]]) -> None:
        """Continue the path of `state_dict`."""
        for name, here in (("start", self._start), ("last", self._last), ("length", self._length)):
            shapes = [tuple(x.shape) for x in here], [tuple(x.shape) for x in state[name]]
            if shapes[0] != shapes[1]:
                raise ValueError(f"The saved path has {name} of shapes {shapes[1]}, these parameters {shapes[0]}.")
        self._start = [x.to(y.device) for x, y in zip(state["start"], self._start, strict=True)]
        self._last = [x.to(y.device) for x, y in zip(state["last"], self._last, strict=True)]
        self._length = [x.to(y.device) for x, y in zip(state["length"], self._length, strict=True)]

    @torch.no_grad()
    def _sample(self) -> list[torch.Tensor]:
        values = [
            p.detach().flatten() if index is None else p.detach().flatten()[index]
            for p, index in zip(self._parameters, self._indices, strict=True)
        ]
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for value in values:
            by_device.setdefault(value.device, []).append(value.float())
        return [torch.cat(group) for group in by_device.values()]


def _distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    device = a[0].device
    squares = [(x - y).square().sum().to(device) for x, y in zip(a, b, strict=True)]
    return torch.stack(squares).sum().sqrt()
