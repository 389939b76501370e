# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What others see of a search: nothing but the rate, and sentences that are true."""

import dataclasses
import logging
import sys
import time

import pytest
import torch
from reports import SEARCH
from torch import nn
from toys import (
    GivenRates,
    ToyClassifier,
    assert_same_weights,
    classification_data,
    decisions,
    logged,
    make_args,
    make_trainer,
    weights,
)
from tqdm.auto import tqdm
from transformers import PretrainedConfig, Trainer, TrainerCallback, set_seed

from hf_exptest import ExpTestCallback, ExpTestScheduler, Report, find_learning_rate
from hf_exptest.internals import warn_above_bar
from hf_exptest.stage import Stage


class Talking(Trainer):
    """Logs a part of its loss and keeps it in a list, in each training step."""

    parts = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        if model.training:
            self.parts.append(float(outputs["loss"].detach()))
            self.log({"part": float(outputs["loss"].detach())})
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


class Bypassing(Talking):
    """Logs past the methods of its own instance."""

    def log(self, logs, start_time=None):
        super().log(logs, start_time)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            Trainer.log(self, {"part": 1.0})
            self.parts.append(1.0)
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


class Reporter(TrainerCallback):
    """Tells every row to somebody outside, whom no search puts back."""

    def __init__(self):
        rows = []
        self.tell = rows.append
        self.told = lambda: rows

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.tell(dict(logs))


@pytest.mark.parametrize("kind", [Talking, Bypassing])
def test_what_the_user_logs_in_the_search_is_not_heard(tmp_path, kind):
    reporter, parts = Reporter(), []
    trainer = kind(
        model=ToyClassifier(),
        args=make_args(tmp_path),
        train_dataset=classification_data(),
        callbacks=[ExpTestCallback(), reporter],
    )
    trainer.parts = parts
    trainer.train()
    assert trainer.parts is parts
    assert len(parts) == 40
    assert [row["step"] for row in trainer.state.log_history if "part" in row] == list(range(40))
    assert sum("part" in row for row in reporter.told()) == 40


def test_the_times_of_training_leave_the_search_out(tmp_path):
    class Slow(ToyClassifier):
        def forward(self, x, labels=None):
            time.sleep(0.01)
            return super().forward(x, labels)

    reporter = Reporter()
    trainer = make_trainer(
        tmp_path, [ExpTestCallback(), reporter], model=Slow(), include_num_input_tokens_seen="all", max_steps=20
    )
    began = time.monotonic()
    metrics = trainer.train().metrics
    whole = time.monotonic() - began
    search_runtime = metrics["exptest_search_runtime"]
    # Some 110 passes against 20.
    assert search_runtime > 4 * metrics["train_runtime"]
    assert search_runtime + metrics["train_runtime"] < whole
    assert metrics["train_steps_per_second"] == pytest.approx(20 / metrics["train_runtime"], rel=0.02)
    assert metrics["train_samples_per_second"] == pytest.approx(160 / metrics["train_runtime"], rel=0.02)
    assert reporter.told()[-1]["exptest_search_runtime"] == search_runtime
    times = [row["train_runtime"] for row in reporter.told()[:-1]]
    assert max(times) <= metrics["train_runtime"] + 0.1
    plain = make_trainer(tmp_path, [ExpTestCallback(learning_rate=0.01)], max_steps=5).train().metrics
    assert "exptest_search_runtime" not in plain


def test_find_learning_rate_leaves_hooks_and_state(tmp_path):
    from toys import language_data, language_model

    model = language_model()
    trainer = make_trainer(tmp_path, [], model=model, data=language_data(), neftune_noise_alpha=5.0, max_steps=5)
    trainer.train()
    state, control, seconds = trainer.state, trainer.control, dict(vars(trainer))
    step, rows = state.global_step, list(state.log_history)
    find_learning_rate(trainer)
    assert trainer.state is state
    assert trainer.control is control
    assert (state.global_step, state.log_history) == (step, rows)
    assert {name for name in vars(trainer) if vars(trainer)[name] is not seconds.get(name)} == set()
    assert len(model.get_input_embeddings()._forward_hooks) == 0
    hooks = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            hooks.append(len(model.get_input_embeddings()._forward_hooks))

    trainer.add_callback(Look())
    trainer.train()
    assert hooks == [1] * 5
    assert len(model.get_input_embeddings()._forward_hooks) == 0


