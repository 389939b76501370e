# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers.trainer
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, get_peft_model
from reports import (
    FALLBACK_HISTORY,
    GIVEN,
    INCONCLUSIVE_SEARCH,
    LATER_SEARCH,
    SEARCH,
    TWO_LOOKS_HISTORY,
    make_report,
    start,
)
from toys import language_data, language_model, make_args, make_sft_trainer, make_trainer
from transformers import Trainer

from hf_exptest import ExpTestCallback
from hf_exptest.model_card import add_to_model_card
from hf_exptest.words import descriptions

SCHEDULE = "ExpTest, warm-up 10%, cool-down 40% of the steps"
CARD = """# toy

### Learning rate

Set by [ExpTest](https://arxiv.org/abs/2411.16975). ExpTest found the learning rate 0.3 while training\
 at step 10.

At step 10 of 100 it tried rates on the weights of the run (rate until then 0.03, upper bound 0.9):

| learning rate | steps | loss on held-out batches |
| ---: | ---: | ---: |
| 9.00e-01 | 4 | diverged |
| 3.00e-01 | 24 | 0.5000 |
| 1.00e-01 | 24 | 0.5625 |
| 3.00e-02 | 24 | 0.7188 |
| untouched | 0 | 0.7500 |

The best of them ends lower than the untouched model (p = 0.002); carried over from 24 steps to the 90 that were left,\
 it gives 0.3. The look took 96 steps in 12 s, 20 of them for the upper bound; then the model was put back as it was.

- starts with learning rate 0.03 (a thirtieth of the upper bound)
- step 10: a look finds a higher rate better (p = 0.002): learning rate 0.03 -> 0.3
- step 20: loss still falls (p = 0.01 over 20 steps): learning rate stays 0.3
- step 40: loss still falls (p = 0.01 over 20 steps): learning rate stays 0.3
- step 60: loss no longer falls (p = 0.4 over 20 steps): learning rate 0.3 -> 0.1

![Trials, loss, learning rate and decisions](exptest.png)

### Framework versions

- Torch
"""


def language_trainer(path, callback, model=None, **overrides):
    """Of a model with a config, which Trainer's card needs."""
    return make_trainer(
        path, [callback], model=language_model() if model is None else model, data=language_data(), **overrides
    )


def section(path):
    """The card's metadata, and the text of its section on the learning rate."""
    card = ModelCard.load(path / "README.md")
    assert card.text.count("### Learning rate\n") == 1
    return card.data, card.text.split("### Learning rate\n")[1].split("\n#")[0]


def hyperparameters(path):
    lines = re.findall(r"^- (\w+): (.*)$", ModelCard.load(path / "README.md").text, flags=re.MULTILINE)
    return dict(lines)


def table(text):
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[1] == ["---:"] * 3
    return rows[2:]


def assert_tells_of_the_search(text, search):
    trials = sorted(search.trials, key=lambda trial: -trial.learning_rate)
    rows = table(text)
    assert [float(row[0]) for row in rows[:-1]] == pytest.approx([trial.learning_rate for trial in trials], rel=1e-2)
    assert [int(row[1]) for row in rows[:-1]] == [len(trial.curve) for trial in trials]
    ends = [row[2] for row, trial in zip(rows, trials, strict=False) if trial.outcome == "ended"]
    assert ends == [f"{trial.end_loss:.4f}" for trial in trials if trial.outcome == "ended"]
    assert len(ends) >= 2
    assert rows[-1][:2] == ["untouched", "0"]
    assert f"found the learning rate {search.learning_rate:.3g} while training at step {search.step}." in text
    assert f"took {search.num_steps} steps" in text


def test_card_of_a_search_tells_the_trials_and_the_decisions():
    card = "# toy\n\n### Framework versions\n\n- Torch\n"
    assert add_to_model_card(card, make_report(searches=[SEARCH]), has_figure=True) == CARD


