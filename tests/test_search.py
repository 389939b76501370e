# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Looks at other rates: the pure search over made-up trials, what a look costs, and a run that has looks."""

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import scipy.stats
import torch
from reports import INCONCLUSIVE_SEARCH, SEARCH
from torch import nn
from toys import (
    InOrder,
    StopAt,
    ToyClassifier,
    assert_same,
    assert_same_weights,
    classification_data,
    decisions,
    language_data,
    language_model,
    logged,
    make_args,
    make_trainer,
    outcome,
    weights,
)
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import hf_exptest.look
from hf_exptest import ExpTestCallback, ExpTestConfig, ExpTestController, find_learning_rate
from hf_exptest.bounds import ray_bound
from hf_exptest.look import is_from_scratch
from hf_exptest.search import (
    _TRIALS_IN_BUDGET,
    FIRST_POWERS,
    MAX_STEPS,
    MIN_STEPS,
    SPACING,
    START_SHARE,
    paired_p_value,
    search,
    search_steps,
    trial_steps,
    vertex,
)
from hf_exptest.snapshot import Snapshot
from hf_exptest.stage import NUM_EVAL_BATCHES, Stage, open_stage
from hf_exptest.trial import Trial

# A slope test that finds the loss standing still asks for a second look.
SEVERAL_LOOKS = {"search_budget": 1.0, "warmup": 0.05, "cooldown": 0.3, "window": 0.2}


@pytest.fixture
def replay(monkeypatch):
    """Keeps what looks and bounds return; once called, these are returned again, and no trial is made."""
    found = {"look": [], "first_update_bound": []}

    def keep(name):
        function = getattr(hf_exptest.look, name)

        def call(*args, **kwargs):
            found[name].append(function(*args, **kwargs))
            return found[name][-1]

        monkeypatch.setattr(hf_exptest.look, name, call)

    def start():
        def fail(*args):
            raise AssertionError("There is nothing to try.")

        monkeypatch.setattr(Stage, "__init__", fail)
        for name, results in found.items():
            queue = iter(results)
            monkeypatch.setattr(hf_exptest.look, name, lambda *args, queue=queue, **kwargs: next(queue))
        return {name: len(results) for name, results in found.items()}

    for name in found:
        keep(name)
    return start


