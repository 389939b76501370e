# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What is known of a learning rate that was tried."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trial:
    """
    One tried learning rate: a few steps of rise, then a linear fall to zero.

    Attributes:
        learning_rate (`float`): peak rate of the first parameter group that is trained.
        num_steps (`int`): length of the trial in optimizer steps.
        curve (`list[float]`): loss of each step that was made; all trials of a look see the same batches.
        end_losses (`list[float]`): loss after the trial on each held-out batch; infinite if it diverged.
        movement (`float`, *optional*): how far the trial has moved what is trained, over the size of that (Euclidean
            norms, of a sample); `None` if it diverged, or where no process sees weights.

    Example:

        >>> from hf_exptest import Trial
        >>> trial = Trial(0.1, 2, curve=[0.8, 0.6], end_losses=[0.4, 0.6])
        >>> trial.end_loss, trial.outcome
        (0.5, 'ended')
    """

    learning_rate: float
    num_steps: int
    curve: list[float]
    end_losses: list[float]
    movement: float | None = None

    @property
    def end_loss(self) -> float:
        """Mean of `end_losses`."""
        return float(np.mean(self.end_losses))

    @property
    def outcome(self) -> str:
        """Whether it "ended" or "diverged"."""
        return "ended" if np.isfinite(self.end_loss) else "diverged"