def test_card_of_an_inconclusive_search_claims_no_rate():
    card = add_to_model_card("- learning_rate: 0.1\n", make_report(FALLBACK_HISTORY, [INCONCLUSIVE_SEARCH]), False)
    assert card.startswith("- learning_rate: 5e-05\n")
    assert (
        "ExpTest tried 4 learning rates and found none that lowers the loss on held-out batches significantly." in card
    )
    assert "Training went on with TrainingArguments.learning_rate, 5e-05." in card
    assert table(card)[0] == ["9.00e-01", "4", "diverged"]
    assert "\n- step 10: goes on with learning rate 5e-05 (TrainingArguments.learning_rate)\n" in card
    assert "0.3 " not in card
    assert "gives" not in card


def test_card_of_two_looks_has_a_table_for_each():
    card = add_to_model_card("# toy\n", make_report(TWO_LOOKS_HISTORY, [SEARCH, LATER_SEARCH]), has_figure=False)
    first, second = card.split(
        "\n\nAt step 60 of 100 it tried rates on the weights of the run (rate until then 0.3):\n\n"
    )
    assert first in CARD.replace("### Framework", "")
    assert table(second) == [
        ["9.00e-01", "14", "0.6250"],
        ["3.00e-01", "14", "0.5000"],
        ["1.00e-01", "14", "0.4375"],
        ["untouched", "0", "0.5625"],
    ]
    assert (
        "\n\nThe best of them ends lower than the rate until then, 0.3 (p = 0.01); carried over from 14 steps to the"
        " 40 that were left, it gives 0.1. The look took 42 steps in 4 s; then the model was put back as it was.\n\n"
    ) in second
    decisions = [line[2:] for line in second.splitlines() if line.startswith("- ")]
    assert decisions == descriptions(TWO_LOOKS_HISTORY)
    assert decisions[-2].startswith("step 60: loss no longer falls, time for a look")


@pytest.mark.parametrize(
    ("report", "rate"),
    [
        (make_report(searches=[SEARCH]), "0.3"),
        (make_report(FALLBACK_HISTORY, [INCONCLUSIVE_SEARCH]), "5e-05"),
        (make_report(FALLBACK_HISTORY), "5e-05"),
        # What the warm-up led to, and no later look.
        (make_report(TWO_LOOKS_HISTORY, [SEARCH, LATER_SEARCH]), "0.3"),
        (make_report([start("first_update_bound", 0.2)]), "0.2"),
        (make_report([], config=GIVEN), "0.7"),
    ],
)
@pytest.mark.parametrize(
    ("card", "expected"),
    [
        # The Trainer's own.
        (
            "- learning_rate: 1e-3\n- seed: 7\n- lr_scheduler_type: linear\n- lr_scheduler_warmup_steps: 3\n"
            "- lr_scheduler_warmup_ratio: 0.1\n- training_steps: 9\n\n### Framework versions\n",
            "- learning_rate: {rate}\n- seed: 7\n- lr_scheduler_type: {schedule}\n- training_steps: 9\n\n{section}\n\n"
            "### Framework versions\n",
        ),
        # That of Sentence Transformers, with two lists.
        (
            "- `learning_rate`: 1e-3\n- `warmup_ratio`: 0.1\n\nClick\n\n- `learning_rate`: 1e-3\n"
            "- `lr_scheduler_type`: linear\n- `lr_scheduler_kwargs`: None\n- `warmup_ratio`: 0.1\n"
            "- `warmup_steps`: 0\n- `learning_rate_mapping`: {{}}\n\n### Framework Versions\n",
            "- `learning_rate`: {rate}\n\nClick\n\n- `learning_rate`: {rate}\n- `lr_scheduler_type`: {schedule}\n"
            "- `learning_rate_mapping`: {{}}\n\n{section}\n\n### Framework Versions\n",
        ),
        # TRL's.
        ("# toy\n", "# toy\n\n{section}\n\n"),
    ],
)
def test_hyperparameters_are_those_that_were_used(report, rate, card, expected):
    written = add_to_model_card(card.format(), report, has_figure=False)
    section = written[written.index("### Learning rate") :].split("\n\n### Framework")[0].rstrip()
    assert written == expected.format(rate=rate, schedule=SCHEDULE, section=section)