CASES = {
    "batch norm and dropout": ({"model": ToyClassifier}, {}),
    "accumulation": (
        {"model": ToyClassifier, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {},
    ),
    "language model": ({"model": language_model, "data": language_data()}, {}),
    "sgd with momentum": ({"model": ToyClassifier, "optim": "sgd", "optim_args": "momentum=0.9"}, {}),
    "several looks": ({"model": ToyClassifier, "max_steps": 300}, SEVERAL_LOOKS),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_looks_equals_one_that_is_told_what_they_find(tmp_path, monkeypatch, replay, case):
    settings, overrides = CASES[case]
    settings = dict(settings)
    make_model = settings.pop("model")
    if case == "several looks":
        # Whatever the losses of a toy, they stand still.
        monkeypatch.setattr(
            ExpTestController, "_tune", lambda self, losses: (0.5, "look" if self.can_look else "undecided")
        )
        # However little is left.
        monkeypatch.setattr(hf_exptest.look, "_FEWEST_STEPS", 0)
    runs = []
    for is_told in (False, True):
        if is_told:
            counts = replay()
            assert counts["first_update_bound"] == 1
            assert counts["look"] >= 2 if case == "several looks" else counts["look"] == 1
        callback = ExpTestCallback(**overrides)
        trainer = make_trainer(tmp_path, [callback], model=make_model(), **settings)
        trainer.train()
        searches = list(map(as_found, callback.report().searches))
        runs.append([outcome(trainer), logged(trainer, "learning_rate"), callback.history, searches])
    assert_same(*runs)
    _, rates, history, searches = runs[0]
    assert len(rates) == settings.get("max_steps", 40)
    assert [entry["test"] for entry in history][:2] == ["below_bound", "look"]
    assert history[1]["decision"] == "raise"
    assert history[1]["learning_rate"] == searches[0]["learning_rate"]
    if case == "several looks":
        asked, answered = history[2:4]
        assert (asked["test"], asked["decision"]) == ("slope", "look")
        assert (answered["test"], answered["step"]) == ("look", asked["step"])
        assert answered["decision"] in ("raise", "lower", "keep")
        assert answered["learning_rate"] == searches[1]["learning_rate"]
        assert searches[1]["previous_rate"] == searches[0]["learning_rate"]


@pytest.mark.parametrize(("factor", "decision"), [(10, "raise"), (1, "keep"), (0.1, "lower")])
def test_a_raised_rate_is_reached_by_a_second_warm_up(tmp_path, monkeypatch, factor, decision):
    def found(trainer, config, learning_rate, budget, *, is_start, from_scratch):
        assert (is_start, from_scratch) == (True, True)
        return dataclasses.replace(SEARCH, previous_rate=learning_rate, learning_rate=factor * learning_rate)

    monkeypatch.setattr("hf_exptest.look.look", found)
    callback = ExpTestCallback(warmup=0.1, cooldown=0.2)
    trainer = make_trainer(tmp_path, [callback], max_steps=100)
    trainer.train()
    assert decisions(callback)[:2] == [(0, "below_bound", "start"), (10, "look", decision)]
    low = callback.history[0]["learning_rate"]
    high = callback.history[1]["learning_rate"]
    assert high == factor * low
    rates = logged(trainer, "learning_rate")
    assert rates[:10] == pytest.approx([low * min(1, step / 5) for step in range(1, 11)])
    if factor > 1:
        assert rates[10:20] == pytest.approx([low + (high - low) * step / 10 for step in range(1, 11)])
        assert rates[20:80] == pytest.approx([high] * 60)
    else:
        assert rates[10:80] == pytest.approx([high] * 70)


@pytest.mark.parametrize("num_steps", [300, 1000, 2000])
def test_all_looks_stay_within_the_budget(tmp_path, monkeypatch, num_steps):
    made = []
    step = Stage._step
    monkeypatch.setattr(Stage, "_step", lambda self, batch: made.append(1) or step(self, batch))
    # A test that asks for a look whenever there may be one.
    monkeypatch.setattr(
        ExpTestController, "_tune", lambda self, losses: (0.5, "look" if self.can_look else "undecided")
    )
    callback = ExpTestCallback(warmup=0.02, window=0.04)
    # No look is made in the cool-down.
    make_trainer(tmp_path, [callback, StopAt(round(0.3 * num_steps))], max_steps=num_steps).train()
    searches = callback.report().searches
    assert len(searches) >= 1
    assert len(made) == sum(found.num_steps for found in searches)
    assert 3 * MIN_STEPS <= len(made) <= search_steps(callback.config, num_steps)


def test_the_budget_is_a_share_of_the_steps_and_more_of_few():
    config = ExpTestConfig(search_budget=0.15)
    assert [search_steps(config, n) for n in (10, 100, 300, 800, 1000, 10_000)] == [4, 40, 120, 120, 150, 1500]
    assert search_steps(ExpTestConfig(search_budget=0.5), 300) == 150
    shortest = MIN_STEPS * _TRIALS_IN_BUDGET
    budgets = 0, shortest, shortest + _TRIALS_IN_BUDGET, 10**6
    assert [trial_steps(n) for n in budgets] == [MIN_STEPS, MIN_STEPS, MIN_STEPS + 1, MAX_STEPS]


class Batches(Trainer):
    """Notes the first number of each row that is trained on."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(inputs["x"][:, 0].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def test_a_look_reads_other_batches_than_those_that_come_next(tmp_path, monkeypatch):
    read = []
    init = Stage.__init__

    def spy(self, *args):
        init(self, *args)
        read.append([micro[0]["x"][:, 0].tolist() for micro, _ in (*self._eval_batches, *self._train_batches)])

    monkeypatch.setattr(Stage, "__init__", spy)
    callback, seen = ExpTestCallback(), []
    trainer = Batches(
        model=ToyClassifier(), args=make_args(tmp_path), train_dataset=classification_data(), callbacks=[callback]
    )
    trainer.seen = seen
    trainer.train()
    assert len({row["x"][0].item() for row in trainer.train_dataset}) == 512
    # Steps of trials are made by the same method, and put back.
    trained = trainer.state.global_step
    assert len(seen) == trained == 40
    bound, look = read
    assert (len(bound), len(look)) == (4, MIN_STEPS + NUM_EVAL_BATCHES)
    for batches, next_ones in ((bound, seen[:4]), (look, seen[4:])):
        rows, next_rows = ({x for batch in some for x in batch} for some in (batches, next_ones))
        # Two samples of 512 rows have in common what chance gives them.
        assert len(rows & next_rows) < 0.75 * min(len(rows), len(next_rows))
        assert not {tuple(sorted(batch)) for batch in batches} & {tuple(sorted(batch)) for batch in next_ones}
    # Held-out batches are not trained on by the trials.
    held_out, rest = look[:6], look[6:]
    assert not {x for batch in held_out for x in batch} & {x for batch in rest for x in batch}


def plain_state(trainer):
    """Everything a search could leave behind, except objects without a value."""
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        {k: copy.deepcopy(v) for k, v in vars(trainer.state).items() if isinstance(v, (int, float, list))},
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", ["the bound", "the look"])
def test_an_interrupted_search_restores(tmp_path, monkeypatch, error, at):
    trainer = make_trainer(tmp_path, [])
    before = weights(trainer.model), plain_state(trainer)
    steps = []
    step = Stage._step

    def interrupted(self, batch):
        steps.append(trainer.state.global_step)
        if len(steps) == (10 if at == "the bound" else 40):
            raise error
        return step(self, batch)

    monkeypatch.setattr(Stage, "_step", interrupted)
    seen = []
    exit_ = Snapshot.__exit__

    def spy(self, *args):
        exit_(self, *args)
        seen.append((weights(trainer.model), len(trainer.optimizer.state), plain_state(trainer)[0]))

    monkeypatch.setattr(Snapshot, "__exit__", spy)
    with pytest.raises(error):
        find_learning_rate(trainer)
    assert steps[-1] == (0 if at == "the bound" else 4)
    # The inner ones go back to where the look began, the last to where all began.
    assert len(seen) == (2 if at == "the bound" else 3)
    after, num_moments, python_state = seen[-1]
    assert_same_weights(after, before[0])
    assert num_moments == 0
    assert python_state == before[1][0]
    assert str(plain_state(trainer)) == str(before[1])
    assert all(p.grad is None for p in trainer.model.parameters())


def as_found(found):
    """A search without the time that it took."""
    return {**vars(found), "trials": [vars(trial) for trial in found.trials], "seconds": None}


def test_find_learning_rate_finds_what_a_run_finds_and_leaves_the_trainer_as_it_was(tmp_path):
    callback = ExpTestCallback()
    make_trainer(tmp_path, [callback]).train()
    expected = make_trainer(tmp_path, [])
    expected.train()
    trainer = make_trainer(tmp_path, [])
    callbacks = list(trainer.callback_handler.callbacks)
    owned = trainer.callback_handler.callbacks
    before, state, attributes = weights(trainer.model), plain_state(trainer), dict(vars(trainer))
    for _ in range(2):
        assert_same(as_found(find_learning_rate(trainer)), as_found(callback.search))
        assert_same_weights(weights(trainer.model), before)
        assert plain_state(trainer) == state
        assert trainer.callback_handler.callbacks is owned
        assert owned == callbacks
        assert trainer.accelerator._dataloaders == []
        assert trainer.optimizer is trainer.lr_scheduler is trainer.callback_handler.optimizer is None
        assert vars(trainer).keys() == attributes.keys()
    trainer.train()
    assert type(trainer.lr_scheduler).__name__ == "LambdaLR"
    assert_same(outcome(trainer), outcome(expected))


def test_find_learning_rate_takes_no_rate_from_its_settings(tmp_path):
    found = [
        find_learning_rate(make_trainer(tmp_path, []), ExpTestConfig(learning_rate=rate, search=rate is None))
        for rate in (None, 3.0)
    ]
    assert_same(*map(as_found, found))


def test_search_reports_its_trials_and_costs(tmp_path):
    found = find_learning_rate(make_trainer(tmp_path, [], max_steps=200))
    assert (found.step, found.num_training_steps) == (20, 200)
    assert len(found.trials) >= 3
    # The bound takes a step a rate of its ladder, and three more.
    num_bound = found.num_steps - sum(len(trial.curve) for trial in found.trials)
    assert 8 <= num_bound <= 25
    assert {trial.num_steps for trial in found.trials} == {trial_steps(80 - num_bound)}
    assert found.seconds > 0
    assert found.previous_rate == float(f"{START_SHARE * found.upper_bound:.2g}")
    tried = [trial.learning_rate for trial in found.trials]
    assert tried == sorted(tried)
    assert np.log(np.array(tried) / found.previous_rate) / np.log(SPACING) == pytest.approx(
        np.arange(len(tried)) + round(np.log(tried[0] / found.previous_rate) / np.log(SPACING))
    )
    best = min(found.trials, key=lambda trial: trial.end_loss)
    assert best.end_loss < np.mean(found.untouched_losses)
    assert found.is_conclusive
    assert found.p_value == pytest.approx(
        scipy.stats.ttest_rel(best.end_losses, found.untouched_losses, alternative="less").pvalue
    )
    assert (
        len(found.untouched_losses)
        == len(best.end_losses)
        == min(NUM_EVAL_BATCHES, (trial_steps(80 - num_bound) + 12) // 4)
    )
    assert search_line(found) == found.learning_rate


def search_line(found):
    """The rate at the line of the figure that marks it."""
    return found.plot().get_lines()[-1].get_xdata()[0]


@pytest.mark.parametrize("num_steps", [400, 800])
def test_search_budget_lengthens_the_trials(tmp_path, num_steps):
    found = find_learning_rate(make_trainer(tmp_path, [], max_steps=num_steps), ExpTestConfig(search_budget=0.5))
    num_bound = found.num_steps - sum(len(trial.curve) for trial in found.trials)
    assert {trial.num_steps for trial in found.trials} == {(num_steps // 2 - num_bound) // _TRIALS_IN_BUDGET}
    assert found.num_steps <= num_steps // 2


def test_one_shot_data_falls_back_by_name(tmp_path, caplog):
    class OneShot(torch.utils.data.IterableDataset):
        def __init__(self):
            self.rows = iter(language_data(400))

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.rows)

    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], model=language_model(), data=OneShot(), learning_rate=2e-4)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train()
    assert decisions(callback)[0] == (0, "training_arguments", "start")
    assert "look" not in [entry["test"] for entry in callback.history]
    assert callback.history[0]["learning_rate"] == 2e-4
    assert trainer.state.global_step == 40
    assert "ExpTest found no learning rate: train_dataset=OneShot can be read only once" in caplog.text
    with pytest.raises(ValueError, match="train_dataset=OneShot can be read only once"):
        find_learning_rate(make_trainer(tmp_path, [], model=language_model(), data=OneShot()))


def inconclusive(trainer, config, learning_rate, *args, **kwargs):
    return dataclasses.replace(INCONCLUSIVE_SEARCH, learning_rate=learning_rate, p_value=0.4)


def test_an_inconclusive_look_goes_on_with_the_start_where_no_rate_was_given(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_exptest.look.look", inconclusive)
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], learning_rate=TrainingArguments.learning_rate)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train()
    assert decisions(callback) == [(0, "below_bound", "start"), (4, "look", "keep")]
    start, kept = callback.history
    assert (kept["learning_rate"], kept["p_value"]) == (start["learning_rate"], 0.4)
    assert logged(trainer, "learning_rate")[3:12] == [start["learning_rate"]] * 9
    assert f"goes on with the starting rate={start['learning_rate']}, unchanged. A learning_rate in" in caplog.text
    report = callback.report()
    assert (report.starting_rate, report.rate_source) == (start["learning_rate"], "below_bound")


def test_inconclusive_look_falls_back_by_name(tmp_path, monkeypatch, caplog):
    assert not INCONCLUSIVE_SEARCH.is_conclusive
    monkeypatch.setattr("hf_exptest.look.look", inconclusive)
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], learning_rate=2e-4)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train()
    assert decisions(callback) == [(0, "below_bound", "start"), (4, "training_arguments", "start")]
    start = callback.history[1]
    assert (start["phase"], start["learning_rate"], start["p_value"]) == ("tune", 2e-4, None)
    assert logged(trainer, "learning_rate")[4:12] == [2e-4] * 8
    assert "training goes on with TrainingArguments.learning_rate=0.0002, unchanged" in caplog.text
    assert callback.report().starting_rate == 2e-4


def test_a_rate_of_the_users_optimizer_is_one_that_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_exptest.look.look", inconclusive)
    callback = ExpTestCallback()
    model = ToyClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    make_trainer(
        tmp_path,
        [callback],
        model=model,
        trainer_kwargs={"optimizers": (optimizer, None)},
        learning_rate=TrainingArguments.learning_rate,
    ).train()
    assert decisions(callback) == [(0, "below_bound", "start"), (4, "optimizer", "start")]
    assert callback.learning_rate == 0.02


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_run_shorter_than_its_trials(tmp_path, num_steps):
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], max_steps=num_steps)
    trainer.train()
    assert trainer.state.global_step == num_steps
    if num_steps == 1:
        # After the only step there is nothing to look for.
        assert decisions(callback) == [(0, "below_bound", "start")]
        return
    assert callback.search.is_conclusive
    assert decisions(callback) == [(0, "below_bound", "start"), (1, "look", "raise")]
    assert {trial.num_steps for trial in callback.search.trials} == {MIN_STEPS}
    assert 1e-3 < callback.search.learning_rate < 1.0


def test_no_warm_up_looks_before_the_first_step(tmp_path):
    callback = ExpTestCallback(warmup=0.0)
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    assert decisions(callback)[:2] == [(0, "below_bound", "start"), (0, "look", "raise")]
    assert callback.search.step == 0


def test_a_given_rate_is_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_exptest.look.look", lambda *args, **kwargs: pytest.fail("a look"))
    monkeypatch.setattr("hf_exptest.look.first_update_bound", lambda *args: pytest.fail("a bound"))
    # Every window fails.
    monkeypatch.setattr(ExpTestController, "_tune", lambda self, losses: (0.5, "look" if self.can_look else "decay"))
    callback = ExpTestCallback(learning_rate=0.02, warmup=0.0, cooldown=0.2)
    make_trainer(tmp_path, [callback], max_steps=50).train()
    assert callback.search is None
    assert {decision for _, _, decision in decisions(callback)} == {"decay"}


def test_empty_data_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"num_samples=0"):
        make_trainer(tmp_path, [ExpTestCallback()], data=[]).train()


@pytest.mark.parametrize("curvature", [1e-4, 1.0, 1e4])
def test_ray_bound_finds_the_minimum_of_a_parabola(curvature):
    best = 1 / curvature
    found = ray_bound(lambda s: 3.0 - s + 0.5 * curvature * s * s if s < 100 * best else float("nan"))
    assert best / 2 <= found <= best * 2


@pytest.mark.parametrize("seed", range(10))
def test_ray_bound_is_not_ended_by_rounding_noise(seed):
    # As of bfloat16 weights, which small updates move or leave: a thousandth of the loss, up and down.
    noise = np.random.default_rng(seed)
    found = ray_bound(lambda s: 3.0 - 30 * s + 1500 * s * s + (3e-3 * noise.normal() if s else 0.0))
    assert 0.005 <= found <= 0.02


def test_ray_bound_goes_on_where_rounding_raises_the_loss():
    # One DPO batch of SmolLM2 with LoRA in bfloat16: at 1e-5, a thousand times below its valley, the loss is 1 % up.
    losses = {0: 0.69315, 1e-8: 0.69315, 1e-7: 0.69423, 1e-6: 0.69498, 1e-5: 0.70015, 1e-4: 0.67406, 1e-3: 0.38672}
    losses |= {2e-3: 0.13341, 5e-3: 6.8e-3, 1e-2: 3.3e-4, 2e-2: 2.5e-5, 5e-2: 9.5e-5, 0.1: 0.4141, 1: 3.4598}
    # From 1e-2 on the loss is all but zero; the careful choice is the lowest such rate.
    assert ray_bound(lambda s: losses[next(x for x in losses if x == pytest.approx(s))]) == pytest.approx(1e-2)


def test_ray_bound_where_the_loss_only_rises():
    assert ray_bound(lambda s: 1.0 + s) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="only rises"):
        ray_bound(lambda s: 1.0 if s == 0 else float("nan"))
    with pytest.raises(ValueError, match="not finite before any step"):
        ray_bound(lambda s: 1.0 if s else float("nan"))


def test_vertex_of_a_parabola_in_log_rate():
    rates = [1e-4, 3e-4, 9e-4, 2.7e-3]
    losses = [1 + (np.log(rate) - np.log(5e-4)) ** 2 for rate in rates]
    assert vertex(rates, losses) == pytest.approx(5e-4)
    assert vertex(rates[::-1], losses[::-1]) == pytest.approx(5e-4)
    # At an edge, the next two tell, but no rate beyond it was tried.
    for best, found in ((2e-3, 2e-3), (1e-2, 2.7e-3), (1.4e-4, 1.4e-4), (1e-5, 1e-4)):
        assert vertex(rates, [(np.log(rate) - np.log(best)) ** 2 for rate in rates]) == pytest.approx(found)
    assert vertex(rates[:3], [2.0, 1.9, 1.0]) == pytest.approx(9e-4)
    assert vertex([1e-4, 3e-4], [2.0, 1.0]) == pytest.approx(3e-4)
    assert vertex([1e-4, 3e-4, 9e-4], [1.0, 1.0, 2.0]) == pytest.approx(1e-4)
    assert vertex(rates, [1.0, 1.0, 1.0, 1.0]) in [pytest.approx(r) for r in rates]


class Table:
    """
    Trials whose ends are a function of the rate, with a spread over the held-out batches that all trials share, and
    one of their own.
    """

    def __init__(self, end, untouched=2.0, noise=1e-4, curve=None, num_batches=12, movement=None):
        self._shared = 0.1 * np.linspace(-1, 1, num_batches)
        self._random = np.random.default_rng(0)
        self._noise = noise
        self.untouched = list(untouched + self._shared)
        self.end = end
        self.movement = movement or (lambda rate: None)
        self.curve = curve or (lambda rate, step: 1.0)
        self.num_steps = 0
        self.tried = []

    def trial(self, learning_rate, num_steps):
        self.tried.append(learning_rate)
        curve = []
        for step in range(num_steps):
            # The same batches in each trial.
            curve.append(self.curve(learning_rate, step) + 0.01 * np.sin(step))
            self.num_steps += 1
        end = self.end(learning_rate)
        if not np.isfinite(end):
            return Trial(learning_rate, num_steps, curve[:4], [np.inf] * len(self._shared))
        own = self._noise * self._random.normal(size=len(self._shared))
        ends = list(end + self._shared + own)
        return Trial(learning_rate, num_steps, curve, ends, self.movement(learning_rate))


def parabola(best, least=1.0, curvature=0.1):
    return lambda rate: least + curvature * np.log(rate / best) ** 2


def look(stage, rate=1e-3, budget=400, is_start=False, config=None, longer=1, from_scratch=False):
    """A search for a run that goes on as many times longer than a trial, where its rate is the trials' own."""
    return search(
        stage,
        rate,
        config or ExpTestConfig(),
        step=100,
        num_training_steps=100 + round(longer * trial_steps(budget)),
        budget=budget,
        is_start=is_start,
        from_scratch=from_scratch,
    )


@pytest.mark.parametrize("is_start", [True, False])
@pytest.mark.parametrize("best", [3e-4, 1e-3, 1.7e-3, 4e-3, 9e-3, 2e-2])
def test_the_vertex_of_a_parabola_is_found(best, is_start):
    found = look(Table(parabola(best)), is_start=is_start, budget=2000)
    assert found.is_conclusive
    if not is_start and abs(np.log(best / 1e-3)) < np.log(SPACING) / 2:
        # The present rate is the best one that was tried.
        assert (found.learning_rate, found.p_value) == (1e-3, 1.0)
        return
    # A later look lowers by a third at most.
    assert found.learning_rate == pytest.approx(best if is_start else max(best, 3.3e-4), rel=0.06)
    assert found.p_value < 1e-6
    assert [trial.learning_rate for trial in found.trials] == sorted(trial.learning_rate for trial in found.trials)


def test_a_longer_run_of_a_model_that_hardly_moves_gets_a_lower_rate():
    def found(at_best, longer=10, **options):
        # Adam moves in proportion to its rate.
        stage = Table(parabola(4e-3), movement=lambda rate: at_best * rate / 4e-3)
        return look(stage, budget=2000, is_start=True, longer=longer, **options).learning_rate

    # Fine-tuning, as long as a trial and ten times longer; and training from scratch.
    assert found(0.02, longer=1) == pytest.approx(4e-3, rel=0.06)
    assert found(0.02) == found(0.08) == pytest.approx(4e-3 * 10**-0.3, rel=0.06)
    assert found(0.2) == found(0.5) == look(Table(parabola(4e-3)), budget=2000, is_start=True, longer=10).learning_rate
    assert found(0.2) > 2e-3
    # SGD moves new weights as little.
    assert found(0.02, from_scratch=True) == found(0.2)


def test_in_fine_tuning_a_rate_that_may_have_had_luck_is_lowered_once():
    def found(longer, from_scratch=False):
        # With so much noise, no rate ends significantly higher than the best, which is 9e-3, but the untouched model.
        stage = Table(parabola(9e-3, curvature=0.02), noise=0.2, movement=lambda rate: 0.02)
        found = look(stage, budget=2000, is_start=True, longer=longer, from_scratch=from_scratch)
        assert [trial.learning_rate for trial in found.trials] == pytest.approx([3e-3, 9e-3, 2.7e-2])
        return found.learning_rate

    between = float(f"{np.sqrt(3e-3 * 9e-3):.2g}")
    assert found(longer=1) == found(longer=2) == between
    assert found(longer=20) == pytest.approx(9e-3 * 20**-0.3, rel=0.1)
    # Elsewhere the horizon comes on top.
    assert found(longer=1, from_scratch=True) == between
    assert found(longer=2, from_scratch=True) < 0.95 * between


def new_bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=32, **sizes))


