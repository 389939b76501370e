# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A search cannot stop a training: whatever goes wrong inside it, training starts from the weights that came."""

import pytest
import torch
from toys import ToyClassifier, assert_same_weights, classification_data, make_trainer, weights
from transformers import TrainerCallback

from hf_exptest import ExpTestCallback, find_learning_rate

ARGS = {"max_steps": 3, "learning_rate": 3e-3}


class Fails:
    """Raises `error` the `n`-th time that it is asked, once."""

    def __init__(self, n, error):
        self.n, self.error, self.count = n, error, 0

    def __call__(self):
        self.count += 1
        if self.count == self.n:
            raise self.error

    # An onlooker, whom no search puts back.
    __slots__ = ("count", "error", "n")

    def __deepcopy__(self, memo):
        return self


def wrapped(owner, name, fails):
    function = getattr(owner, name)

    def call(*args, **kwargs):
        fails()
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
        self.ask = lambda: fails()

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
        self.ask = lambda: fails()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        self.ask()
        return self.rows[i]


class BeforeStep(TrainerCallback):
    def __init__(self, fails):
        self.ask = lambda: fails()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            parameter.grad.mul_(0.5)
        self.ask()


def make(path, where, fails, callback):
    data = Rows(fails) if where == "data" else classification_data()
    others = [BeforeStep(fails)] if where == "callback" else []
    trainer = make_trainer(path, [callback, *others], model=Classifier(where, fails), data=data, **ARGS)
    if where == "step":
        trainer.create_optimizer()
        step, optimizer = type(trainer.optimizer).step, trainer.optimizer
        optimizer.step = lambda *args, **kwargs: (fails(), step(optimizer, *args, **kwargs))[1]
    elif where == "clip":
        wrapped(trainer.accelerator, "clip_grad_norm_", fails)
    elif where in ("training_step", "compute_loss", "get_train_dataloader", "get_batch_samples"):
        wrapped(trainer, where, fails)
    return trainer


# Calls that a search makes of each. Where the first evaluation fails, the search tries one in training mode.
WHERE = {
    "forward": (2, 3, 12, 13, 20, 30, 64, 65, 66, 67, 70, 80, 95),
    "backward": (1, 2, 3, 4, 5, 10, 14, 15, 16, 20, 30, 45),
    "step": (1, 2, 3, 4, 5, 10, 14, 15, 16, 20, 30, 250),
    "training": (1, 2, 3, 5, 10, 14, 15, 20, 30, 45),
    "evaluation": (2, 12, 13, 30, 64, 66, 70, 80, 100),
    "data": (1, 2, 8, 9, 100, 101, 300, 512),
    "clip": (1, 2, 5, 10, 15, 30, 45),
    "callback": (1, 2, 5, 10, 15, 30, 45),
    "training_step": (1, 2, 5, 10, 15, 30, 90),
    "compute_loss": (2, 3, 13, 30, 65, 66, 70, 90, 120, 270),
    "get_batch_samples": (1, 2, 20, 63),
    "get_train_dataloader": (2,),
}
ERRORS = [ValueError("not so"), RuntimeError("on the device"), KeyError("labels"), StopIteration(), AssertionError()]
FAULTS = [
    # A data set that raises StopIteration has come to its end.
    (where, n, ERRORS[i % (3 if where == "data" else 5)])
    for where, times in WHERE.items()
    for i, n in enumerate(times)
]


def test_there_are_enough_faults():
    assert len(FAULTS) >= 100


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The weights of trainings at the user's own rate, without a search, by whether gradients are halved."""
    found = {}
    for where in ("forward", "callback"):
        callback = ExpTestCallback(learning_rate=ARGS["learning_rate"])
        trainer = make(tmp_path_factory.mktemp("expected"), where, Fails(0, None), callback)
        trainer.train()
        found[where] = weights(trainer.model)
    return found


@pytest.mark.parametrize(("where", "n", "error"), FAULTS)
def test_training_starts_from_the_weights_that_came(tmp_path, caplog, expected, where, n, error):
    fails = Fails(n, error)
    callback = ExpTestCallback()
    trainer = make(tmp_path, where, fails, callback)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train()
    assert fails.count >= n
    assert trainer.state.global_step == 3
    assert_same_weights(weights(trainer.model), expected["callback" if where == "callback" else "forward"])
    start = callback.history[0]
    assert (start["test"], start["learning_rate"], start["phase"]) == ("training_arguments", 3e-3, "tune")
    (said,) = [record.getMessage() for record in caplog.records if "found no learning rate" in record.getMessage()]
    assert type(error).__name__ in said
    assert (
        "Everything is as it was, and training starts from TrainingArguments.learning_rate=0.003, unchanged." in said
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), torch.OutOfMemoryError()])
@pytest.mark.parametrize("where", ["forward", "step", "data"])
def test_an_interrupt_or_want_of_memory_ends_the_training(tmp_path, where, error):
    trainer = make(tmp_path, where, Fails(20, error), ExpTestCallback())
    before = weights(trainer.model)
    with pytest.raises(type(error)):
        trainer.train()
    assert trainer.state.global_step == 0
    assert_same_weights(weights(trainer.model), before)


def test_auto_find_batch_size_sees_want_of_memory(tmp_path):
    sizes = []

    class Large(ToyClassifier):
        def forward(self, x, labels=None):
            sizes.append(len(x))
            if len(x) > 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().forward(x, labels)

    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], model=Large(), auto_find_batch_size=True, max_steps=3)
    trainer.train()
    assert max(sizes) == 8
    assert trainer.state.global_step == 3
    assert callback.history[0]["test"] == "search"


def test_find_learning_rate_raises_what_the_user_s_code_raises(tmp_path):
    trainer = make(tmp_path, "forward", Fails(90, ValueError("the user's own")), ExpTestCallback())
    before = weights(trainer.model)
    with pytest.raises(ValueError, match="the user's own"):
        find_learning_rate(trainer)
    assert_same_weights(weights(trainer.model), before)


def test_an_error_of_several_processes_is_not_hidden(tmp_path, monkeypatch):
    # The others wait for this process, and would for ever.
    trainer = make(tmp_path, "forward", Fails(90, ValueError("on this rank alone")), ExpTestCallback())
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 2))
    monkeypatch.setattr(type(trainer.accelerator), "reduce", lambda self, tensor, reduction: tensor)
    monkeypatch.setattr(type(trainer.accelerator), "gather", lambda self, tensor: tensor.repeat(2))
    before = weights(trainer.model)
    with pytest.raises(ValueError, match="on this rank alone"):
        trainer.train()
    assert_same_weights(weights(trainer.model), before)