def test_one_callback_serves_trainers_that_were_made_before(tmp_path):
    callback = ExpTestCallback()
    trainers = [
        make_trainer(tmp_path / str(i), [callback], model=ToyClassifier(seed=i), data=classification_data(seed=i))
        for i in range(2)
    ]
    for i, trainer in enumerate(trainers):
        set_seed(7)
        trainer.train()
        alone = ExpTestCallback()
        expected = make_trainer(
            tmp_path / "alone", [alone], model=ToyClassifier(seed=i), data=classification_data(seed=i)
        )
        set_seed(7)
        expected.train()
        assert callback.history == alone.history
        assert_same_weights(weights(trainer.model), weights(expected.model))
    # A card of the first is about the first.
    for trainer in trainers:
        trainer.model.config = PretrainedConfig()
        trainer.create_model_card()
    rates = [trainer.lr_scheduler.history[1]["learning_rate"] for trainer in trainers]
    assert rates[0] != rates[1]
    for i, rate in enumerate(rates):
        assert f"- learning_rate: {rate}\n" in (tmp_path / str(i) / "README.md").read_text()


def test_a_removed_callback_has_no_part_in_the_training(tmp_path):
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], learning_rate=1e-3)
    trainer.remove_callback(callback)
    trainer.train()
    plain = make_trainer(tmp_path, [], learning_rate=1e-3)
    plain.train()
    assert_same_weights(weights(trainer.model), weights(plain.model))
    assert type(trainer.lr_scheduler) is type(plain.lr_scheduler)
    assert trainer.state.log_history[0].keys() == plain.state.log_history[0].keys()
    # And back again, in the Trainer that it knows.
    trainer.add_callback(callback)
    trainer.train()
    assert isinstance(trainer.lr_scheduler, ExpTestScheduler)


def test_a_callback_that_was_only_added_says_so(tmp_path):
    callback = ExpTestCallback()
    make_trainer(tmp_path, [callback], max_steps=3).train()
    other = make_trainer(tmp_path, [], max_steps=3)
    other.add_callback(callback)
    with pytest.raises(RuntimeError, match=r"callback\.set_trainer\(trainer\)"):
        other.train()


class OwnSchedule(Trainer):
    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer or self.optimizer, 10)
        return self.lr_scheduler


class OptionalSchedule(Trainer):
    def create_scheduler(self, num_training_steps, optimizer=None):
        return super().create_scheduler(num_training_steps, optimizer)


def test_a_scheduler_of_a_subclass_is_refused_and_an_optional_one_is_told(tmp_path, caplog, monkeypatch):
    def make(kind):
        return kind(model=ToyClassifier(), args=make_args(tmp_path), train_dataset=[], callbacks=[ExpTestCallback()])

    with pytest.raises(ValueError, match=r"OwnSchedule\.create_scheduler makes a scheduler"):
        make(OwnSchedule)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        make(OptionalSchedule)
    assert "ExpTest sets the learning rate, so that OptionalSchedule.create_scheduler is not called." in caplog.text

    caplog.clear()
    with monkeypatch.context() as patch, caplog.at_level("WARNING", logger="hf_exptest"):
        # One process tells it for all.
        patch.setattr(Trainer, "is_world_process_zero", lambda trainer: False)
        make(OptionalSchedule)
    assert caplog.text == ""


def test_a_warning_begins_a_line_where_a_bar_is_drawn(capsys):
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    with tqdm(total=10) as bar:
        bar.update(3)
        bar.refresh()
        warn_above_bar(logger, "no rate")
    before, after = capsys.readouterr().err.split("no rate")
    assert "3/10" in before
    assert before.endswith(" \r")
    assert after.startswith("\n")
    assert "3/10" in after


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("hf_exptest") and r.levelno >= logging.WARNING]


def test_arguments_that_are_replaced_are_named_once(tmp_path, caplog):
    given = {"learning_rate": 2e-5, "lr_scheduler_type": "cosine", "warmup_steps": 50}
    with caplog.at_level("WARNING", logger="hf_exptest"):
        make_trainer(tmp_path, [ExpTestCallback()], **given).train()
    assert warnings_of(caplog) == [
        "ExpTest sets the learning rate, so that learning_rate=2e-05, lr_scheduler_type='cosine', warmup_steps=50 are"
        " not used."
    ]
    caplog.clear()
    with caplog.at_level("WARNING", logger="hf_exptest"):
        make_trainer(tmp_path, [ExpTestCallback(learning_rate=0.01)]).train()
    assert warnings_of(caplog) == []
    with caplog.at_level("WARNING", logger="hf_exptest"):
        make_trainer(tmp_path, [ExpTestCallback(learning_rate=0.01)], lr_scheduler_type="cosine").train()
    assert warnings_of(caplog) == ["ExpTest sets the learning rate, so that lr_scheduler_type='cosine' is not used."]


