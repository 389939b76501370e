# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What holds for any losses and any valid settings."""

import io
import json
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hf_exptest import ExpTestConfig, ExpTestController, ExpTestScheduler
from hf_exptest.controller import DETECT, TUNE

shares = st.floats(0.0, 0.5)
configs = st.builds(
    ExpTestConfig,
    alpha=st.floats(1e-6, 0.999),
    beta=st.floats(0.01, 0.99),
    warmup=shares,
    cooldown=shares.filter(lambda share: share < 0.5),
    window=st.none() | st.floats(0.01, 1.0),
    autocorrelation=st.booleans(),
)
# Single precision, as the losses of a training are; everything that it has, and long runs of the same.
any_loss = st.floats(width=32)
losses_of_a_run = st.lists(st.tuples(any_loss | st.floats(0.125, 8.0, width=32), st.integers(1, 12)), max_size=30).map(
    lambda runs: [loss for loss, length in runs for _ in range(length)]
)
rates = st.floats(1e-6, 100.0)
phases = st.sampled_from([DETECT, TUNE])
# What looks lead to: after so many steps, the rate times so much.
moves_of_a_run = st.dictionaries(st.integers(0, 300), st.floats(0.01, 100.0) | st.just(1.0), max_size=4)


def run(controller, losses, moves=None):
    rates = []
    for loss in losses:
        if moves is not None and controller.step in moves:
            controller.move(controller.learning_rate * moves[controller.step], "look", 0.01)
        controller.observe(loss)
        rates.append(controller.learning_rate)
    return rates


@given(config=configs, losses=losses_of_a_run, rate=rates, phase=phases, num_steps=st.integers(1, 400))
@example(ExpTestConfig(warmup=0.0, cooldown=0.0, window=0.1), [math.nan, math.nan, 1.0] * 3000, 1.0, TUNE, 9000)
def test_the_rate_is_positive_and_never_rises(config, losses, rate, phase, num_steps):
    controller = ExpTestController(config, rate, num_steps, phase)
    after = run(controller, losses)
    assert all(0 < b <= a <= rate for a, b in zip([rate, *after], after, strict=False))
    assert all(0 <= entry["p_value"] <= 1 for entry in controller.history)


@given(config=configs, losses=losses_of_a_run, rate=rates, phase=phases, moves=moves_of_a_run)
def test_observing_never_raises_the_rate_and_a_move_leads_to_its_own(config, losses, rate, phase, moves):
    controller = ExpTestController(config, rate, 300, phase)
    controller.can_look = True
    for step, loss in enumerate(losses):
        if step in moves:
            before = controller.rate_at(step)
            target = controller.learning_rate * moves[step]
            controller.move(target, "look", 0.01)
            assert controller.learning_rate == target
            assert min(before, target) <= controller.rate_at(step) <= max(before, target) * (1 + 1e-12)
            # Whatever it was, it is reached, and never gone past.
            path = [controller.rate_at(later) for later in range(step, step + 400)]
            assert path == sorted(path)
            assert path[-1] == target
        planned = controller.rate_at(step + 1)
        num_decisions = len(controller.history)
        controller.observe(loss)
        present = controller.rate_at(step + 1)
        if any(entry["decision"] == "decay" for entry in controller.history[num_decisions:]):
            assert 0 < present <= planned * (1 + 1e-12)
        else:
            assert present == planned


@given(config=configs, losses=losses_of_a_run, rate=rates, phase=phases, cut=st.integers(0, 360), moves=moves_of_a_run)
def test_state_through_json_is_the_identity(config, losses, rate, phase, cut, moves):
    whole, first = (ExpTestController(config, rate, 300, phase) for _ in range(2))
    run(whole, losses, moves)
    run(first, losses[:cut], moves)
    second = ExpTestController(config, 2 * rate, 300, phase)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert json.dumps(second.state_dict()) == json.dumps(first.state_dict())
    run(second, losses[cut:], moves)
    # As text, since nothing equals NaN.
    assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())


def make_scheduler(config, rate, ratio):
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": ratio * rate}]
    return ExpTestScheduler(torch.optim.SGD(groups, lr=rate), config, 300)


@given(
    config=configs,
    losses=losses_of_a_run,
    rate=rates,
    ratio=st.floats(1e-3, 1e3),
    flushes=st.sets(st.integers(0, 300)),
)
def test_decisions_do_not_depend_on_how_losses_are_batched(config, losses, rate, ratio, flushes):
    one_by_one, in_batches = (make_scheduler(config, rate, ratio) for _ in range(2))
    for i, loss in enumerate(losses):
        for scheduler in (one_by_one, in_batches):
            scheduler.optimizer.step()
            scheduler.observe(torch.tensor(loss))
            scheduler.step()
        one_by_one.flush()
        if i in flushes:
            in_batches.flush()
    in_batches.flush()
    assert in_batches.history == one_by_one.history
    assert in_batches.get_last_lr() == one_by_one.get_last_lr()


@given(config=configs, losses=losses_of_a_run, rate=rates, ratio=st.floats(1e-3, 1e3))
def test_groups_keep_their_ratio_and_state_survives_a_file(config, losses, rate, ratio):
    scheduler = make_scheduler(config, rate, ratio)
    for loss in losses:
        scheduler.optimizer.step()
        scheduler.observe(loss)
        scheduler.step()
        first, second = (float(group["lr"]) for group in scheduler.optimizer.param_groups)
        assert 0 <= first <= rate
        assert second == pytest.approx(ratio * first, rel=1e-12, abs=0)
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    other = make_scheduler(config, 2 * rate, ratio)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert json.dumps(other.state_dict()) == json.dumps(scheduler.state_dict())
    assert other.get_last_lr() == scheduler.get_last_lr()
