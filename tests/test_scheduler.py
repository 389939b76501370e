# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import io

import numpy as np
import pytest
import torch
from torch import nn
from toys import FakeAccelerator

from hf_exptest import ExpTestConfig, ExpTestScheduler
from hf_exptest.controller import _MIN_RISE, _RISE_SHARE
from hf_exptest.scheduler import BELOW_BOUND, CHECK_INTERVAL

OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1),
    "sgd_momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.1),
    "tensor_lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.1)),
}
PAPER = ExpTestConfig.paper(window_correction=False)


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def make_optimizer(name, model, ratio=10.0):
    first, second = model[0].parameters(), model[2].parameters()
    groups = [{"params": first}, {"params": second, "lr": 0.1 * ratio}]
    return OPTIMIZERS[name](groups)


def flat_losses(n, seed=0):
    return (2.0 + 0.1 * np.random.default_rng(seed).standard_normal(n)).tolist()


def decaying_losses(n):
    return (2.0 * np.exp(-np.arange(n) / (n / 4)) + 0.5).tolist()


def feed(scheduler, losses):
    for loss in losses:
        scheduler.optimizer.step()
        scheduler.observe(loss)
        scheduler.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_decay_moves_all_groups_and_keeps_their_ratio(name):
    optimizer = make_optimizer(name, make_model())
    scheduler = ExpTestScheduler(optimizer, PAPER)
    window = round(2 * 2**0.5 * flat_losses(1)[0] / (0.1 * np.e))
    feed(scheduler, flat_losses(window - 1))
    assert scheduler.get_last_lr() == pytest.approx([0.1, 1.0])
    feed(scheduler, flat_losses(window)[-1:])
    assert [e["decision"] for e in scheduler.history] == ["decay"]
    assert scheduler.get_last_lr() == pytest.approx([0.1 / 3, 1 / 3])
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.1 / 3, 1 / 3])
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == (name == "tensor_lr")


def test_decision_takes_effect_at_the_next_step_not_at_observe():
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), PAPER)
    window = round(2 * 2**0.5 * 2.0 / (0.1 * np.e))
    feed(scheduler, [2.0, *flat_losses(window - 2)])
    scheduler.observe(2.0)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.1)
    scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(0.1 / 3)


def test_step_without_observation_changes_nothing_and_observe_replaces():
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), PAPER)
    scheduler.observe(float("nan"))
    scheduler.observe(1.0)
    for _ in range(4):
        scheduler.step()
    assert scheduler.last_epoch == 1
    scheduler.flush()
    assert scheduler.history == []


def test_warmup_hold_and_cooldown():
    config = ExpTestConfig(warmup=0.2, cooldown=0.5, learning_rate=0.4)
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), config, num_training_steps=10)
    rates = []
    for loss in decaying_losses(10):
        rates.append(scheduler.get_last_lr()[0])
        feed(scheduler, [loss])
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.4, 0.4, 0.32, 0.24, 0.16, 0.08])
    assert scheduler.get_last_lr() == [0.0, 0.0]


# Warm-up to step 20, one window from there to the cool-down at step 100.
LOOKS = ExpTestConfig(warmup=0.1, cooldown=0.5, window=0.4)


def below_bound(config=LOOKS, rate=0.02):
    """A scheduler that starts far below the bound, for a run of 200 steps."""
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), config, num_training_steps=200)
    scheduler.start(rate, detect=False, reason=BELOW_BOUND)
    return scheduler


def test_a_look_is_wanted_at_the_end_of_the_warm_up_and_once():
    scheduler = below_bound()
    wanted = [scheduler.wants_look]
    for loss in np.linspace(3, 2, 20):
        feed(scheduler, [torch.tensor(loss)])
        wanted.append(scheduler.wants_look)
    assert wanted == [False] * 20 + [True]
    scheduler.move(0.06, "look", 0.01)
    assert [(e["step"], e["test"], e["decision"]) for e in scheduler.history] == [
        (0, BELOW_BOUND, "start"),
        (20, "look", "raise"),
    ]
    feed(scheduler, np.linspace(2, 1, 180))
    assert not scheduler.wants_look


def test_without_a_warm_up_the_look_is_wanted_at_once():
    assert below_bound(ExpTestConfig(warmup=0.0)).wants_look