class Noise(nn.Module):
    """Has nothing to learn."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def noise(n=2000):
    generator = torch.Generator().manual_seed(0)
    return [
        {"x": torch.randn(8, generator=generator), "labels": torch.randint(3, (), generator=generator)}
        for _ in range(n)
    ]


@pytest.mark.figures
def test_an_inconclusive_search_changes_nothing_and_says_so(tmp_path, caplog, capsys):
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], model=Noise(), data=noise(), learning_rate=2e-4, max_steps=60)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train()
    assert callback.search is not None
    assert not callback.search.is_conclusive
    assert decisions(callback)[:2] == [(0, "below_bound", "start"), (6, "training_arguments", "start")]
    assert callback.history[1]["learning_rate"] == 2e-4
    rates = logged(trainer, "learning_rate")
    assert max(rates[6:]) == 2e-4
    # The steps of the warm-up were made by then.
    assert rates[5] == callback.history[0]["learning_rate"] != 2e-4
    (said,) = warnings_of(caplog)
    assert "trials lowers the loss on held-out batches significantly" in said
    assert "training goes on with TrainingArguments.learning_rate=0.0002, unchanged" in said
    assert (
        "ExpTest: step 6: goes on with learning rate 0.0002 (TrainingArguments.learning_rate)"
        in capsys.readouterr().out
    )
    report = Report.load(tmp_path)
    assert report.starting_rate == 2e-4
    assert "found the learning rate" not in report.summary()
    assert (tmp_path / "exptest.png").stat().st_size > 10_000
    caplog.clear()
    with caplog.at_level("WARNING", logger="hf_exptest"):
        found = find_learning_rate(make_trainer(tmp_path, [], model=Noise(), data=noise(), max_steps=60))
    assert not found.is_conclusive
    assert warnings_of(caplog)[0].startswith("No learning rate was found")


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_the_rate_that_was_found_is_printed(tmp_path, capsys, disable_tqdm):
    callback = ExpTestCallback()
    make_trainer(tmp_path, [callback], disable_tqdm=disable_tqdm).train()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ExpTest")]
    low, high = (entry["learning_rate"] for entry in callback.history)
    assert high == callback.search.learning_rate
    assert printed[0] == f"ExpTest: starts with learning rate {low:.2g} (a thirtieth of the upper bound)"
    assert printed[1].startswith("ExpTest: step 4: a look finds a higher rate better (p = ")
    assert printed[1].endswith(f"): learning rate {low:.2g} -> {high:.2g}")
    assert len(printed) == 2


def test_the_report_is_there_after_the_search_and_after_each_checkpoint(tmp_path):
    seen = {}

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen[state.global_step] = Report.load(tmp_path)

    make_trainer(tmp_path, [ExpTestCallback(), Look()], save_strategy="steps", save_steps=20).train()
    assert [seen[step].search is not None for step in (0, 3, 4, 39)] == [False, False, True, True]
    assert [seen[step].history[-1]["test"] for step in (0, 4)] == ["below_bound", "look"]
    # The rows of the steps come a little later than the looks that they lead to.
    assert [len(seen[step].losses) for step in (0, 4, 19, 20, 39)] == [0, 3, 3, 20, 20]
    assert len(Report.load(tmp_path).losses) == 40


@pytest.mark.parametrize("longer", [False, True])
def test_a_resumed_training_still_reports_its_search(tmp_path, longer):
    first = ExpTestCallback()
    make_trainer(tmp_path, [first], save_strategy="steps", save_steps=20).train()
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], max_steps=80 if longer else 40)
    trainer.train(resume_from_checkpoint=str(tmp_path / ("checkpoint-40" if longer else "checkpoint-20")))
    assert callback.search is None
    assert callback.report().search == first.search
    assert Report.load(tmp_path).summary().splitlines()[0] == first.report().summary().splitlines()[0]
    rates = {row["step"]: row["learning_rate"] for row in trainer.state.log_history if "loss" in row}
    assert max(rates.values()) == first.search.learning_rate


@pytest.mark.parametrize("given", [None, 0.02])
def test_a_checkpoint_without_the_scheduler_goes_on_at_its_step(tmp_path, caplog, given):
    saved = {"save_strategy": "steps", "save_steps": 20, "save_only_model": True}
    whole = make_trainer(tmp_path, [ExpTestCallback(learning_rate=given)], **saved)
    whole.train()
    expected = {row["step"]: row["learning_rate"] for row in whole.state.log_history if "loss" in row}
    callback = ExpTestCallback(learning_rate=given)
    trainer = make_trainer(tmp_path, [callback])
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert callback.search is None
    rates = {row["step"]: row["learning_rate"] for row in trainer.state.log_history if "loss" in row}
    assert [rates[step] for step in range(21, 41)] == [expected[step] for step in range(21, 41)]
    assert "no state of the learning-rate scheduler" in caplog.text
    assert "goes on at step 20" in caplog.text


@pytest.mark.parametrize("rates", [(1e-3, 0.0), (0.0, 1e-3), (0.0, 1e-3, 2e-3)])
def test_a_frozen_group_may_stand_anywhere(tmp_path, rates):
    model = ToyClassifier()
    parts = [model.net[0], model.net[1], model.net[4]]
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip(parts, rates, strict=False)]
    frozen = [p for part, rate in zip(parts, rates, strict=False) if rate == 0 for p in part.parameters()]
    before = [p.detach().clone() for p in frozen]
    callback = ExpTestCallback()
    optimizer = torch.optim.AdamW(groups)
    trainer = make_trainer(tmp_path, [callback], model=model, trainer_kwargs={"optimizers": (optimizer, None)})
    trainer.train()
    assert callback.history[1]["test"] == "look"
    assert all(torch.equal(p, old) for p, old in zip(frozen, before, strict=True))
    used = logged(trainer, "learning_rate")
    assert max(used) == callback.search.learning_rate
    assert min(used) > 0
    if len(rates) == 3:
        assert optimizer.param_groups[2]["initial_lr"] == 2 * optimizer.param_groups[1]["initial_lr"]


class Scaled(TrainerCallback):
    """Makes gradients smaller; tells how often it was called."""

    calls = 0

    def __init__(self, factor):
        self.factor = factor

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        Scaled.calls += 1
        for parameter in model.parameters():
            parameter.grad.mul_(self.factor)


def test_callbacks_that_change_gradients_take_part(tmp_path):
    found = {}
    for factor in (1.0, 0.01):
        for how in ("hook", "callback"):
            model = ToyClassifier(dropout=0.0)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            if how == "hook":
                for parameter in model.parameters():
                    parameter.register_hook(lambda gradient, factor=factor: factor * gradient)
            others = [Scaled(factor)] if how == "callback" else []
            Scaled.calls = 0
            kwargs = {"optimizers": (optimizer, None)}
            trainer = make_trainer(tmp_path, others, model=model, trainer_kwargs=kwargs, max_grad_norm=0.0)
            found[factor, how] = find_learning_rate(trainer)
            if how == "callback":
                # One that leaves them as they are is not called again; the steps up to the look are steps, too.
                num_steps = found[factor, how].num_steps + found[factor, how].step
                assert Scaled.calls == (num_steps if factor < 1 else 1)
    for factor in (1.0, 0.01):
        assert found[factor, "callback"].learning_rate == found[factor, "hook"].learning_rate
    assert found[0.01, "hook"].learning_rate > 20 * found[1.0, "hook"].learning_rate


class OnlyInTraining(ToyClassifier):
    def forward(self, x, labels=None):
        output = super().forward(x, labels)
        return output if self.training else {"logits": output["logits"]}


def test_losses_that_exist_only_in_training_mode(tmp_path):
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], model=OnlyInTraining())
    trainer.train()
    assert callback.history[1]["test"] == "look"
    rates = logged(trainer, "learning_rate")
    plain = make_trainer(tmp_path, [GivenRates(rates)], model=OnlyInTraining())
    plain.train()
    assert_same_weights(weights(trainer.model), weights(plain.model))


class Penalised(ToyClassifier):
    """A loss with a gradient in it, as forces and gradient penalties are; in one mode alone, or in both."""

    def __init__(self, modes):
        super().__init__(dropout=0.0)
        self.modes = modes

    def forward(self, x, labels=None):
        if self.training not in self.modes:
            return {"logits": x}
        x = x.clone().requires_grad_(True)
        output = super().forward(x, labels)
        (gradient,) = torch.autograd.grad(output["loss"], x, create_graph=True)
        return {"loss": output["loss"] + gradient.square().sum(), "logits": output["logits"]}


@pytest.mark.parametrize("modes", [(True, False), (True,)])
def test_losses_that_contain_gradients(tmp_path, modes):
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], model=Penalised(modes), max_steps=20)
    trainer.train()
    assert callback.history[1]["test"] == "look"
    rates = logged(trainer, "learning_rate")
    plain = make_trainer(tmp_path, [GivenRates(rates)], model=Penalised(modes), max_steps=20)
    plain.train()
    assert_same_weights(weights(trainer.model), weights(plain.model))


class Scaling(Trainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, {**inputs, "x": 2 * inputs["x"]}, *args, **kwargs)


class Popping(Trainer):
    """Uses its inputs up, and writes to them."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        labels, x = inputs.pop("labels"), inputs.pop("x")
        return super().training_step(model, {"x": x, "labels": labels}, num_items_in_batch)

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, {"labels": inputs.pop("labels"), "x": inputs["x"].mul_(2)}, *args, **kwargs)


