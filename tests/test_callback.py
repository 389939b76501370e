# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import pickle
import types

import numpy as np
import pytest
import torch
from torch import nn
from toys import (
    InOrder,
    StopAt,
    ToyClassifier,
    assert_same_weights,
    classification_data,
    decisions,
    language_data,
    language_model,
    logged,
    make_args,
    make_sft_trainer,
    make_trainer,
    weights,
)
from transformers.optimization import get_linear_schedule_with_warmup

from hf_exptest import ExpTestCallback, ExpTestConfig, ExpTestController, ExpTestScheduler

FIXED = {"learning_rate": 0.02, "warmup": 0.0, "cooldown": 0.0, "window": 0.25}


@pytest.fixture
def observed(monkeypatch):
    """Every loss that reaches a scheduler."""
    losses = []
    observe = ExpTestScheduler.observe

    def spy(self, loss):
        losses.append(float(loss))
        observe(self, loss)

    monkeypatch.setattr(ExpTestScheduler, "observe", spy)
    return losses


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_same_weights_as_a_hand_written_loop(tmp_path, monkeypatch, optimizer_class):
    data = classification_data(320)
    # One window, which fails whatever its losses.
    monkeypatch.setattr(ExpTestController, "_tune", lambda self, losses: (0.5, "decay"))
    callback = ExpTestCallback(learning_rate=0.05, warmup=0.0, window=0.8, cooldown=0.2)
    model = ToyClassifier(dropout=0.0)
    trainer = InOrder(
        model=model,
        args=make_args(tmp_path),
        train_dataset=data,
        callbacks=[callback],
        optimizers=(optimizer_class(model.parameters(), lr=1e-3), None),
    )
    trainer.train()
    rates = logged(trainer, "learning_rate")
    assert len(rates) == 40
    assert any(entry["decision"] == "decay" for entry in callback.history)

    by_hand = ToyClassifier(dropout=0.0)
    optimizer = optimizer_class(by_hand.parameters(), lr=1e-3)
    for step, rate in enumerate(rates):
        rows = data[step * 8 : step * 8 + 8]
        optimizer.param_groups[0]["lr"] = rate
        by_hand(torch.stack([r["x"] for r in rows]), torch.stack([r["labels"] for r in rows]))["loss"].backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert_same_weights(weights(model), weights(by_hand))


def squared_loss(outputs, labels, num_items_in_batch=None):
    errors = (outputs["logits"] - nn.functional.one_hot(labels, 3)).square().sum()
    return errors / (num_items_in_batch if num_items_in_batch is not None else len(labels))


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("case", ["plain", "label_smoothing", "compute_loss_func", "language_model"])
def test_observes_the_true_objective_of_each_step(tmp_path, observed, case, accumulation):
    overrides = {"gradient_accumulation_steps": accumulation, "max_steps": 6, "per_device_train_batch_size": 4}
    if case == "label_smoothing":
        overrides["label_smoothing_factor"] = 0.2
    trainer = make_trainer(
        tmp_path,
        [ExpTestCallback(**FIXED)],
        model=language_model() if case in ("language_model", "label_smoothing") else None,
        data=language_data() if case in ("language_model", "label_smoothing") else None,
        trainer_kwargs={"compute_loss_func": squared_loss} if case == "compute_loss_func" else None,
        **overrides,
    )
    trainer.train()
    assert len(observed) == 6
    assert observed == pytest.approx(logged(trainer, "loss"), abs=6e-5)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_language_loss_is_the_mean_over_all_tokens_of_the_step(tmp_path, observed, accumulation):
    data = language_data(16)
    model = language_model()
    model.eval()
    losses, counts = [], []
    for row in data:
        count = int((row["labels"][1:] != -100).sum())
        losses.append(model(row["input_ids"][None], labels=row["labels"][None]).loss.item() * count)
        counts.append(count)
    trainer = make_trainer(
        tmp_path,
        [ExpTestCallback(**FIXED)],
        model=model,
        data=data,
        max_steps=1,
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainer.train()
    assert observed == pytest.approx([sum(losses) / sum(counts)], rel=1e-5)


def test_sft_with_lora(tmp_path, observed):
    callback = ExpTestCallback()
    trainer = make_sft_trainer(tmp_path, [callback], gradient_accumulation_steps=2)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert len(observed) == 30
    assert observed == pytest.approx(logged(trainer, "loss"), abs=6e-4)
    assert decisions(callback)[:2] == [(0, "below_bound", "start"), (3, "look", "raise")]
    assert callback.search.learning_rate == callback.history[1]["learning_rate"]
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)


