# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The Trainers of Sentence Transformers, by callback and by the launcher, and the cards that their models write."""

import pickle
import re
from pathlib import Path

import forks
import pytest
from looks import LAUNCHER, assert_looked, saved_log

from hf_exptest import ExpTestCallback
from hf_exptest.internals import read_batches

pytest.importorskip("sentence_transformers", minversion="6.0")
from encoders import KINDS, make_trainer


def card_of(model, folder):
    """The card that a model writes where its user saves it."""
    model.save_pretrained(str(folder))
    return (folder / "README.md").read_text()


def assert_card_tells(card, rate):
    """Of the rate that was used and of no other, of the look, and of the loss of each step."""
    # Among the hyper-parameters that are not the default, and among all.
    assert [float(text) for text in re.findall(r"^- `learning_rate`: (.*)$", card, re.MULTILINE)] == [rate, rate]
    schedules = re.findall(r"^- `lr_scheduler_type`: (.*)$", card, re.MULTILINE)
    assert schedules == ["ExpTest, warm-up 10%, cool-down 70% of the steps"]
    assert re.findall(r"^- `(?:warmup_\w+|lr_scheduler_kwargs)`.*$", card, re.MULTILINE) == []
    assert card.count("\n### Learning rate\n") == 1
    assert f"ExpTest found the learning rate {rate:.3g} while training at step 3." in card
    assert len(re.findall(r"^\| [\d.]+ +\| \d+ +\| [\d.e-]+ +\|$", card, re.MULTILINE)) == 30


@pytest.mark.parametrize("kind", KINDS)
def test_callback(tmp_path, kind):
    trainer = make_trainer(kind, tmp_path, [ExpTestCallback()], disable_tqdm=True)
    trainer.train()
    found = assert_looked(tmp_path, trainer.state.log_history)
    assert_card_tells(card_of(trainer.model, tmp_path / "final"), found)
    # The one of the Trainer, as for the Hub, is the same.
    trainer.create_model_card()
    assert_card_tells((tmp_path / "README.md").read_text(), found)


def test_card_of_a_later_training_without_exptest(tmp_path):
    trainer = make_trainer("CrossEncoder", tmp_path, [ExpTestCallback(learning_rate=0.02)], max_steps=2)
    trainer.train()
    model = trainer.model
    # What is sent to other processes knows nothing of the Trainer.
    assert "hf_exptest" not in str(pickle.dumps(model))
    # Also when the Trainer is gone.
    del trainer
    assert "- `learning_rate`: 0.02\n" in card_of(model, tmp_path / "first")
    later = make_trainer("CrossEncoder", tmp_path, max_steps=2)
    later.model = later.model_wrapped = model
    later.train()
    card = card_of(model, tmp_path / "second")
    assert "- `learning_rate`: 2e-05\n" in card
    assert "ExpTest" not in card


def test_launcher(tmp_path):
    done = forks.python(*LAUNCHER, Path(__file__).with_name("encoders.py"), tmp_path)
    for kind in KINDS:
        found = assert_looked(tmp_path / kind, saved_log(tmp_path / kind))
        assert_card_tells((tmp_path / kind / "final" / "README.md").read_text(), found)
    assert (done.stdout + done.stderr).count("ExpTest: starts with learning rate") == len(KINDS)


@pytest.mark.parametrize("batch_sampler", ["batch_sampler", "no_duplicates"])
def test_a_look_reads_other_batches_than_the_run(tmp_path, batch_sampler):
    trainer = make_trainer("CrossEncoder", tmp_path, batch_sampler=batch_sampler)
    numbered = trainer.train_dataset.remove_columns("score")
    trainer.train_dataset = numbered.add_column("score", [i / 256 for i in range(256)])
    seed = trainer.args.seed
    looked = [set(batch["label"].tolist()) for batches, _ in read_batches(trainer, 10) for batch in batches]
    run = [set(batch["label"].tolist()) for batch in trainer.get_train_dataloader()]
    assert (len(looked), trainer.args.seed) == (10, seed)
    assert [batch for batch in looked if batch in run] == []
    assert len(set().union(*looked) & set().union(*run[:10])) < 60
