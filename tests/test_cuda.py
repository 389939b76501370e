# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What only a GPU has: its own random states, half precision with a gradient scaler, and waiting for the device."""

import warnings

import pytest
import torch
from toys import ToyClassifier, assert_same_weights, make_trainer, weights

from hf_exptest import ExpTestCallback

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}], ids=["fp32", "bf16", "fp16"])
def test_training_after_the_search_equals_training_with_the_rate_given(tmp_path, precision):
    searched = ExpTestCallback()
    first = make_trainer(tmp_path, [searched], use_cpu=False, **precision)
    first.train()
    assert searched.search.is_conclusive
    given = ExpTestCallback(learning_rate=searched.search.learning_rate)
    second = make_trainer(tmp_path, [given], use_cpu=False, **precision)
    second.train()
    assert next(first.model.parameters()).is_cuda
    # Dropout draws on the GPU, and a scale that the search has left behind would skip other steps.
    assert_same_weights(weights(first.model), weights(second.model))
    assert searched.history[1:] == given.history


def num_syncs(path, callbacks, num_steps):
    """How often a training makes the host wait for the device."""
    trainer = make_trainer(
        path, callbacks, model=ToyClassifier(), use_cpu=False, max_steps=num_steps, logging_strategy="no"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def test_the_host_waits_for_the_device_once_in_many_steps(tmp_path):
    plain = num_syncs(tmp_path, [], 320)
    added = num_syncs(tmp_path, [ExpTestCallback(learning_rate=1e-3)], 320) - plain
    assert plain > 0
    # One transfer for up to 32 losses, and one more at each end of a window.
    assert 320 // 32 <= added <= 320 // 32 + 10