def test_nan_loss_is_seen_although_the_log_hides_it(tmp_path):
    class Diverging(ToyClassifier):
        steps = 0

        def forward(self, x, labels=None):
            output = super().forward(x, labels)
            self.steps += 1
            if self.steps > 20:
                output["loss"] = output["loss"] * float("nan")
            return output

    callback = ExpTestCallback(**FIXED)
    trainer = make_trainer(tmp_path, [callback], model=Diverging())
    trainer.train()
    assert np.isfinite(logged(trainer, "loss")).all()
    assert next(e for e in callback.history if e["step"] == 22)["test"] == "divergence"


def test_group_ratios_and_log(tmp_path):
    model = ToyClassifier()
    groups = [{"params": model.net[0].parameters()}, {"params": model.net[4].parameters(), "lr": 0.02}]
    callback = ExpTestCallback(**FIXED)
    trainer = make_trainer(
        tmp_path,
        [callback],
        model=model,
        trainer_kwargs={"optimizers": (torch.optim.AdamW(groups, lr=1e-3), None)},
    )
    trainer.train()
    first, second = trainer.lr_scheduler.get_last_lr()
    assert first == callback.learning_rate
    assert logged(trainer, "learning_rate")[0] == 0.02
    assert second == pytest.approx(20 * first)


def test_resume_is_exact(tmp_path):
    def run(path, max_steps, **kwargs):
        callback = ExpTestCallback(**{**FIXED, "window": 0.1})
        trainer = make_trainer(path, [callback], max_steps=60, save_strategy="steps", save_steps=25)
        if max_steps < 60:
            trainer.add_callback(StopAt(max_steps))
        trainer.train(**kwargs)
        return callback, trainer

    whole, trainer = run(tmp_path / "whole", 60)
    expected = weights(trainer.model)
    run(tmp_path / "cut", 27)
    resumed, trainer = run(tmp_path / "cut", 60, resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-25"))
    assert resumed.history == whole.history
    assert [(entry["step"], entry["test"]) for entry in whole.history] == [(30, "slope"), (60, "slope")]
    assert_same_weights(weights(trainer.model), expected)


def test_resume_keeps_the_rate_that_was_found(tmp_path):
    first = ExpTestCallback()
    make_trainer(tmp_path, [first], save_strategy="steps", save_steps=20).train()
    second = ExpTestCallback()
    make_trainer(tmp_path, [second], save_strategy="steps", save_steps=20).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-20")
    )
    assert second.search is None
    assert second.history == first.history


def test_train_twice_and_auto_find_batch_size(tmp_path):
    class OutOfMemoryOnce(ToyClassifier):
        failed = False

        def forward(self, x, labels=None):
            if self.training and len(x) == 8 and torch.is_grad_enabled() and not self.failed:
                self.failed = True
                raise RuntimeError("CUDA out of memory.")
            return super().forward(x, labels)

    callback = ExpTestCallback(**FIXED)
    trainer = make_trainer(tmp_path, [callback], model=OutOfMemoryOnce(), auto_find_batch_size=True)
    trainer.train()
    assert trainer.state.global_step == 40
    assert trainer._train_batch_size < 8
    assert trainer.lr_scheduler.last_epoch == 40
    trainer.train()
    assert trainer.lr_scheduler.last_epoch == 40
    assert callback.history[-1]["step"] <= 40


def test_add_callback_needs_set_trainer(tmp_path):
    trainer = make_trainer(tmp_path, [])
    callback = ExpTestCallback(**FIXED)
    trainer.add_callback(callback)
    with pytest.raises(RuntimeError, match="set_trainer"):
        trainer.train()
    callback.set_trainer(trainer)
    trainer.train()
    assert isinstance(trainer.lr_scheduler, ExpTestScheduler)
    assert callback.history


