# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import copy
import random

import numpy as np
import pytest
import torch
from toys import ToyClassifier, assert_same_weights, language_data, language_model, make_trainer, weights

from hf_exptest import ExpTestCallback, ExpTestConfig, LearningRateSearch, find_learning_rate
from hf_exptest.bounds import ray_bound
from hf_exptest.search import _extrapolate, vertex
from hf_exptest.snapshot import Snapshot
from hf_exptest.stage import Stage, Trial


def plain_state(trainer):
    """Everything a search could leave behind, except objects without a value."""
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        {k: copy.deepcopy(v) for k, v in vars(trainer.state).items() if isinstance(v, (int, float, list))},
    )


CASES = {
    "batch norm and dropout": {"model": ToyClassifier},
    "accumulation": {"model": ToyClassifier, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "language model": {"model": language_model, "data": language_data()},
    "sgd": {"model": ToyClassifier, "optim": "sgd"},
    "adafactor": {"model": ToyClassifier, "optim": "adafactor"},
}


@pytest.mark.parametrize("case", CASES)
def test_training_after_the_search_equals_training_with_the_rate_given(tmp_path, case):
    settings = dict(CASES[case])
    make_model = settings.pop("model")
    searched = ExpTestCallback()
    first = make_trainer(tmp_path, [searched], model=make_model(), **settings)
    first.train()
    rate = searched.search.learning_rate
    given = ExpTestCallback(learning_rate=rate)
    second = make_trainer(tmp_path, [given], model=make_model(), **settings)
    second.train()
    assert_same_weights(weights(first.model), weights(second.model))
    rows = [
        [(r["step"], r["loss"], r["learning_rate"]) for r in trainer.state.log_history if "loss" in r]
        for trainer in (first, second)
    ]
    assert len(rows[0]) == 40
    assert rows[0] == rows[1]
    assert searched.history[1:] == given.history


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_search_restores(tmp_path, monkeypatch, error):
    trainer = make_trainer(tmp_path, [])
    before = weights(trainer.model), plain_state(trainer)
    steps = []
    step = Stage._step

    def interrupted(self, batch):
        steps.append(batch)
        if len(steps) == 40:
            raise error
        return step(self, batch)

    monkeypatch.setattr(Stage, "_step", interrupted)
    seen = []
    exit_ = Snapshot.__exit__

    def spy(self, *args):
        exit_(self, *args)
        seen.append((weights(trainer.model), dict(trainer.optimizer.state), plain_state(trainer)[0]))

    monkeypatch.setattr(Snapshot, "__exit__", spy)
    with pytest.raises(error):
        find_learning_rate(trainer)
    assert len(steps) == 40
    ((after, optimizer_state, python_state),) = seen
    assert_same_weights(after, before[0])
    assert optimizer_state == {}
    assert python_state == before[1][0]
    assert str(plain_state(trainer)) == str(before[1])
    assert all(p.grad is None for p in trainer.model.parameters())


def test_find_learning_rate_leaves_the_trainer_as_it_was(tmp_path):
    expected = make_trainer(tmp_path, [])
    expected.train()
    trainer = make_trainer(tmp_path, [])
    callbacks = trainer.callback_handler.callbacks
    before = weights(trainer.model)
    search = find_learning_rate(trainer)
    assert_same_weights(weights(trainer.model), before)
    assert trainer.callback_handler.callbacks is callbacks
    assert trainer.optimizer is None
    trainer.train()
    assert type(trainer.lr_scheduler).__name__ == "LambdaLR"
    assert_same_weights(weights(trainer.model), weights(expected.model))
    assert 1e-4 < search.learning_rate < 1.0


def test_search_reports_its_trials_and_costs(tmp_path):
    trainer = make_trainer(tmp_path, [], max_steps=200)
    search = find_learning_rate(trainer)
    lengths = {trial.num_steps for trial in search.trials}
    assert len(lengths) == 2
    assert max(lengths) == 4 * min(lengths) == 56
    # The bound takes a step a rate of its ladder.
    assert 8 <= search.num_steps - sum(len(trial.curve) for trial in search.trials) <= 20
    assert search.seconds > 0
    tried = [trial.learning_rate for trial in search.trials]
    assert min(tried) / 3 <= search.learning_rate <= 3 * max(tried)
    assert search.upper_bound in tried
    best = min(search.trials, key=lambda trial: trial.end_loss)
    assert best.end_loss < np.mean(search.untouched_losses)
    for trial in search.trials:
        assert len(trial.times) == len(trial.curve)
        assert 0.0 <= trial.p_value <= 1.0
    axes = search.plot()
    assert len(axes.get_lines()) == 4
    assert axes.get_lines()[-1].get_xdata()[0] == search.learning_rate


def test_search_budget_lengthens_the_trials(tmp_path):
    search = find_learning_rate(make_trainer(tmp_path, [], max_steps=4000), ExpTestConfig(search_budget=0.15))
    assert {trial.num_steps for trial in search.trials} == {28 + 1, 4 * 29}
    assert search.num_steps <= 0.2 * 4000


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
    trainer.train()
    assert callback.history[0]["test"] == "training_arguments"
    assert callback.history[0]["learning_rate"] == 2e-4
    assert trainer.state.global_step == 40
    with pytest.raises(ValueError, match="train_dataset=OneShot can be read only once"):
        find_learning_rate(make_trainer(tmp_path, [], model=language_model(), data=OneShot()))


def test_inconclusive_search_falls_back_by_name(tmp_path, monkeypatch):
    trial = Trial(1e-3, 24, [0.0] * 24, [0.0] * 24, [1.01, 0.99, 1.02], 1.0)
    search = LearningRateSearch(1e-3, 1e-2, [1.0, 1.0, 1.0], [trial], 40, 24, 0.1)
    assert not search.is_conclusive
    monkeypatch.setattr("hf_exptest.callback.search_learning_rate", lambda trainer, config: search)
    callback = ExpTestCallback()
    make_trainer(tmp_path, [callback], learning_rate=2e-4).train()
    start = callback.history[0]
    assert (start["test"], start["phase"], start["learning_rate"]) == ("training_arguments", "tune", 2e-4)


def test_run_shorter_than_its_trials(tmp_path):
    callback = ExpTestCallback()
    make_trainer(tmp_path, [callback], max_steps=8).train()
    assert callback.search.is_conclusive
    assert {trial.num_steps for trial in callback.search.trials} == {14, 56}
    assert 1e-3 < callback.search.learning_rate < 1.0


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


def test_ray_bound_where_the_loss_only_rises():
    assert ray_bound(lambda s: 1.0 + s) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="only rises"):
        ray_bound(lambda s: 1.0 if s == 0 else float("nan"))