def new_perceptron():
    # torch draws the biases of these layers; those of the norms are zero.
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))


@pytest.mark.parametrize("make", [new_bert, new_perceptron])
def test_whether_weights_were_trained_before(tmp_path, make):
    model = make()
    trainer = make_trainer(tmp_path, [], model=model)
    assert is_from_scratch(trainer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)
    assert not is_from_scratch(trainer)
    # A new head on old weights.
    nn.init.zeros_(list(model.modules())[-1].bias)
    assert not is_from_scratch(trainer)


def test_layers_that_draw_their_biases_do_not_tell(tmp_path):
    assert not is_from_scratch(make_trainer(tmp_path, [], model=nn.Linear(8, 2)))


@pytest.mark.parametrize("is_start", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_the_walk_ends_at_the_best_rate_and_its_neighbours(is_start, seed):
    # The slow way: all rates of the ladder, and the best of them, the lowest of equals.
    draw = np.random.default_rng(seed)
    left, right, best = draw.uniform(0.05, 0.3), draw.uniform(0.05, 0.3), np.exp(draw.uniform(-9, -4))

    def end(rate):
        distance = np.log(rate / best)
        return 1.0 + (left * -distance if distance < 0 else right * distance)

    ladder = [1e-3 * SPACING**power for power in range(-12, 13)]
    ends = [end(rate) for rate in ladder]
    place = ends.index(min(ends))
    stage = Table(end, untouched=4.0)
    found = look(stage, budget=10**5, is_start=is_start)
    tried = [trial.learning_rate for trial in found.trials]
    for neighbour in ladder[place - 1 : place + 2]:
        assert min(abs(np.log(rate / neighbour)) for rate in tried) < 1e-9
    if is_start or ladder[place + 1] > 0.99e-3:
        assert ladder[place - 1] < found.learning_rate < ladder[place + 1]
    else:
        # A later look lowers by a third at most.
        assert found.learning_rate == 3.3e-4


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_a_later_look_moves_on_evidence_only(noise):
    # A third of the rate ends lower by 0.05.
    stage = Table(lambda rate: 1.0 - 0.05 * (rate < 5e-4) + 0.2 * (rate < 2e-4), noise=noise)
    found = look(stage)
    best = min(found.trials, key=lambda trial: trial.end_loss)
    present = next(trial for trial in found.trials if trial.learning_rate == 1e-3)
    expected = 1.0
    if best is not present:
        expected = scipy.stats.ttest_rel(best.end_losses, present.end_losses, alternative="less").pvalue
    assert found.p_value == pytest.approx(expected)
    if noise == 0.02:
        assert found.p_value < 0.05
        assert found.learning_rate < 1e-3
    else:
        assert found.p_value >= 0.05
        assert found.learning_rate == 1e-3
    # It is the settings' level that counts.
    strict = look(Table(stage.end, noise=noise), config=ExpTestConfig(alpha=1e-12))
    assert strict.learning_rate == 1e-3
    assert found.is_conclusive
    assert strict.is_conclusive is (noise == 0.02)


def test_a_later_look_lowers_by_a_third_at_most_where_that_is_of_use():
    # The lower the rate, the lower a noisy loss ends; and of a rate that is far too high, a third is no use either.
    noisy = look(Table(lambda rate: 1.0 + 0.1 * np.log(rate / 1e-6)), budget=2000)
    assert noisy.p_value < 1e-6
    assert noisy.learning_rate == 3.3e-4
    useless = look(Table(lambda rate: min(2.1, parabola(2e-5, curvature=0.3)(rate))), budget=2000)
    assert useless.learning_rate < 5e-5


def test_a_start_claims_nothing_for_itself():
    # No trial differs clearly from another, but all do from the untouched model.
    def end(rate):
        return 1.0 + 0.002 * np.log(rate / 9e-3) ** 2

    start = look(Table(end, noise=0.05), is_start=True)
    assert start.p_value < 0.05
    assert start.learning_rate != 1e-3
    later = look(Table(end, noise=0.05), is_start=False)
    assert later.p_value > 0.05
    assert later.learning_rate == 1e-3
    assert later.is_conclusive


def without_labels(batch):
    """Data, one batch of which has no labels: its loss is NaN, and its gradient zero."""
    rows = classification_data(1024)
    for i in range(8 * batch, 8 * (batch + 1)):
        rows[i] = {**rows[i], "labels": torch.tensor(-100)}
    return rows


# The bound holds the first one out, and the look six.
@pytest.mark.parametrize("batch", [0, 1, 5, 10])
def test_a_batch_without_labels_tells_nothing(tmp_path, batch):
    callback = ExpTestCallback()
    trainer = InOrder(
        model=ToyClassifier(),
        args=make_args(tmp_path, max_steps=60),
        train_dataset=without_labels(batch),
        callbacks=[callback],
    )
    trainer.train()
    assert callback.report().searches[0].upper_bound < 1.0
    assert np.isfinite(callback.search.untouched_losses).all()
    assert len(callback.search.untouched_losses) == 6 - (batch < 6)
    curves = [np.isfinite(trial.curve) for trial in callback.search.trials if trial.outcome == "ended"]
    assert len(curves) >= 2
    assert {int((~curve).sum()) for curve in curves} == {int(batch == 10)}
    assert decisions(callback)[1] == (6, "look", "raise")


class OnlyInTraining(ToyClassifier):
    """Has a placeholder for its loss in evaluation."""

    def __init__(self, placeholder):
        super().__init__()
        self.placeholder = placeholder

    def forward(self, x, labels=None):
        output = super().forward(x, labels)
        if not self.training:
            output["loss"] = 0 * output["loss"] + self.placeholder
        return output


@pytest.mark.parametrize("placeholder", [0.0, math.nan, math.inf])
def test_a_loss_that_there_is_in_training_alone(tmp_path, placeholder):
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], model=OnlyInTraining(placeholder))
    trainer.train()
    assert 1e-2 < callback.search.upper_bound < 1.0
    assert decisions(callback)[1] == (4, "look", "raise")
    assert 0.5 < np.mean(callback.search.untouched_losses) < 2.0