def test_second_callback_is_refused(tmp_path):
    with pytest.raises(ValueError, match="2 ExpTestCallback"):
        make_trainer(tmp_path, [ExpTestCallback(), ExpTestCallback()])


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "lomo", "adalomo", "galore_adamw_layerwise"])
def test_unsuitable_optim_is_refused(tmp_path, optim):
    with pytest.raises(ValueError, match=f"optim='{optim}'"):
        make_trainer(tmp_path, [ExpTestCallback()], optim=optim)


def test_users_own_scheduler_is_refused(tmp_path):
    model = ToyClassifier()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = get_linear_schedule_with_warmup(optimizer, 1, 10)
    with pytest.raises(ValueError, match="LambdaLR"):
        make_trainer(tmp_path, [ExpTestCallback()], model=model, trainer_kwargs={"optimizers": (optimizer, scheduler)})


def test_zero_learning_rate_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"learning_rate=0\.0"):
        make_trainer(tmp_path, [ExpTestCallback()], learning_rate=0.0)


def test_bad_settings_are_quoted():
    with pytest.raises(ValueError, match="'alhpa'"):
        ExpTestCallback(alhpa=0.1)
    with pytest.raises(ValueError, match="beta=2"):
        ExpTestCallback(beta=2)
    with pytest.raises(TypeError, match="dict"):
        ExpTestCallback({"alpha": 0.1})
    assert ExpTestCallback(ExpTestConfig(alpha=0.01), beta=0.5).config == ExpTestConfig(alpha=0.01, beta=0.5)


def test_callback_can_be_pickled(tmp_path):
    callback = ExpTestCallback(**FIXED)
    make_trainer(tmp_path, [callback]).train()
    copy = pickle.loads(pickle.dumps(callback))
    assert copy.config == callback.config
    assert copy.history == []
    make_trainer(tmp_path, [copy]).train()
    assert copy.history == callback.history


def test_other_trainers_are_untouched(tmp_path):
    make_trainer(tmp_path, [ExpTestCallback(**FIXED)])
    plain = make_trainer(tmp_path, [])
    plain.train()
    assert type(plain.lr_scheduler).__name__ == "LambdaLR"
    assert "training_step" not in vars(plain)


def test_paper_preset_starts_from_the_bound_and_detects(tmp_path):
    callback = ExpTestCallback(ExpTestConfig.paper())
    model = ToyClassifier(dropout=0.0)
    trainer = make_trainer(
        tmp_path,
        [callback],
        model=model,
        max_steps=200,
        trainer_kwargs={"optimizers": (torch.optim.SGD(model.parameters(), lr=1e-3), None)},
    )
    trainer.train()
    assert callback.history[0]["test"] == "first_update_bound"
    assert callback.history[1]["test"] == "exponential_decay"
    assert logged(trainer, "learning_rate")[0] == callback.history[0]["learning_rate"]


def test_a_step_without_a_loss_is_an_error(tmp_path):
    def step(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()

    trainer = make_trainer(tmp_path, [ExpTestCallback()])
    trainer.training_step = types.MethodType(step, trainer)
    with pytest.raises(RuntimeError, match=r"saw no loss in the first step.*Trainer\.training_step"):
        trainer.train()
    assert trainer.state.global_step == 1
    # Connected after that, it is seen.
    callback = ExpTestCallback()
    other = make_trainer(tmp_path, [])
    other.training_step = types.MethodType(step, other)
    other.add_callback(callback)
    callback.set_trainer(other)
    other.train()
    assert decisions(callback)[1][1:] == ("look", "raise")


def test_a_scheduler_that_comes_later_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, [ExpTestCallback()])
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 10)
    with pytest.raises(
        ValueError, match="The Trainer has a scheduler, StepLR, which sets the learning rate as ExpTest"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_create_scheduler_that_comes_later_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, [ExpTestCallback()])

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 10)
        return self.lr_scheduler

    trainer.create_scheduler = types.MethodType(create_scheduler, trainer)
    with pytest.raises(RuntimeError, match="create_scheduler was replaced after ExpTestCallback was connected"):
        trainer.train()
    assert trainer.state.global_step == 0