@pytest.mark.figures
def test_card_tells_how_the_learning_rate_was_found(tmp_path):
    callback = ExpTestCallback()
    trainer = language_trainer(tmp_path, callback, max_steps=200, learning_rate=5e-5, warmup_steps=3)
    trainer.train()
    trainer.create_model_card(model_name="toy", tags="test")
    metadata, text = section(tmp_path)
    assert metadata.library_name == "transformers"
    assert metadata.tags == ["test", "generated_from_trainer"]
    assert_tells_of_the_search(text, callback.search)
    decisions = [line[2:] for line in text.splitlines() if line.startswith("- ")]
    assert decisions == descriptions(callback.history)
    assert decisions[0].startswith("starts with learning rate ")
    assert [entry["step"] for entry in callback.history] == [0, 20, 60]
    assert "](exptest.png)" in text
    values = hyperparameters(tmp_path)
    assert float(values["learning_rate"]) == callback.search.learning_rate
    assert values["lr_scheduler_type"] == "ExpTest, warm-up 10%, cool-down 70% of the steps"
    assert "lr_scheduler_warmup_steps" not in values
    assert values["train_batch_size"] == "8"
    headings = re.findall(r"^### (.*)$", (tmp_path / "README.md").read_text(), flags=re.MULTILINE)
    assert headings[-2:] == ["Learning rate", "Framework versions"]


def test_card_of_a_given_rate_has_neither_table_nor_missing_figure(tmp_path):
    callback = ExpTestCallback(learning_rate=0.02)
    trainer = language_trainer(tmp_path, callback, max_steps=2)
    trainer.train()
    trainer.create_model_card()
    # Each card is written anew, so there is one section however often.
    trainer.create_model_card()
    _, text = section(tmp_path)
    assert "Training started from the given learning rate, 0.02: there was no look at other rates." in text
    assert "|" not in text
    assert "exptest.png" not in text
    assert hyperparameters(tmp_path)["learning_rate"] == "0.02"


def test_card_before_training_is_the_plain_one(tmp_path):
    callback = ExpTestCallback(learning_rate=0.02)
    trainer = language_trainer(tmp_path, callback, learning_rate=0.25)
    trainer.create_model_card()
    assert "ExpTest" not in (tmp_path / "README.md").read_text()
    assert hyperparameters(tmp_path)["learning_rate"] == "0.25"


class OwnCard(Trainer):
    """Writes a line of its own below the Trainer's card."""

    def create_model_card(self, *args, **kwargs):
        super().create_model_card(*args, **kwargs)
        with (Path(self.args.output_dir) / "README.md").open("a") as card:
            card.write("\nThe end.\n")


@pytest.mark.parametrize("trainer_type", [Trainer, OwnCard])
def test_card_by_a_call_on_the_class(tmp_path, trainer_type):
    def card(folder, callbacks, create_model_card):
        args = make_args(tmp_path / folder, max_steps=2, learning_rate=0.25)
        trainer = trainer_type(language_model(), args, train_dataset=language_data(), callbacks=callbacks)
        trainer.train()
        create_model_card(trainer)
        return (tmp_path / folder / "README.md").read_text().replace(folder, "toy")

    def call_on_the_class(trainer):
        # As LLaMA-Factory does.
        Trainer.create_model_card(trainer)

    by_class = card("by-class", [ExpTestCallback(learning_rate=0.02)], call_on_the_class)
    assert hyperparameters(tmp_path / "by-class")["learning_rate"] == "0.02"
    assert "the given learning rate, 0.02:" in section(tmp_path / "by-class")[1]
    assert "The end." not in by_class
    by_instance = card(
        "by-instance", [ExpTestCallback(learning_rate=0.02)], lambda trainer: trainer.create_model_card()
    )
    assert by_instance.removesuffix("\nThe end.\n") == by_class
    assert ("The end." in by_instance) == (trainer_type is OwnCard)

    # A Trainer without ExpTest, whose class was wrapped by the ones before.
    card("plain", [], call_on_the_class)
    assert "ExpTest" not in (tmp_path / "plain" / "README.md").read_text()
    assert hyperparameters(tmp_path / "plain")["learning_rate"] == "0.25"