class FrozenAverages(ToyClassifier):
    """Keeps its running averages, in training too, as detection models do."""

    def train(self, mode=True):
        super().train(mode)
        self.net[1].eval()
        return self


@pytest.mark.parametrize("model", [ToyClassifier(), FrozenAverages()], ids=lambda model: type(model).__name__)
def test_losses_are_compared_without_the_lag_of_running_averages(tmp_path, model):
    # They have come from other data, and a hundred steps do not bring them up to date.
    model.net[1].momentum = 0.01
    model.net[1].running_mean += 3.0
    averages = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trainer = make_trainer(tmp_path, [], model=model)
    trainer.create_optimizer()
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)

    def slow(batches):
        copied = copy.deepcopy(trainer.model).eval()
        copied.load_state_dict(averages, strict=False)
        with torch.no_grad():
            if type(model) is ToyClassifier:
                hidden = [copied.net[0](micro["x"]) for (micro,), _ in batches]
                copied.net[1].running_mean = torch.stack([x.mean(0) for x in hidden]).mean(0)
                copied.net[1].running_var = torch.stack([x.var(0) for x in hidden]).mean(0)
            return [float(copied(**micro)["loss"]) for (micro,), _ in batches]

    with open_stage(trainer, num_batches=12) as stage:
        assert stage.untouched == pytest.approx(slow(stage._eval_batches), rel=1e-5)
        assert model.net[1].momentum == 0.01
        trial = stage.trial(0.1, 10)
        assert trial.end_losses == pytest.approx(slow(stage._eval_batches), rel=1e-5)
    assert len(stage.untouched) == 3
    assert trial.movement > 0.01
    assert_same(averages, dict(trainer.model.named_buffers()))