@pytest.mark.parametrize("reason", ["first_update_bound", "training_arguments", "given", None])
def test_other_starts_want_no_look(reason):
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), LOOKS, num_training_steps=200)
    if reason is not None:
        scheduler.start(0.02, detect=False, reason=reason)
    for loss in np.linspace(3, 2, 200):
        assert not scheduler.wants_look
        feed(scheduler, [loss])


def test_after_a_fallback_no_look_is_wanted():
    scheduler = below_bound()
    feed(scheduler, np.linspace(3, 2, 20))
    scheduler.move(0.005, "training_arguments")
    assert [(e["test"], e["decision"], e["step"], e["p_value"]) for e in scheduler.history[1:]] == [
        ("training_arguments", "start", 20, None)
    ]
    assert not scheduler.wants_look
    assert scheduler.get_last_lr() == pytest.approx([0.005, 0.05])


def test_a_rate_lowered_in_the_warm_up_wants_its_look_all_the_same():
    scheduler = below_bound()
    feed(scheduler, [3.0] * 5 + [float("nan")] * 2 + [3.0] * 12)
    scheduler.flush()
    assert [e["decision"] for e in scheduler.history] == ["start", "decay"]
    assert not scheduler.wants_look
    feed(scheduler, [3.0])
    assert scheduler.wants_look


@pytest.mark.parametrize("can_look", [True, False])
def test_a_loss_that_stands_still_wants_a_look_where_it_may(can_look):
    scheduler = below_bound()
    scheduler.allow_looks(can_look)
    feed(scheduler, np.linspace(3, 1, 20))
    scheduler.move(0.02, "look", 0.4)
    losses = 1 + 0.01 * np.random.default_rng(0).standard_normal(80)
    feed(scheduler, [torch.tensor(loss) for loss in losses[:-1]])
    assert not scheduler.wants_look
    feed(scheduler, [torch.tensor(losses[-1])])
    assert scheduler.wants_look == can_look
    last = scheduler.history[-1]
    assert (last["step"], last["decision"]) == (100, "look" if can_look else "decay")
    assert last["learning_rate"] == pytest.approx(0.02 if can_look else 0.02 / 3)
    scheduler.move(scheduler.learning_rate, "look", 1.0)
    assert not scheduler.wants_look


def test_no_look_is_wanted_after_the_last_step():
    scheduler = below_bound(ExpTestConfig(warmup=0.9, cooldown=0.0))
    feed(scheduler, [2.0] * 199)
    assert scheduler.wants_look
    feed(scheduler, [2.0])
    assert not scheduler.wants_look


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rate", [0.5, 0.004])
def test_a_move_sets_the_rates_of_all_groups(name, rate):
    optimizer = make_optimizer(name, make_model())
    scheduler = ExpTestScheduler(optimizer, LOOKS, num_training_steps=200)
    scheduler.start(0.02, detect=False, reason=BELOW_BOUND)
    feed(scheduler, [torch.tensor(2.0)] * 30)
    scheduler.move(rate, "look", 0.01)
    # Losses that were not yet handed over belong to the rate before.
    assert scheduler.history[-1]["step"] == 30
    length = max(_MIN_RISE, 20 * _RISE_SHARE)
    first = rate if rate < 0.02 else 0.02 + (rate - 0.02) / length
    assert scheduler.get_last_lr() == pytest.approx([first, 10 * first])
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([first, 10 * first])
    feed(scheduler, [torch.tensor(2.0)] * 60)
    assert scheduler.get_last_lr() == pytest.approx([rate, 10 * rate])


def test_previous_rate_is_that_of_the_step_before_also_while_it_rises():
    scheduler = below_bound()
    used = []
    for step, loss in enumerate(np.linspace(3, 1, 200)):
        if step == 20:
            scheduler.move(0.06, "look", 0.01)
            assert scheduler.previous_rate == pytest.approx(0.02)
        used.append(scheduler.get_last_lr()[0])
        feed(scheduler, [loss])
        assert scheduler.previous_rate == pytest.approx(used[-1])
    # A start far below the bound needs no long rise.
    assert used[:20] == pytest.approx([0.02 * min(1, (step + 1) / 5) for step in range(20)])
    assert used[19] < used[20] < used[22] <= max(used) == pytest.approx(0.06)
    assert used[100:] == pytest.approx([0.06 * (200 - step) / 100 for step in range(100, 200)])