def test_a_training_step_may_use_its_inputs_up(tmp_path):
    found = []
    for kind in (Scaling, Popping):
        trainer = kind(model=ToyClassifier(), args=make_args(tmp_path), train_dataset=classification_data())
        found.append(find_learning_rate(trainer))
    assert found[0].learning_rate == found[1].learning_rate
    assert [t.end_losses for t in found[0].trials] == [t.end_losses for t in found[1].trials]


class Margin(nn.Module):
    """A loss of exactly zero, and no gradient, on most batches: those whose margin is satisfied."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(8, 1)

    def forward(self, x, easy, labels=None):
        loss = nn.functional.cross_entropy(torch.cat([self.net(x), -self.net(x)], 1), labels, reduction="none")
        return {"loss": (loss * (1 - easy)).mean()}


@pytest.mark.parametrize("num_easy", [5, 8, 20])
def test_batches_without_a_loss_are_no_divergence(tmp_path, num_easy):
    # The first batch has no loss, and then one in so many has one.
    rows = [
        {
            "x": row["x"],
            "labels": (row["labels"] > 0).long(),
            "easy": torch.tensor(float(i % (num_easy + 1) < num_easy)),
        }
        for i, row in enumerate(classification_data(1024))
    ]
    ordered = type(
        "InOrder", (Trainer,), {"_get_train_sampler": lambda self, *_: torch.utils.data.SequentialSampler(rows)}
    )
    args = make_args(tmp_path, per_device_train_batch_size=1, max_steps=60)
    found = find_learning_rate(ordered(model=Margin(), args=args, train_dataset=rows))
    assert [trial.outcome for trial in found.trials if trial.learning_rate < 0.1].count("diverged") == 0
    assert {len(trial.curve) for trial in found.trials if trial.outcome == "ended"} == {14}


def test_a_loss_beside_those_of_zero_is_not_high():
    stage = object.__new__(Stage)
    stage.untouched = [0.0] * 11 + [0.7]
    assert not stage._is_high(0.7, 0.0)
    assert stage._is_high(7.0, 0.0)


class RawFeatures(nn.Module):
    """Least squares on inputs of size 1e5, where only rates near 1e-11 are of use."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(8))

    def forward(self, x, y):
        return {"loss": ((x @ self.w - y) ** 2).mean()}


