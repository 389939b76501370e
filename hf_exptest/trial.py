# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What is known of a learning rate that was tried."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trial:
    """
    One tried learning rate: the whole schedule in a few steps.

    Attributes:
        learning_rate (`float`): peak rate of the first parameter group that is trained.
        num_steps (`int`): length of the trial in optimizer steps.
        times (`list[float]`): accumulated learning rate before each step that was made.
        curve (`list[float]`): loss of each step minus the untouched model's loss on the same batch.
        end_losses (`list[float]`): loss after the trial on each held-out batch; infinite if it diverged.
        p_value (`float`): exponential test of the curve against accumulated learning rate.

    Example:

        >>> from hf_exptest import Trial
        >>> trial = Trial(0.1, 2, times=[0.0, 0.1], curve=[0.0, -0.2], end_losses=[0.4, 0.6], p_value=0.02)
        >>> trial.end_loss
        0.5
    """

    learning_rate: float
    num_steps: int
    times: list[float]
    curve: list[float]
    end_losses: list[float]
    p_value: float

    @property
    def end_loss(self) -> float:
        """Mean of `end_losses`."""
        return float(np.mean(self.end_losses))
