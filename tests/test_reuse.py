# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The rate of an earlier run or finder: which files have one, for what set-up it is, and how a run starts from it."""

import dataclasses
import json
import math

import pytest
from peft import LoraConfig, get_peft_model
from reports import (
    FALLBACK_HISTORY,
    GIVEN,
    HISTORY,
    INCONCLUSIVE_SEARCH,
    SEARCH,
    look,
    look_alone,
    make_report,
    start,
)
from toys import (
    StopAt,
    ToyClassifier,
    assert_same_weights,
    language_data,
    language_model,
    logged,
    make_trainer,
    weights,
)

from hf_exptest import ExpTestCallback, ExpTestConfig, Report, find_learning_rate
from hf_exptest.finder import find
from hf_exptest.reuse import doubts, load_reusable, setup_of, with_reused_rate

REUSED = dataclasses.replace(GIVEN, reuse="elsewhere")


@pytest.mark.parametrize(
    ("report", "rate"),
    [
        (make_report(HISTORY, [SEARCH]), 0.3),
        (look_alone(), 0.3),
        (make_report([], config=GIVEN), 0.7),
        (make_report([start("reused", 0.7)], config=REUSED), 0.7),
    ],
)
def test_a_rate_that_was_found_or_given_can_be_reused(tmp_path, report, rate):
    report.save(tmp_path)
    for path in (tmp_path, tmp_path / "exptest.json", str(tmp_path)):
        assert load_reusable(path) == report
        config = with_reused_rate(ExpTestConfig(alpha=0.01, reuse=path))
        assert config == ExpTestConfig(alpha=0.01, learning_rate=rate, reuse=str(path))
        # Nothing changes if it was done before, or if there is no file.
        assert with_reused_rate(config) == config
        assert with_reused_rate(GIVEN) == GIVEN
    with pytest.raises(ValueError, match=rf"learning_rate=0\.1 and reuse='{tmp_path}', which holds {rate}, are two"):
        ExpTestCallback(learning_rate=0.1, reuse=tmp_path)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (make_report(FALLBACK_HISTORY, [INCONCLUSIVE_SEARCH]), "TrainingArguments.learning_rate, 5e-05"),
        (make_report([start("below_bound", 0.02)]), "a thirtieth of the upper bound along the first update, 0.02"),
        (make_report([start("below_bound", 0.02), look(10, "keep", 0.02, 0.2)]), "a thirtieth of the upper bound"),
        (make_report([start("first_update_bound", 0.2)]), "the upper bound along the first update, 0.2"),
        (make_report([start("checkpoint", 0.02)], config=GIVEN), "the learning rate of a checkpoint, 0.02"),
        (look_alone(INCONCLUSIVE_SEARCH), "the learning rate that a look found, nan"),
    ],
)
def test_a_file_without_a_found_rate_is_refused(tmp_path, report, words):
    report.save(tmp_path)
    with pytest.raises(ValueError, match=rf"^'{tmp_path}' has no learning rate to reuse: it tells of {words}"):
        ExpTestCallback(reuse=tmp_path)


def test_a_file_that_cannot_be_read_is_quoted(tmp_path):
    with pytest.raises(ValueError, match=f"'{tmp_path}' has no exptest.json"):
        ExpTestCallback(reuse=tmp_path)
    file = tmp_path / "exptest.json"
    file.write_text('{"version": 3}')
    with pytest.raises(ValueError, match=rf"'{file}' cannot be read: it has version 3; this release reads versions 4"):
        ExpTestCallback(reuse=tmp_path)
    file.write_text('{"version": 5, "conf')
    with pytest.raises(ValueError, match=rf"'{file}' cannot be read: "):
        ExpTestCallback(reuse=file)