def test_a_move_begins_the_path_anew():
    config = ExpTestConfig(warmup=0.1, cooldown=0.1, window=0.2, window_correction=True)
    weight = torch.zeros(1, requires_grad=True)
    scheduler = ExpTestScheduler(torch.optim.SGD([weight], lr=0.1), config, num_training_steps=200)
    scheduler.start(0.02, detect=False, reason=BELOW_BOUND)

    def go(step, length):
        with torch.no_grad():
            weight.add_(length)
        feed(scheduler, [3 - 0.01 * step])

    # To and fro, which would stretch the window; then straight on.
    for step in range(40):
        go(step, (-1) ** step)
    scheduler.move(0.02, "look", 0.4)
    for step in range(40, 80):
        go(step, 1)
    assert [(e["step"], e["window"], e["decision"]) for e in scheduler.history[1:]] == [
        (40, 0, "keep"),
        (80, 40, "continue"),
    ]


@pytest.mark.parametrize("cut", [19, 20, 25, 90])
def test_state_keeps_looks_bound_and_a_rise(cut):
    def train(scheduler, start, end):
        for step in range(start, end):
            if scheduler.wants_look:
                scheduler.searches.append({"step": step, "trials": [{"curve": [0.5, 0.25]}]})
                scheduler.move(0.06, "look", 0.01)
            feed(scheduler, [3 - 0.01 * step])

    whole, first, second = (below_bound() for _ in range(3))
    for scheduler in (whole, first):
        scheduler.bound = {"upper_bound": 0.6, "num_steps": 4, "seconds": 0.5}
    train(whole, 0, 200)
    train(first, 0, cut)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.wants_look == (cut == 20)
    assert second.bound == {"upper_bound": 0.6, "num_steps": 4, "seconds": 0.5}
    assert second.searches == first.searches
    assert second.get_last_lr() == first.get_last_lr()
    train(second, cut, 200)
    assert second.searches == [{"step": 20, "trials": [{"curve": [0.5, 0.25]}]}]
    assert second.history == whole.history
    assert second.get_last_lr() == whole.get_last_lr()


def test_a_state_from_before_there_were_looks_still_loads():
    source = below_bound()
    feed(source, [2.0] * 30)
    state = source.state_dict()
    old = {key: value for key, value in state.items() if key not in ("searches", "bound")} | {"search": None}
    old["controller"] = {k: v for k, v in state["controller"].items() if k not in ("first_losses", "rise")}
    scheduler = below_bound()
    scheduler.searches, scheduler.bound = [{"step": 7}], {"upper_bound": 7.0}
    scheduler.load_state_dict(old)
    assert (scheduler.searches, scheduler.bound) == ([], None)
    assert scheduler.get_last_lr() == source.get_last_lr()
    assert scheduler.last_epoch == 30


@pytest.mark.parametrize("cut", [1, 20, 40, 90])
@pytest.mark.parametrize("correction", [False, True])
def test_resume_is_exact_through_weights_only_load(cut, correction):
    config = ExpTestConfig.paper(window_correction=correction)

    def train(scheduler, optimizer, model, start, end):
        for step in range(start, end):
            torch.manual_seed(step)
            x = torch.randn(16, 8)
            loss = (model(x) - x[:, :1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.observe(loss)
            scheduler.step()

    def make():
        model = make_model()
        optimizer = make_optimizer("sgd_momentum", model, ratio=2.0)
        return model, optimizer, ExpTestScheduler(optimizer, config)

    model, optimizer, whole = make()
    train(whole, optimizer, model, 0, 150)
    model, optimizer, first = make()
    train(first, optimizer, model, 0, cut)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), first.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    model, optimizer, second = make()
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    second.load_state_dict(states[2])
    train(second, optimizer, model, cut, 150)
    assert second.history == whole.history
    assert len(whole.history) > 2
    assert second.get_last_lr() == whole.get_last_lr()


def test_load_sets_the_optimizers_rates():
    source = ExpTestScheduler(make_optimizer("adamw", make_model()), PAPER)
    feed(source, flat_losses(60))
    assert source.get_last_lr()[0] < 0.05
    optimizer = make_optimizer("adamw", make_model())
    ExpTestScheduler(optimizer, PAPER).load_state_dict(source.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == source.get_last_lr()


def test_checkpoint_also_resumes_a_plain_lambda_scheduler():
    source = ExpTestScheduler(make_optimizer("adamw", make_model()), PAPER)
    feed(source, flat_losses(5))
    plain = torch.optim.lr_scheduler.LambdaLR(make_optimizer("adamw", make_model()), lambda step: 1.0)
    plain.load_state_dict(source.state_dict())
    assert plain.last_epoch == 5


def test_foreign_states_are_refused():
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), PAPER)
    with pytest.raises(ValueError, match=r"not the state of a scheduler with a rate for each group.*'best'"):
        scheduler.load_state_dict({"last_epoch": 3, "best": 0.1})
    one_group = ExpTestScheduler(torch.optim.AdamW(make_model().parameters()), PAPER)
    with pytest.raises(ValueError, match="2 parameter groups, the optimizer 1"):
        one_group.load_state_dict(scheduler.state_dict())