class OneBatch(Table):
    """Rates above 1e-2 are of use on one held-out batch, and do harm on all others."""

    def trial(self, learning_rate, num_steps):
        trial = super().trial(learning_rate, num_steps)
        if learning_rate < 1e-2:
            return trial
        harm = [self.untouched[0] - 3.0, *np.add(self.untouched[1:], 0.1)]
        return dataclasses.replace(trial, end_losses=harm)


def test_a_first_look_does_not_trust_a_trial_that_is_of_use_on_one_batch_alone():
    stage = OneBatch(lambda rate: 2.0 - 0.02 * np.log(rate / 1e-3), untouched=2.0, noise=0.001)
    found = look(stage, is_start=True)
    low, lower, lucky = sorted(found.trials, key=lambda trial: -trial.end_loss)
    assert lucky.learning_rate > 1e-2 > lower.learning_rate > low.learning_rate
    assert paired_p_value(lucky.end_losses, stage.untouched) > 0.05
    # What is best of those that all batches gain by.
    assert found.p_value == paired_p_value(lower.end_losses, stage.untouched) < 0.05
    assert found.is_conclusive
    assert found.learning_rate == 9e-3
    # A later one goes on with a rate unless another is clearly better.
    kept = look(OneBatch(lambda rate: 2.0 - 0.02 * np.log(rate / 1e-3), untouched=2.0, noise=0.001), 9e-3)
    assert max(trial.learning_rate for trial in kept.trials) > 1e-2
    assert (kept.learning_rate, kept.p_value > 0.05, kept.is_conclusive) == (9e-3, True, True)


