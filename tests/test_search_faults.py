# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A search cannot stop a training: whatever goes wrong inside it, training goes on from where it was."""

import contextlib
import types

import pytest
import torch
from toys import (
    GivenRates,
    StopAt,
    ToyClassifier,
    assert_same,
    assert_same_weights,
    classification_data,
    decisions,
    logged,
    make_trainer,
    outcome,
    weights,
)
from transformers import TrainerCallback

import hf_exptest.look
from hf_exptest import ExpTestCallback, find_learning_rate
from hf_exptest.stage import open_stage

ARGS = {"max_steps": 3, "learning_rate": 3e-3}


class Fails:
    """Raises `error` the `n`-th time that it is asked in the `stage`-th stage, once."""

    def __init__(self, stage, n, error):
        self.stage, self.n, self.error, self.counts, self.is_on = stage, n, error, [], False

    def here(self):
        if self.is_on:
            self.counts[-1] += 1
            if (len(self.counts), self.counts[-1]) == (self.stage, self.n):
                # A new one, since an error holds all frames that it went through, and so the trainer.
                raise type(self.error)(*self.error.args)

    @contextlib.contextmanager
    def open_stage(self, *args, **kwargs):
        """As [`hf_exptest.stage.open_stage`]; only here anything fails."""
        self.counts.append(0)
        self.is_on = True
        try:
            with open_stage(*args, **kwargs) as stage:
                yield stage
        finally:
            self.is_on = False

    # An onlooker: no search puts it back, since it is no function.
    def __deepcopy__(self, memo):
        return self


def wrapped(owner, name, fails):
    function = getattr(owner, name)

    def call(*args, **kwargs):
        fails.here()
        return function(*args, **kwargs)

    setattr(owner, name, call)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fails):
        ctx.fails = fails
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.fails()
        return gradient, None


class Classifier(ToyClassifier):
    """With a fault in its forward or backward pass, in training or evaluation."""

    def __init__(self, where, fails):
        super().__init__()
        self.where = where
        self.ask = lambda: fails.here()

    def forward(self, x, labels=None):
        if self.where == "forward" or self.where == ("evaluation", "training")[self.training]:
            self.ask()
        output = super().forward(x, labels)
        if self.where == "backward":
            output["loss"] = Backward.apply(output["loss"], self.ask)
        return output


class Rows(torch.utils.data.Dataset):
    def __init__(self, fails):
        self.rows = classification_data()
        self.ask = lambda: fails.here()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        self.ask()
        return self.rows[i]


class BeforeStep(TrainerCallback):
    def __init__(self, fails):
        self.ask = lambda: fails.here()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            parameter.grad.mul_(0.5)
        self.ask()


def make(path, where, fails, callback):
    hf_exptest.look.open_stage = fails.open_stage
    data = Rows(fails) if where == "data" else classification_data()
    others = [BeforeStep(fails)] if where == "callback" else []
    trainer = make_trainer(path, [callback, *others], model=Classifier(where, fails), data=data, **ARGS)
    if where == "step":
        trainer.create_optimizer()
        step, optimizer = type(trainer.optimizer).step, trainer.optimizer
        # A method, which torch's schedulers expect.
        optimizer.step = types.MethodType(lambda *args, **kwargs: (fails.here(), step(*args, **kwargs))[1], optimizer)
    elif where == "clip":
        wrapped(trainer.accelerator, "clip_grad_norm_", fails)
    elif where in ("training_step", "compute_loss", "get_train_dataloader", "get_batch_samples"):
        wrapped(trainer, where, fails)
    return trainer


# Calls that each of the two stages makes, of the bound before the first step and of the look after it. Where the first
# evaluation fails, of one held-out batch or six, twice for the averages of BatchNorm, a search tries one in training
# mode.
WHERE = {
    "forward": ((3, 4, 6, 7, 20, 44), (14, 15, 16, 23, 40, 66)),
    "backward": ((1, 2, 3, 10, 19, 20), (1, 2, 14, 15, 28, 42)),
    "step": ((1, 2, 3, 10, 20), (1, 2, 14, 15, 28, 42)),
    "training": ((1, 2, 3, 10, 20), (1, 2, 14, 15, 28, 42)),
    "evaluation": ((3, 5, 6, 20, 24), (13, 14, 15, 20, 24)),
    "data": ((1, 2, 8, 9, 40), (1, 100, 216)),
    "clip": ((1, 2, 20), (1, 14, 15, 42)),
    "callback": ((1, 2, 20), (1, 2, 15, 42)),
    "training_step": ((1, 2, 20), (1, 15, 42)),
    "compute_loss": ((3, 4, 7, 44), (15, 16, 40, 66)),
    "get_batch_samples": ((1, 2, 4), (1, 2, 26)),
    "get_train_dataloader": ((1,), (1,)),
}
ERRORS = [ValueError("not so"), RuntimeError("on the device"), KeyError("labels"), StopIteration(), AssertionError()]
FAULTS = [
    # A data set that raises StopIteration has come to its end.
    (where, stage, n, ERRORS[i % (3 if where == "data" else 5)])
    for where, stages in WHERE.items()
    for stage, times in enumerate(stages, start=1)
    for i, n in enumerate(times)
]


