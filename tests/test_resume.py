# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Stopping and resuming is as if training had never stopped."""

import json
import math
from pathlib import Path

import forks
import pytest
import torch
from peft import LoraConfig, get_peft_model
from toys import StopAt, assert_same_weights, language_data, language_model, make_trainer, weights
from transformers import PretrainedConfig

from hf_exptest import ExpTestCallback
from hf_exptest.words import descriptions

# 80 steps: warm-up to 8, windows of 30 to 68, cool-down.
PHASES = {"warm-up": 5, "TUNE": 21, "between two windows": 38, "TUNE, later": 50, "cool-down": 73}
MODELS = ["plain", "lora"]
# The look is made after the last step of the warm-up, before that step's checkpoint.
AROUND_THE_LOOK = {"before the look": 5, "at the look": 8, "in the second warm-up": 12, "in the cool-down": 60}


def look():
    return ExpTestCallback()


def tune():
    return ExpTestCallback(learning_rate=0.02, warmup=0.1, cooldown=0.15, window=0.375)


def detect():
    return ExpTestCallback(search=False, warmup=0.1, cooldown=0.15, window=0.375)


def make(path, callbacks, model="plain", **overrides):
    settings = {"max_steps": 80, "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    kwargs = {}
    if model == "lora":
        lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
        kwargs = {"model": get_peft_model(language_model(), lora), "data": language_data(1280)}
    return make_trainer(path, callbacks, **kwargs, **{**settings, "per_device_train_batch_size": 4, **overrides})


def stop_and_resume(path, make_callback, step, model="plain"):
    """The callback and the Trainer of the second part of a run that stopped at `step`."""
    make(path, [make_callback(), StopAt(step)], model, save_steps=step).train()
    callback = make_callback()
    trainer = make(path, [callback], model, save_strategy="no")
    trainer.train(resume_from_checkpoint=str(path / f"checkpoint-{step}"))
    return callback, trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Decisions and last weights of runs that never stopped."""
    made = {}

    def get(make_callback, model):
        key = make_callback.__name__, model
        if key not in made:
            callback = make_callback()
            trainer = make(tmp_path_factory.mktemp("whole"), [callback], model, save_strategy="no")
            trainer.train()
            made[key] = callback.history, weights(trainer.model)
        return made[key]

    return get


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("phase", PHASES)
def test_each_phase_continues_bit_for_bit(tmp_path, whole, phase, model):
    history, expected = whole(tune, model)
    assert [entry["step"] for entry in history] == [38, 68]
    callback, trainer = stop_and_resume(tmp_path, tune, PHASES[phase], model)
    assert callback.history == history
    assert trainer.state.global_step == 80
    assert_same_weights(weights(trainer.model), expected)


def test_detect_continues_bit_for_bit(tmp_path, whole):
    history, expected = whole(detect, "plain")
    assert [entry["test"] for entry in history[:2]] == ["first_update_bound", "exponential_decay"]
    assert history[1]["step"] > 10
    callback, trainer = stop_and_resume(tmp_path, detect, 10)
    assert callback.history == history
    assert_same_weights(weights(trainer.model), expected)


@pytest.mark.parametrize("moment", AROUND_THE_LOOK)
def test_a_run_with_a_look_continues_bit_for_bit(tmp_path, whole, moment):
    history, expected = whole(look, "plain")
    assert [(entry["step"], entry["test"]) for entry in history[:2]] == [(0, "below_bound"), (8, "look")]
    assert history[1]["decision"] == "raise"
    callback, trainer = stop_and_resume(tmp_path, look, AROUND_THE_LOOK[moment])
    assert callback.history == history
    assert_same_weights(weights(trainer.model), expected)
    (found,) = callback.report().searches
    assert (found.step, found.learning_rate) == (8, history[1]["learning_rate"])
    assert found.previous_rate == history[0]["learning_rate"]
    if moment == "before the look":
        # It is made as it would have been; its cost has that of the bound in it.
        assert callback.search == found
        assert found.num_steps > sum(len(trial.curve) for trial in found.trials)
    else:
        assert callback.search is None


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_a_resumed_run_tells_its_rate_and_what_it_decides(tmp_path, capsys, disable_tqdm):
    make(tmp_path, [look(), StopAt(20)], save_steps=20, disable_tqdm=disable_tqdm).train()
    capsys.readouterr()
    callback = look()
    trainer = make(tmp_path, [callback], save_strategy="no", disable_tqdm=disable_tqdm)
    # A loss that is lost, so that there is something to decide.
    trainer.compute_loss = lambda model, inputs, **kwargs: math.nan * model(**inputs)["loss"]
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ExpTest")]
    assert [entry["step"] for entry in callback.history[:3]] == [0, 8, 22]
    assert printed[0] == f"ExpTest: resumes at step 20 with learning rate {callback.history[1]['learning_rate']:.2g}"
    assert printed[1:] == [f"ExpTest: {line}" for line in descriptions(callback.history)[2:]]


def test_a_found_rate_is_not_looked_for_again(tmp_path, monkeypatch):
    first = look()
    make(tmp_path, [first, StopAt(20)], save_steps=20).train()
    assert first.search is not None
    for name in ("look", "first_update_bound"):
        monkeypatch.setattr(f"hf_exptest.look.{name}", lambda *args, **kwargs: pytest.fail("a search"))
    second = look()
    trainer = make(tmp_path, [second], save_strategy="no")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert second.search is None
    assert second.report().search == first.search
    assert second.history[:2] == first.history[:2]
    assert second.history[1]["learning_rate"] == first.search.learning_rate


def test_a_start_without_a_look_is_not_looked_for_again(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ArithmeticError("not here")

    monkeypatch.setattr("hf_exptest.look.look", fail)
    first = look()
    make(tmp_path, [first, StopAt(20)], save_steps=20, learning_rate=3e-3).train()
    assert [entry["test"] for entry in first.history] == ["below_bound", "training_arguments"]
    monkeypatch.setattr("hf_exptest.look.look", lambda *args, **kwargs: pytest.fail("a look"))
    second = look()
    trainer = make(tmp_path, [second], save_strategy="no", learning_rate=3e-3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert second.history == first.history
    rows = [row for row in trainer.state.log_history if row.get("step", 0) > 20 and "loss" in row]
    assert rows[0]["learning_rate"] == 3e-3


def test_plain_trainer_resumes_ours(tmp_path):
    make(tmp_path, [tune(), StopAt(20)], save_steps=20).train()
    assert "controller" in torch.load(tmp_path / "checkpoint-20" / "scheduler.pt", weights_only=True)
    trainer = make(tmp_path, [], save_strategy="no", learning_rate=1e-3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert trainer.state.global_step == 80
    rates = [row["learning_rate"] for row in trainer.state.log_history if row.get("step", 0) > 20 and "loss" in row]
    # Its own schedule from there on, linear to zero, from the rate that ExpTest had.
    assert rates[1:] == pytest.approx([0.02 * (80 - step) / 80 for step in range(21, 80)])


@pytest.mark.parametrize("given", [None, 0.004])
def test_ours_resumes_a_plain_trainer_with_a_warning(tmp_path, caplog, given):
    make(tmp_path, [StopAt(20)], save_steps=20, learning_rate=0.03).train()
    callback = ExpTestCallback(learning_rate=given, warmup=0.1, cooldown=0.25, window=0.5)
    trainer = make(tmp_path, [callback], save_strategy="no", learning_rate=0.5)
    with caplog.at_level("WARNING", logger="hf_exptest"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    rate = 0.03 if given is None else given
    assert (
        f"from 20 steps without ExpTest. It makes no search now: training goes on with the learning rate {rate}"
        in (caplog.text)
    )
    assert callback.search is None
    assert callback.history[0]["test"] == "checkpoint"
    rows = [row for row in trainer.state.log_history if row.get("step", 0) > 20 and "loss" in row]
    assert rows[0]["learning_rate"] == rate
    assert (callback.history[1]["step"], callback.history[1]["window"]) == (60, 40)
    assert trainer.lr_scheduler.last_epoch == 80


def test_thirty_kills_lose_nothing():
    script = Path(__file__).with_name("end_to_end") / "killed.py"
    done = forks.python(script, 30, timeout=600)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == {"any time": 10, "look": 10, "checkpoint": 10}
    # Some checkpoints were cut short, and passed over.
    assert result["partial_checkpoints"] > 0
    assert result["finished"] >= 1
    assert result["equal"] == result["finished"]


def test_a_given_rate_need_not_be_given_again(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 20}
    make_trainer(tmp_path, [ExpTestCallback(learning_rate=0.02)], **saved).train()
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], **saved)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert trainer.state.global_step == 40
    assert callback.search is None
    assert callback.report().starting_rate == 0.02
    trainer.model.config = PretrainedConfig()
    trainer.create_model_card()
    assert "- learning_rate: 0.02\n" in (tmp_path / "README.md").read_text()
