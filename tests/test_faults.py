# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What a training does when its losses go wrong: no exception, no bad rate, the right reaction, and a word said."""

import math
import random

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from toys import make_trainer

from hf_exptest import ExpTestCallback, ExpTestScheduler

NUM_STEPS = 80
# Warm-up to step 8; windows that end at 38 and 68; cool-down.
SETTINGS = {"learning_rate": 0.02, "warmup": 0.1, "cooldown": 0.15, "window": 0.375}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train while each loss that is observed goes through `fault(step, loss)`; steps are counted from 0."""

    def run(fault, **settings):
        observe = ExpTestScheduler.observe
        monkeypatch.setattr(
            ExpTestScheduler,
            "observe",
            lambda self, loss: observe(
                self, torch.as_tensor(fault(self.last_epoch, float(loss)), dtype=torch.float32)
            ),
        )
        callback = ExpTestCallback(**{**SETTINGS, **settings})
        trainer = make_trainer(tmp_path, [callback], max_steps=NUM_STEPS)
        trainer.train()
        rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
        assert len(rates) == NUM_STEPS
        assert np.isfinite(rates).all()
        assert min(rates) > 0
        return [(entry["step"], entry["test"], entry["decision"]) for entry in callback.history]

    return run


FALLING = [(38, "slope", "continue"), (68, "slope", "continue")]


def falling(step):
    return 2.0 * math.exp(-step / 40) + 0.02 * math.sin(7 * step)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e6])
@pytest.mark.parametrize("seed", range(6))
def test_one_bad_loss_at_a_random_step_changes_no_decision(train, bad, seed):
    # A high loss that begins or ends a window might be part of a slope.
    step = random.Random(seed).choice([s for s in range(NUM_STEPS) if s not in (8, 37, 38, 67)])
    assert train(lambda s, loss: bad if s == step else falling(s)) == FALLING


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [0, 4, 20, 50, 75])
def test_divergence_lowers_the_rate_once_and_is_warned_of(train, caplog, bad, step):
    with caplog.at_level("WARNING", logger="hf_exptest"):
        decided = train(lambda s, loss: bad if s >= step else falling(s))
    assert [entry for entry in decided if entry[1] == "divergence"] == [(step + 2, "divergence", "decay")]
    assert f"step {step + 2}: loss is not finite, so the weights may be lost: learning rate" in caplog.text


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_decisions_do_not_depend_on_the_scale_of_the_loss(train, scale):
    assert train(lambda s, loss: scale * falling(s)) == FALLING


@pytest.mark.parametrize("value", [0.0, 0.7, 1e-30, 1e30, -3.0])
def test_a_loss_that_never_moved_tells_nothing(train, value):
    assert train(lambda s, loss: value) == [(38, "slope", "undecided"), (68, "slope", "undecided")]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_loss_that_fell_and_stands_still_lowers_the_rate_at_the_end_of_each_window(train, scale):
    # The first decay makes the second window longer: it takes what is left.
    decided = train(lambda s, loss: scale * (1 + 2 * (s < 8) + 0.02 * (-1) ** s))
    assert decided == [(38, "slope", "decay"), (68, "slope", "decay")]


def test_a_spike_is_warned_of(train, caplog):
    with caplog.at_level("WARNING", logger="hf_exptest"):
        train(lambda s, loss: 1e6 if s == 20 else falling(s))
    assert "over 29 steps, 1 left out): learning rate stays 0.02" in caplog.text


def test_skipped_optimizer_steps_are_not_observed(tmp_path, monkeypatch):
    # As a gradient scaler does in half precision: the loss of the step was infinite, and the optimizer made none.
    skipped = {3, 20, 21, 22, 50}
    calls = {"n": -1}
    step = AcceleratedOptimizer.step

    def skipping(self, *args, **kwargs):
        calls["n"] += 1
        if calls["n"] not in skipped:
            step(self, *args, **kwargs)

    monkeypatch.setattr(AcceleratedOptimizer, "step", skipping)
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda self: calls["n"] in skipped))
    observe = ExpTestScheduler.observe
    monkeypatch.setattr(
        ExpTestScheduler, "observe", lambda self, x: observe(self, x * math.inf if calls["n"] in skipped else x)
    )
    callback = ExpTestCallback(**SETTINGS)
    trainer = make_trainer(tmp_path, [callback], max_steps=NUM_STEPS)
    trainer.train()
    assert calls["n"] == NUM_STEPS - 1
    assert trainer.lr_scheduler.last_epoch == NUM_STEPS - len(skipped)
    assert [entry["test"] for entry in callback.history] == ["slope", "slope"]
    assert all(entry["left_out"] == 0 for entry in callback.history)