def test_there_are_enough_faults():
    assert len(FAULTS) >= 100


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Outcomes of plain trainings with these rates, by whether gradients are halved."""
    found = {}

    def get(where, rates):
        key = where == "callback", tuple(rates)
        if key not in found:
            trainer = make(tmp_path_factory.mktemp("plain"), where, Fails(0, 0, None), GivenRates(rates))
            trainer.train()
            found[key] = outcome(trainer)
        return found[key]

    return get


@pytest.fixture(autouse=True)
def _unpatched():
    yield
    hf_exptest.look.open_stage = open_stage


@pytest.mark.parametrize(("where", "stage", "n", "error"), FAULTS)
def test_training_goes_on_from_where_it_was(tmp_path, caplog, plain, where, stage, n, error):
    fails = Fails(stage, n, error)
    callback = ExpTestCallback()
    trainer = make(tmp_path, where, fails, callback)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train()
    found, rates = outcome(trainer), logged(trainer, "learning_rate")
    assert len(fails.counts) == stage
    assert fails.counts[-1] >= n
    assert trainer.state.global_step == 3
    assert_same(found, plain(where, rates))
    start = callback.history[-1]
    assert (start["test"], start["learning_rate"], start["phase"]) == ("training_arguments", 3e-3, "tune")
    assert decisions(callback)[:-1] == ([] if stage == 1 else [(0, "below_bound", "start")])
    assert start["step"] == stage - 1
    assert rates[1] == 3e-3
    (said,) = [record.getMessage() for record in caplog.records if "found no learning rate" in record.getMessage()]
    assert type(error).__name__ in said
    assert (
        "Everything is as it was, and training goes on with TrainingArguments.learning_rate=0.003, unchanged." in said
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), torch.OutOfMemoryError()])
@pytest.mark.parametrize("where", ["forward", "step", "data"])
@pytest.mark.parametrize("stage", [1, 2])
def test_an_interrupt_or_want_of_memory_ends_the_training(tmp_path, where, stage, error):
    trainer = make(tmp_path, where, Fails(stage, 20, error), ExpTestCallback())
    before = weights(trainer.model)
    with pytest.raises(type(error)):
        trainer.train()
    assert trainer.state.global_step == stage - 1
    if stage == 2:
        plain = make(tmp_path, where, Fails(0, 0, None), GivenRates(trainer.lr_scheduler.get_last_lr()))
        plain.add_callback(StopAt(1))
        plain.train()
        before = weights(plain.model)
    assert_same_weights(weights(trainer.model), before)


def test_auto_find_batch_size_sees_want_of_memory(tmp_path):
    sizes = []

    class Large(ToyClassifier):
        def forward(self, x, labels=None):
            sizes.append(len(x))
            if len(x) > 16:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().forward(x, labels)

    callback = ExpTestCallback()
    find = {"auto_find_batch_size": True, "per_device_train_batch_size": 18}
    trainer = make_trainer(tmp_path, [callback], model=Large(), max_steps=3, **find)
    trainer.train()
    assert max(sizes) == 18
    assert trainer.state.global_step == 3
    assert decisions(callback)[0] == (0, "below_bound", "start")
    assert decisions(callback)[1][:2] == (1, "look")


@pytest.mark.parametrize("stage", [1, 2])
def test_find_learning_rate_raises_what_the_user_s_code_raises(tmp_path, stage):
    trainer = make(tmp_path, "forward", Fails(stage, 30, ValueError("the user's own")), ExpTestCallback())
    before = weights(trainer.model)
    with pytest.raises(ValueError, match="the user's own"):
        find_learning_rate(trainer)
    assert_same_weights(weights(trainer.model), before)


def test_an_error_of_several_processes_is_not_hidden(tmp_path, monkeypatch):
    # The others wait for this process, and would for ever.
    trainer = make(tmp_path, "forward", Fails(1, 30, ValueError("on this rank alone")), ExpTestCallback())
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 2))
    monkeypatch.setattr(type(trainer.accelerator), "reduce", lambda self, tensor, reduction: tensor)
    monkeypatch.setattr(type(trainer.accelerator), "gather", lambda self, tensor: tensor.repeat(2))
    before = weights(trainer.model)
    with pytest.raises(ValueError, match="on this rank alone"):
        trainer.train()
    assert_same_weights(weights(trainer.model), before)
