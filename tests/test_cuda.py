# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What only a GPU has: its own random states, half precision with a gradient scaler, and waiting for the device."""

import warnings

import pytest
import torch
from toys import GivenRates, ToyClassifier, assert_same_weights, logged, make_trainer, weights

from hf_exptest import ExpTestCallback

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}], ids=["fp32", "bf16", "fp16"])
def test_a_run_with_a_look_is_a_plain_one_with_its_rates(tmp_path, precision):
    callback = ExpTestCallback()
    looked = make_trainer(tmp_path, [callback], use_cpu=False, **precision)
    looked.train()
    assert callback.search.is_conclusive
    assert [entry["test"] for entry in callback.history] == ["below_bound", "look"]
    rates = logged(looked, "learning_rate")
    plain = make_trainer(tmp_path, [GivenRates(rates)], use_cpu=False, **precision)
    plain.train()
    assert next(looked.model.parameters()).is_cuda
    # Dropout draws on the GPU, and a scale that the look has left behind would skip other steps.
    assert logged(looked, "loss") == logged(plain, "loss")
    assert_same_weights(weights(looked.model), weights(plain.model))


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