# From the second start three rates end equally, and that which ends lowest by chance has one of them on either side.
@pytest.mark.parametrize("rate", [1e-3, 3e-3])
def test_of_rates_that_end_equally_it_goes_to_the_lower_ones(rate):
    def end(rate):
        # A flat ground from 9e-3 to 8e-2, between two slopes.
        below, above = np.log(8.9e-3 / rate), np.log(rate / 8.2e-2)
        return 1.0 + 0.3 * max(0.0, below) + 0.3 * max(0.0, above)

    flat = look(Table(end, noise=0.05), rate, is_start=True, budget=2000)
    ground = [trial.learning_rate for trial in flat.trials if end(trial.learning_rate) == 1.0]
    assert len(ground) >= 2
    assert min(ground) * 0.99 <= flat.learning_rate <= np.sqrt(min(ground) * max(ground)) * 1.06
    # Where the higher one is clearly better, it is not held back.
    sloping = look(Table(lambda rate: end(rate) - 0.02 * np.log(rate), noise=0.001), rate, is_start=True, budget=2000)
    assert sloping.learning_rate > flat.learning_rate


@pytest.mark.parametrize("seed", range(30))
def test_a_look_stays_within_its_budget(seed):
    draw = np.random.default_rng(seed)
    budget = int(draw.integers(3 * MIN_STEPS, 3000))
    stage = Table(
        parabola(np.exp(draw.uniform(-14, 0)), curvature=draw.uniform(0, 0.1)), noise=draw.choice([0.0, 0.3])
    )
    found = look(stage, budget=budget, is_start=bool(draw.integers(2)))
    assert found.num_steps == stage.num_steps <= budget
    assert len(found.trials) >= 3
    assert {trial.num_steps for trial in found.trials} == {trial_steps(budget)}
    # Each rate once.
    assert len(set(stage.tried)) == len(stage.tried) == len(found.trials)


