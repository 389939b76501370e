# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What else a Trainer can do, with ExpTest in it."""

import copy

import pytest
import torch
from torch import nn
from toys import (
    ToyClassifier,
    assert_same_weights,
    classification_data,
    decisions,
    language_data,
    language_model,
    make_args,
    make_trainer,
    weights,
)
from transformers import EarlyStoppingCallback, Trainer

from hf_exptest import ExpTestCallback

SETTINGS = {"learning_rate": 0.02, "warmup": 0.1, "cooldown": 0.15, "window": 0.375}
DECIDED = [38, 68]


class Rows(torch.utils.data.IterableDataset):
    """A stream of unknown length that begins anew each time it is read."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def steps(callback):
    return [entry["step"] for entry in callback.history]


def train(tmp_path, callback=None, callbacks=(), **overrides):
    callback = ExpTestCallback(**SETTINGS) if callback is None else callback
    trainer = make_trainer(tmp_path, [callback, *callbacks], **{"max_steps": 80, **overrides})
    trainer.train()
    return callback, trainer


EVALUATED = {
    "eval_strategy": "steps",
    "eval_steps": 10,
    "trainer_kwargs": {"eval_dataset": classification_data(64, 2)},
}


def test_load_best_model_at_end(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 10, "load_best_model_at_end": True}
    callback, trainer = train(tmp_path, **EVALUATED, **saved)
    assert steps(callback) == DECIDED
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 8
    assert trainer.state.best_metric == min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses))


def test_early_stopping(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 10, "load_best_model_at_end": True}
    # Nothing is an improvement by this much, so the second evaluation stops the run.
    stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)
    callback, trainer = train(tmp_path, callbacks=[stop], **EVALUATED, **saved)
    assert trainer.state.global_step == 20
    assert trainer.lr_scheduler.last_epoch == 20
    assert steps(callback) == []
    assert callback.report().num_training_steps == 80


def test_eval_on_start_sees_the_untouched_model(tmp_path):
    callback, trainer = train(tmp_path, ExpTestCallback(), **EVALUATED, eval_on_start=True)
    losses = [(row["step"], row["eval_loss"]) for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 9
    assert callback.search is not None
    untouched = make_trainer(tmp_path, [], **EVALUATED).evaluate()["eval_loss"]
    assert losses[0] == (0, pytest.approx(untouched, abs=1e-6))


@pytest.mark.parametrize("search", [True, False])
def test_iterable_data(tmp_path, search):
    callback = ExpTestCallback(**({} if search else SETTINGS))
    _, trainer = train(tmp_path, callback, data=Rows(classification_data(640)))
    assert trainer.state.global_step == 80
    if search:
        assert decisions(callback)[:2] == [(0, "below_bound", "start"), (8, "look", "raise")]
    else:
        assert steps(callback) == DECIDED


def test_streaming_data(tmp_path):
    from datasets import Dataset

    rows = classification_data(640)
    table = Dataset.from_dict({"x": [r["x"].tolist() for r in rows], "labels": [int(r["labels"]) for r in rows]})
    callback, trainer = train(tmp_path, ExpTestCallback(), data=table.to_iterable_dataset(num_shards=4))
    assert trainer.state.global_step == 80
    assert decisions(callback)[:2] == [(0, "below_bound", "start"), (8, "look", "raise")]


def test_epochs_instead_of_steps(tmp_path):
    # 160 rows in batches of 8: 20 steps an epoch.
    callback, trainer = train(tmp_path, data=classification_data(160), max_steps=-1, num_train_epochs=4)
    assert trainer.state.global_step == 80
    assert steps(callback) == DECIDED


def test_model_init_and_training_again(tmp_path):
    callback = ExpTestCallback()
    trainer = make_trainer_with_init(tmp_path, callback)
    trainer.train()
    first = callback.history, weights(trainer.model)
    trainer.train()
    assert callback.history == first[0]
    assert_same_weights(weights(trainer.model), first[1])


def make_trainer_with_init(tmp_path, callback, **overrides):
    return Trainer(
        model_init=lambda trial=None: ToyClassifier(),
        args=make_args(tmp_path, max_steps=80, **overrides),
        train_dataset=classification_data(),
        eval_dataset=classification_data(64, 2),
        callbacks=[callback],
    )


def test_hyperparameter_search(tmp_path):
    pytest.importorskip("optuna")
    trainer = make_trainer_with_init(tmp_path, ExpTestCallback())
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"weight_decay": trial.suggest_categorical("weight_decay", [0.0, 0.1])},
        backend="optuna",
        n_trials=2,
        direction="minimize",
    )
    assert best.hyperparameters["weight_decay"] in (0.0, 0.1)
    assert trainer.lr_scheduler.last_epoch == 80
    (callback,) = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, ExpTestCallback)]
    assert [entry["test"] for entry in callback.history][:2] == ["below_bound", "look"]


def test_gradient_checkpointing_changes_nothing(tmp_path):
    decided = []
    for checkpointing in (False, True):
        model = language_model()
        callback, trainer = train(
            tmp_path,
            ExpTestCallback(),
            model=model,
            data=language_data(640),
            gradient_checkpointing=checkpointing,
        )
        decided.append([callback.history, weights(trainer.model)])
    assert decided[0][0] == decided[1][0]
    assert_same_weights(decided[0][1], decided[1][1])


def test_compiled_model(tmp_path):
    callback, trainer = train(tmp_path, ExpTestCallback(), torch_compile=True, torch_compile_backend="eager")
    _, plain = train(tmp_path, ExpTestCallback())
    assert isinstance(trainer.model_wrapped, torch._dynamo.eval_frame.OptimizedModule)
    rates = [[entry["learning_rate"] for entry in t.lr_scheduler.history[:2]] for t in (trainer, plain)]
    assert rates[0] == rates[1]
    assert callback.search is not None
    for name, value in weights(plain.model).items():
        torch.testing.assert_close(weights(trainer.model)[name], value, rtol=1e-4, atol=1e-5)


def test_bf16_autocast(tmp_path):
    seen = set()

    class Watched(ToyClassifier):
        def forward(self, x, labels=None):
            output = super().forward(x, labels)
            seen.add(self.net[0](x).dtype)
            return output

    _, trainer = train(tmp_path, ExpTestCallback(), model=Watched(dropout=0.0), bf16=True)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    _, single = train(tmp_path, ExpTestCallback(), model=ToyClassifier(dropout=0.0))
    found, expected = (t.lr_scheduler.history[1]["learning_rate"] for t in (trainer, single))
    assert found == pytest.approx(expected, rel=0.5)


def test_deep_copy_of_the_callback(tmp_path):
    callback, _ = train(tmp_path)
    other = copy.deepcopy(callback)
    assert other.config == callback.config
    assert other.history == []
    train(tmp_path, other)
    assert other.history == callback.history
    assert steps(callback) == DECIDED


def test_frozen_parameters_stay(tmp_path):
    model = ToyClassifier()
    nn.Module.requires_grad_(model.net[0], False)
    before = model.net[0].weight.clone()
    train(tmp_path, ExpTestCallback(), model=model)
    assert torch.equal(model.net[0].weight, before)
