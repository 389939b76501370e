# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Every touch of what Trainer, Accelerate and torch do not promise to keep, each with the reason. The day one of them
changes, this file changes.

Checked with transformers 5.0.0 to 5.24.0, accelerate 1.10.1 to 1.15.0 and torch 2.6.0 to 2.14.1.
"""

from __future__ import annotations

import inspect

from transformers import Trainer, TrainerCallback


def find_trainer(callback: TrainerCallback) -> Trainer | None:
    """The Trainer that is calling `callback`: callback events do not carry it, but it stands in the call stack."""
    frame = inspect.currentframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer) and callback in candidate.callback_handler.callbacks:
            return candidate
        frame = frame.f_back
    return None