def test_few_steps_are_for_three_trials_at_least():
    stage = Table(parabola(1e-2))
    assert len(look(stage, budget=1).trials) == 3
    assert stage.num_steps == 3 * MIN_STEPS


def test_a_trial_of_a_trainer_ends_where_it_diverges(tmp_path):
    trainer = make_trainer(tmp_path, [], model=language_model(), data=language_data(), max_grad_norm=0.0)
    trainer.create_optimizer()
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    before = torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()
    with open_stage(trainer, num_batches=12) as stage:
        ended = stage.trial(1e-3, 10)
        moved = torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach() - before
        diverged = stage.trial(1e30, 10)
    assert (ended.outcome, diverged.outcome) == ("ended", "diverged")
    assert ended.movement == pytest.approx(float(moved.norm() / before.norm()), rel=1e-5)
    assert ended.movement > 0.01
    assert diverged.movement is None
    assert np.isinf(diverged.end_losses).all()
    assert stage.num_steps == 10 + len(diverged.curve)
    assert len(diverged.curve) < 10


def test_a_present_rate_that_diverges_is_left():
    # From the weights that there are, only a tenth of it can be borne.
    found = look(Table(lambda rate: np.inf if rate > 2e-4 else parabola(1e-4)(rate)), budget=2000)
    assert found.p_value == 0.0
    assert {trial.outcome for trial in found.trials if trial.learning_rate > 2e-4} == {"diverged"}
    assert 3e-5 < found.learning_rate < 2e-4