def test_vertex_of_a_parabola_in_log_rate():
    rates = [1e-4, 3e-4, 9e-4, 2.7e-3]
    losses = [1 + (np.log(rate) - np.log(5e-4)) ** 2 for rate in rates]
    assert vertex(rates, losses) == pytest.approx(5e-4)
    assert vertex(rates[::-1], losses[::-1]) == pytest.approx(5e-4)
    assert vertex([1e-4, 3e-4], [2.0, 1.0]) == pytest.approx(3e-4)
    assert vertex(rates, [1.0, 1.0, 1.0, 1.0]) in [pytest.approx(r) for r in rates]


def trials_with_vertex(num_steps, best, gain):
    """Trials with the lowest loss at `best`, `gain` below the untouched loss of 2; half of it on both sides."""
    rates, losses = [best / 10, best, 10 * best], [2 - gain / 2, 2 - gain, 2 - gain / 2]
    return [Trial(rate, num_steps, [], [], [loss, loss], 0.0) for rate, loss in zip(rates, losses, strict=True)]


@pytest.mark.parametrize(
    ("short_best", "short_gain", "length", "factor"),
    [
        # Vertices a factor of two apart at lengths a factor of four apart: a power of -1/2.
        (2e-3, 0.5, 56, 1.0),
        (2e-3, 0.5, 4 * 56, 1 / 2),
        (2e-3, 0.5, 100 * 56, 1 / 3),
        # The rate does not move up.
        (0.5e-3, 0.5, 4 * 56, 1.0),
        # A power of -5/4 is not believed beyond -1.
        (2**2.5 * 1e-3, 0.5, 2 * 56, 1 / 2),
        # Short trials that gain nothing have no opinion, and those that gain half have half of one.
        (1e-3, 0.0, 4 * 56, 1 / 2),
        (1e-3, 0.25, 4 * 56, 4**-0.25),
        # A run that is shorter than its trials is taken for as long as they are.
        (2e-3, 0.5, 20, 1.0),
    ],
)
def test_the_drift_of_the_best_rate_is_followed_within_limits(short_best, short_gain, length, factor):
    short, longer = trials_with_vertex(14, short_best, short_gain), trials_with_vertex(56, 1e-3, 0.5)
    assert _extrapolate(short, longer, [2.0, 2.0], length) == pytest.approx(factor * 1e-3)