@pytest.mark.parametrize("size", [1e5, 1e7])
def test_the_bound_has_no_floor(tmp_path, size):
    generator = torch.Generator().manual_seed(1)
    rows = [{"x": size * torch.randn(8, generator=generator)} for _ in range(512)]
    rows = [{**row, "y": row["x"].sum()} for row in rows]
    model = RawFeatures()
    kwargs = {"optimizers": (torch.optim.SGD(model.parameters(), lr=1e-11), None)}
    callback = ExpTestCallback()
    trainer = make_trainer(
        tmp_path,
        [callback],
        model=model,
        data=rows,
        trainer_kwargs=kwargs,
        max_grad_norm=0.0,
        remove_unused_columns=False,
    )
    trainer.train()
    assert callback.history[1]["test"] == "look"
    assert 0.01 / size**2 < callback.search.learning_rate < 1 / size**2
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.01 * losses[0]


def test_preference_losses_that_reach_zero_get_a_warning(tmp_path, caplog, monkeypatch):
    from hf_exptest import Trial

    class DPOTrainer(Trainer):
        pass

    trial = Trial(1e-3, 14, [0.0] * 14, [1e-12, 1e-30, 0.0])
    found = dataclasses.replace(SEARCH, untouched_losses=[0.69, 0.7, 0.68], trials=[trial])
    assert found.reaches_zero
    monkeypatch.setattr("hf_exptest.look.look", lambda *args, **kwargs: found)
    for kind in (Trainer, DPOTrainer):
        caplog.clear()
        with caplog.at_level("WARNING", logger="hf_exptest"):
            kind(
                model=ToyClassifier(),
                args=make_args(tmp_path, max_steps=3),
                train_dataset=classification_data(),
                callbacks=[ExpTestCallback()],
            ).train()
        assert [text.startswith("In ExpTest's look, the loss came down to zero") for text in warnings_of(caplog)] == (
            [True] if kind is DPOTrainer else []
        )