def test_the_set_up_of_a_training(tmp_path):
    model = ToyClassifier()
    model.net[0].requires_grad_(False)
    trainer = make_trainer(
        tmp_path, [], model=model, gradient_accumulation_steps=3, weight_decay=0.1, optim="sgd", max_steps=1
    )
    trainer.train()
    assert setup_of(trainer, trainer.optimizer) == {
        "model": "ToyClassifier",
        "name_or_path": "",
        "trainable_parameters": sum(p.numel() for p in model.net[1:].parameters()),
        "optimizer": "SGD",
        "weight_decay": 0.1,
        "total_batch_size": 24,
    }


def test_the_set_up_of_a_pretrained_model_with_an_adapter(tmp_path):
    language_model().save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(language_model().from_pretrained(tmp_path / "base"), lora)
    trainer = make_trainer(tmp_path, [ExpTestCallback(learning_rate=0.1)], model, language_data(), max_steps=1)
    trainer.train()
    setup = Report.load(tmp_path).setup
    # Two matrices of rank 2, from 16 to 48.
    assert (setup["model"], setup["trainable_parameters"]) == ("PeftModelForCausalLM", 2 * (16 + 48))
    assert (setup["name_or_path"], setup["optimizer"]) == (str(tmp_path / "base"), "AdamW")


def test_what_differs_is_named_with_both_values():
    setup = {"model": "A", "total_batch_size": 8}
    earlier = dataclasses.replace(make_report(), setup=setup)
    assert doubts(earlier, earlier) is None
    other = dataclasses.replace(earlier, setup={"model": "A", "total_batch_size": 16}, num_training_steps=300)
    assert doubts(earlier, other) == (
        "of another set-up (total_batch_size 8 then, 16 now; num_training_steps 100 then, 300 now)"
    )
    assert "does not say what set-up" in doubts(make_report(), earlier)


def fail(*args, **kwargs):
    pytest.fail("a search")


@pytest.fixture
def _no_looks(monkeypatch):
    for name in ("look", "first_update_bound"):
        monkeypatch.setattr(f"hf_exptest.look.{name}", fail)