def test_classes_are_wrapped_once(tmp_path):
    language_trainer(tmp_path, ExpTestCallback())
    wrapped = Trainer.create_model_card
    language_trainer(tmp_path, ExpTestCallback())
    assert Trainer.create_model_card is wrapped
    assert inspect.signature(wrapped) == inspect.signature(inspect.unwrap(wrapped))


def test_only_the_main_process_writes_a_card(tmp_path, monkeypatch):
    trainer = language_trainer(tmp_path, ExpTestCallback(learning_rate=0.02), max_steps=2)
    trainer.train()
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()
    assert not (tmp_path / "README.md").exists()
    # Nor does another process touch the card that the main one wrote.
    (tmp_path / "README.md").write_text("- learning_rate: 1\n")
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text() == "- learning_rate: 1\n"


def test_card_of_a_peft_model(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    callback = ExpTestCallback(learning_rate=0.02)
    trainer = language_trainer(tmp_path, callback, model=get_peft_model(language_model(), adapter), max_steps=2)
    trainer.train()
    # Writes PEFT's own card first.
    trainer.save_model()
    trainer.create_model_card()
    metadata, text = section(tmp_path)
    assert metadata.library_name == "peft"
    assert "the given learning rate, 0.02:" in text
    assert hyperparameters(tmp_path)["learning_rate"] == "0.02"
    assert "- PEFT " in (tmp_path / "README.md").read_text()
    # Saving again keeps the section.
    trainer.save_model()
    assert section(tmp_path)[1].strip() == text.strip()


def test_card_of_an_sft_trainer(tmp_path):
    callback = ExpTestCallback()
    trainer = make_sft_trainer(tmp_path, [callback])
    trainer.train()
    trainer.create_model_card(model_name="toy", dataset_name="toys", tags=["test"])
    metadata, text = section(tmp_path)
    assert metadata.datasets == "toys"
    assert "test" in metadata.tags
    assert_tells_of_the_search(text, callback.search)


def test_card_of_a_sentence_transformer(tmp_path):
    pytest.importorskip("sentence_transformers", minversion="6.0")
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"unknown": 0, "a": 1, "b": 2}, unk_token="unknown"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    rows = {"left": ["a", "b"] * 8, "right": ["a", "a"] * 8, "score": [1.0, 0.0] * 8}
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, learning_rate=0.25, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(rows),
        loss=CosineSimilarityLoss(model),
        callbacks=[ExpTestCallback(learning_rate=0.02)],
    )
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    # Once among those that are not the default, once among all.
    assert re.findall(r"^- `learning_rate`: (.*)$", text, flags=re.MULTILINE) == ["0.02", "0.02"]
    assert re.findall(r"^- `lr_scheduler_type`: (.*)$", text, flags=re.MULTILINE)[0].startswith("ExpTest, warm-up 10%")
    assert not re.findall(r"^- `(?:warmup_\w+|lr_scheduler_kwargs)`", text, flags=re.MULTILINE)
    assert text.index("\n### Learning rate\n") < text.index("\n### Framework Versions\n")


@pytest.mark.figures
def test_push_to_hub_uploads_the_section(tmp_path, monkeypatch):
    uploads = []

    def upload_folder(*args, **kwargs):
        files = [path for path in Path(kwargs["folder_path"]).iterdir() if path.is_file()]
        uploads.append({path.name: path.read_bytes() for path in files})

    # Releases of transformers differ in where they call them.
    for owner in (HfApi, transformers.trainer):
        monkeypatch.setattr(owner, "create_repo", lambda *a, **k: SimpleNamespace(repo_id="user/toy"), raising=False)
        monkeypatch.setattr(owner, "upload_folder", upload_folder, raising=False)
    callback = ExpTestCallback(learning_rate=0.02)
    trainer = language_trainer(tmp_path, callback, max_steps=2, hub_model_id="user/toy")
    trainer.train()
    trainer.push_to_hub()
    (files,) = uploads
    card = ModelCard(files["README.md"].decode())
    assert card.data.get("library_name") == "transformers"
    assert "### Learning rate\n" in card.text
    assert "](exptest.png)" in card.text
    assert files["exptest.png"].startswith(b"\x89PNG")
    assert json.loads(files["exptest.json"])["config"]["learning_rate"] == 0.02
