# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The loss of one optimizer step, as the optimizer sees it: the sum of what its micro-batches back-propagate."""

from __future__ import annotations

import torch


class LossSignal:
    """
    Sums, on the device, what `Trainer.training_step` returns for the micro-batches of one optimizer step.

    Label smoothing, `compute_loss_func`, `num_items_in_batch` and the scaling for gradient accumulation are already in
    these numbers, so their sum is this process's objective; its mean over processes is the true one.
    """

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None

    def clear(self) -> None:
        """Forget the micro-batches so far."""
        self._sum = None

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of one micro-batch (0-dim tensor)."""
        loss = loss.detach().float()
        self._sum = loss if self._sum is None else self._sum + loss

    def take(self) -> torch.Tensor | None:
        """The sum since the last call, or `None` if nothing was added."""
        loss, self._sum = self._sum, None
        return loss