def doubted(caplog):
    return [message for message in caplog.messages if "reuses the learning rate" in message]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The folder of a finder, and its rate."""
    folder = tmp_path_factory.mktemp("found")
    report = find(make_trainer(folder, []))
    report.save(folder)
    return folder, report.starting_rate


def test_a_finder_leaves_what_the_function_finds(found, tmp_path):
    assert find_learning_rate(make_trainer(tmp_path, [])).learning_rate == found[1]


@pytest.mark.usefixtures("_no_looks")
def test_a_run_starts_from_the_rate_of_a_finder(tmp_path, found, caplog, capsys):
    folder, rate = found
    callback = ExpTestCallback(reuse=folder)
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    assert [(entry["test"], entry["learning_rate"]) for entry in callback.history] == [("reused", rate)]
    assert f"ExpTest: starts with learning rate {rate:.2g} (reused)\n" in capsys.readouterr().out
    assert doubted(caplog) == []
    report = Report.load(tmp_path)
    assert (report.starting_rate, report.rate_source, report.searches) == (rate, "reused", [])
    assert report.config.reuse == str(folder)
    assert report.setup == Report.load(folder).setup
    # As a run with that rate given.
    given = make_trainer(tmp_path / "given", [ExpTestCallback(learning_rate=rate)])
    given.train()
    assert logged(trainer, "learning_rate") == logged(given, "learning_rate")
    assert max(logged(trainer, "learning_rate")) == rate
    assert_same_weights(weights(trainer.model), weights(given.model))


def test_a_run_starts_from_the_rate_that_a_run_found_in_the_same_folder(tmp_path, caplog):
    first = ExpTestCallback()
    make_trainer(tmp_path, [first]).train()
    for _ in range(2):
        callback = ExpTestCallback(reuse=tmp_path)
        make_trainer(tmp_path, [callback]).train()
        assert callback.history[0]["test"] == "reused"
        assert callback.report().starting_rate == first.search.learning_rate
        assert callback.search is None
    assert doubted(caplog) == []


@pytest.mark.usefixtures("_no_looks")
def test_another_set_up_costs_one_warning(tmp_path, found, caplog):
    folder, rate = found
    callback = ExpTestCallback(reuse=folder / "exptest.json")
    make_trainer(tmp_path, [callback], gradient_accumulation_steps=2, optim="sgd", max_steps=50).train()
    (warning,) = doubted(caplog)
    assert warning.startswith(f"ExpTest reuses the learning rate {rate:.3g} from '{folder}/exptest.json', which is of")
    assert (
        "(optimizer 'AdamW' then, 'SGD' now; total_batch_size 8 then, 16 now; num_training_steps 40 then, 50 now)"
        in warning
    )
    assert callback.report().starting_rate == rate


@pytest.mark.usefixtures("_no_looks")
def test_a_file_of_an_earlier_release_costs_a_warning(tmp_path, found, caplog):
    folder, rate = found
    values = json.loads((folder / "exptest.json").read_text())
    del values["setup"]
    (tmp_path / "exptest.json").write_text(json.dumps({**values, "version": 4}))
    callback = ExpTestCallback(reuse=tmp_path)
    make_trainer(tmp_path, [callback]).train()
    (warning,) = doubted(caplog)
    assert "of an earlier release, whose file does not say what set-up it is for" in warning
    assert callback.report().starting_rate == rate


def test_the_paper_tests_a_reused_rate_as_a_given_one(tmp_path, found):
    settings = {"window_correction": False}
    histories = []
    for rate in ({"reuse": str(found[0])}, {"learning_rate": found[1]}):
        callback = ExpTestCallback(ExpTestConfig.paper(**settings, **rate))
        make_trainer(tmp_path, [callback], optim="sgd", max_steps=120).train()
        histories.append([entry for entry in callback.history if entry["decision"] != "start"])
    assert histories[0] == histories[1]
    assert histories[0][0]["phase"] == "detect"


@pytest.mark.usefixtures("_no_looks")
def test_a_run_with_a_reused_rate_resumes_bit_for_bit(tmp_path, found):
    def train(callbacks, save_steps=80, **kwargs):
        trainer = make_trainer(tmp_path, callbacks, max_steps=80, save_strategy="steps", save_steps=save_steps)
        trainer.train(**kwargs)
        return callbacks[0].history, weights(trainer.model)

    def callback():
        return ExpTestCallback(reuse=found[0], warmup=0.1, cooldown=0.15, window=0.375)

    history, expected = train([callback()])
    assert [entry["test"] for entry in history] == ["reused", "slope", "slope"]
    for step in (5, 50):
        train([callback(), StopAt(step)], save_steps=step)
        again, final = train([callback()], resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert again == history
        assert_same_weights(final, expected)


@pytest.mark.usefixtures("_no_looks")
def test_a_checkpoint_without_the_scheduler_goes_on_with_the_reused_rate(tmp_path, found):
    saved = {"save_strategy": "steps", "save_steps": 20, "save_only_model": True}
    make_trainer(tmp_path, [ExpTestCallback(reuse=found[0])], **saved).train()
    callback = ExpTestCallback(reuse=found[0])
    make_trainer(tmp_path, [callback], **saved).train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert [entry["test"] for entry in callback.history] == ["checkpoint"]
    assert callback.learning_rate == found[1]


def test_a_checkpoint_without_the_scheduler_takes_no_rate_of_a_finder(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 20, "save_only_model": True, "learning_rate": 3e-3}
    make_trainer(tmp_path, [ExpTestCallback()], **saved).train()
    look_alone(INCONCLUSIVE_SEARCH).save(tmp_path)
    assert math.isnan(Report.load(tmp_path).starting_rate)
    callback = ExpTestCallback()
    make_trainer(tmp_path, [callback], **saved).train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert callback.learning_rate == 3e-3