def test_losses_are_fetched_once_per_interval():
    fetched = []

    class Counting(FakeAccelerator):
        def reduce(self, tensor, reduction):
            fetched.append(len(tensor))
            return super().reduce(tensor, reduction)

    config = ExpTestConfig(warmup=0.1, cooldown=0.5, window=0.2, learning_rate=1e-3)
    optimizer = torch.optim.AdamW(make_model().parameters())
    scheduler = ExpTestScheduler(optimizer, config, num_training_steps=1000, accelerator=Counting(2))
    feed(scheduler, [torch.tensor(loss) for loss in np.linspace(2, 1, 1000)])
    scheduler.flush()
    assert sum(fetched) == 1000
    assert max(fetched) == CHECK_INTERVAL
    assert len(fetched) <= 1000 / CHECK_INTERVAL + 5
    assert [(e["step"], e["window"]) for e in scheduler.history] == [(300, 200), (500, 200)]


def test_divergence_is_noticed_within_the_interval():
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), ExpTestConfig(), num_training_steps=10_000)
    feed(scheduler, [torch.tensor(1.0)] * 1500)
    # One is not divergence yet.
    feed(scheduler, [torch.tensor(float("nan"))] * (1 + CHECK_INTERVAL))
    assert scheduler.history[-1]["test"] == "divergence"
    assert scheduler.history[-1]["step"] == 1502


def test_window_correction_lengthens_noisy_windows():
    windows = {}
    for correction in (False, True):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
        scheduler = ExpTestScheduler(optimizer, ExpTestConfig.paper(window_correction=correction))
        for step in range(400):
            torch.manual_seed(step)
            x = torch.randn(2, 8)
            loss = (model(x) - torch.randn(2, 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.observe(loss)
            scheduler.step()
        windows[correction] = scheduler.history[0]["window"]
    assert windows[True] > 1.5 * windows[False]


class ScheduleFreeAdamW(torch.optim.SGD):
    """Stands for the class of the schedulefree package, which is told by its name."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.0), "lr=0.0"),
        (lambda p: ScheduleFreeAdamW(p, lr=0.1), "ScheduleFreeAdamW"),
        (lambda p: torch.optim.SGD([{"params": list(p), "relative_step": True}], lr=0.1), "relative_step=True"),
    ],
)
def test_unsuitable_optimizers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        ExpTestScheduler(make(make_model().parameters()), PAPER)


def test_bad_observations_and_arguments_are_quoted():
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), PAPER)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        scheduler.observe(torch.zeros(2))
    with pytest.raises(TypeError, match="list"):
        ExpTestScheduler([], PAPER)
    with pytest.raises(ValueError, match="num_training_steps=None"):
        ExpTestScheduler(make_optimizer("adamw", make_model()))


def test_observed_tensor_is_copied():
    scheduler = ExpTestScheduler(make_optimizer("adamw", make_model()), PAPER)
    loss = torch.tensor(2.0)
    scheduler.observe(loss)
    loss.fill_(float("nan"))
    scheduler.step()
    scheduler.flush()
    assert scheduler.history == []