def test_a_diverged_trial_counts_as_one_that_learnt_nothing():
    end = {1e-3: 1.6, 3e-3: 1.4, 9e-3: 1.2}
    diverging, failing = (
        look(Table(lambda rate, high=high: end.get(float(f"{rate:.1g}"), high), untouched=2.0), budget=2000)
        for high in (np.inf, 2.0)
    )
    assert [trial.outcome for trial in diverging.trials][-1] == "diverged"
    assert diverging.learning_rate == failing.learning_rate
    assert 3e-3 < diverging.learning_rate < 9e-3


@pytest.mark.parametrize("is_start", [True, False])
def test_nothing_that_lowers_the_loss_is_no_conclusion(is_start):
    found = look(Table(lambda rate: 2.0 + 0.1 * np.log(rate / 1e-9), untouched=2.0, noise=0.01), is_start=is_start)
    assert not found.is_conclusive
    if is_start:
        assert (found.p_value > 0.05, found.learning_rate) == (True, 1e-3)
    everything_diverges = look(Table(lambda rate: np.inf), is_start=is_start)
    assert not everything_diverges.is_conclusive
    assert (everything_diverges.p_value, everything_diverges.learning_rate) == (1.0, 1e-3)


def test_losses_next_to_zero_are_equal_and_the_lowest_rate_wins():
    # DPO on pairs that are easy to tell apart: the higher the rate, the more zeros.
    stage = Table(lambda rate: 10 ** (-3 - 1e3 * rate) if rate > 2e-4 else 0.6, untouched=0.7)
    stage._shared = np.zeros(12)
    found = look(stage, is_start=True, budget=2000)
    assert found.reaches_zero
    assert min(stage.tried) < 2e-4
    assert max(stage.tried) <= 1e-3 * SPACING**3 * 1.01
    assert found.learning_rate <= 1e-3


def test_nothing_climbs_for_next_to_nothing():
    falling = Table(lambda rate: 0.5 - 1e-5 * np.log(rate))
    look(falling, budget=10**5, is_start=True)
    # The first one of equals has no better neighbour above.
    assert max(falling.tried) == pytest.approx(1e-3 * SPACING ** FIRST_POWERS[1])
    gaining = Table(lambda rate: 0.5 - 1e-2 * np.log(rate))
    look(gaining, budget=4000, is_start=True)
    assert max(gaining.tried) > 1e-3 * SPACING**4


def over(longer, gain=1.0):
    """The rate for a rest of the run so many times longer than the trials, which remove `gain` of a loss of 2."""
    stage = Table(lambda rate: 2.0 - gain * (1.0 - 0.1 * np.log(rate / 9e-3) ** 2), noise=1e-6)
    return look(stage, is_start=True, longer=longer).learning_rate


def test_the_rate_goes_over_to_a_longer_run_by_a_power_of_its_length():
    rates = [over(longer) for longer in (0.25, 1, 10, 100)]
    # Not to a shorter one.
    assert rates[0] == rates[1] == pytest.approx(9e-3, rel=0.06)
    assert rates[3] / rates[2] == pytest.approx(rates[2] / rates[1], rel=0.15)
    assert rates[3] != rates[1]


def test_the_more_there_was_to_learn_the_lower_is_the_rate_of_a_longer_run():
    assert over(100, gain=1.9) < over(100, gain=1.0) < over(100, gain=0.1)
    # A quarter of the loss is where the power changes its sign.
    assert over(100, gain=1.0) < over(1, gain=1.0) < over(100, gain=0.1)


def test_paired_p_values():
    losses, others = [1.0, 1.2, 0.9, 1.4], [1.1, 1.25, 1.0, 1.42]
    expected = scipy.stats.ttest_rel(losses, others, alternative="less").pvalue
    assert paired_p_value(losses, others) == pytest.approx(expected)
    assert paired_p_value([np.inf, 1.0], [1.0, 1.0]) == 1.0
    assert paired_p_value([1.0, 1.0], [np.inf, 1.0]) == 0.0
    assert (paired_p_value([1.0, 1.5], [2.0, 2.5]), paired_p_value([2.0, 2.5], [1.0, 1.5])) == (0.0, 1.0)
    assert paired_p_value([1.0, 1.5], [1.0, 1.5]) == 1.0
