# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The scripts in examples/ run from beginning to end, on local models and data where they take these."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _same_models():
    """The weights of the local models are drawn before an example sets its seed."""
    torch.manual_seed(1)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in an empty folder, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name, *arguments):
        main = importlib.import_module(name).main
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


def numbers(pattern, output):
    """The numbers in the line of `output` that matches `pattern`."""
    (match,) = re.finditer(pattern, output)
    return [float(number) for number in match.groups()]


def report(folder):
    return json.loads((folder / "exptest.json").read_text())


@pytest.fixture
def language_model(tmp_path):
    """A folder with a tiny Llama that reads bytes, as `save_pretrained` leaves it."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        # Large, so that an adapter has something to turn: the embeddings are frozen.
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def texts(tmp_path):
    """A folder with a text file, one text a line."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [f"{a} and {b} make {a + b}, whatever the order of the two." for a in range(20) for b in range(20)]
    (folder / "train.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.figures
def test_quickstart_on_a_local_model_and_file(tmp_path, run):
    words = [f"good{i}" for i in range(10)] + [f"bad{i}" for i in range(10)]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=22, **sizes)).save_pretrained(tmp_path / "model")
    rows = [f"{kind}{i} {kind}{j},{kind}" for kind in ("good", "bad") for i in range(10) for j in range(10)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,stars", *rows]))

    output = run(
        *["quickstart", "--model_name_or_path", tmp_path / "model", "--dataset_name", tmp_path / "reviews.csv"],
        *["--text_column", "review", "--label_column", "stars", "--max_steps", 100, "--use_cpu", "true"],
    )

    (after,) = numbers(r"Accuracy on 40 held-out texts: .* training, (.*)% after\.", output)
    assert after > 90
    assert f"Figure: {Path('quickstart-output', 'exptest.png')}" in output
    assert (tmp_path / "quickstart-output" / "exptest.png").stat().st_size > 0
    assert len(report(tmp_path / "quickstart-output")["losses"]) == 10


def test_causal_lm_lora_on_a_local_model_and_folder(tmp_path, language_model, texts, run):
    output = run(
        *["causal_lm_lora", "--model_name_or_path", language_model, "--dataset_name", texts],
        *["--output_dir", tmp_path / "out", "--max_steps", 20],
    )

    before, after = numbers(r"Loss on 40 held-out texts: (.*) before training, (.*) after\.", output)
    assert after < before - 1
    assert PeftConfig.from_pretrained(tmp_path / "out").r == 8
    assert [entry["test"] for entry in report(tmp_path / "out")["history"]][:2] == ["below_bound", "look"]


def test_causal_lm_lora_makes_a_model_and_reads_pythons_manual(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("causal_lm_lora")
    model, tokenizer = example.make_model()
    data = example.load_data(None)
    text = max(data["train"]["text"], key=len)
    assert len(text) > 500
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert len(data["train"]) == pytest.approx(9 * len(data["test"]), rel=0.01)
    batch = tokenizer(text[:100], return_tensors="pt")
    # It knows nothing: any of 256 bytes and three special tokens may come next, and ln(259) is 5.56.
    assert model(**batch, labels=batch["input_ids"]).loss.item() == pytest.approx(5.56, abs=0.3)


def test_image_classification(tmp_path, run):
    output = run("image_classification", "--output_dir", tmp_path / "out", "--max_steps", 200)
    before, after = numbers(r"Accuracy on 360 held-out images: (.*)% before training, (.*)% after\.", output)
    # Two fifths of the steps of the example, so the rate found is too low to end as well.
    assert before < 25
    assert after > 40
    assert ViTForImageClassification.from_pretrained(tmp_path / "out").config.num_labels == 10


def test_image_classification_on_a_local_model_and_folder(tmp_path, run):
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    # Two classes, unlike the data: the head has to be replaced.
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    for shade, name in enumerate(["black", "gray", "white"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            Image.new("L", (10, 10), 120 * shade + i // 2).save(tmp_path / "images" / name / f"{i}.png")

    output = run(
        *["image_classification", "--model_name_or_path", tmp_path / "model", "--dataset_name", tmp_path / "images"],
        *["--output_dir", tmp_path / "out", "--max_steps", 100],
    )

    (after,) = numbers(r"Accuracy on 18 held-out images: .* training, (.*)% after\.", output)
    assert after > 60
    trained = ViTForImageClassification.from_pretrained(tmp_path / "out").config
    assert (trained.num_labels, trained.hidden_size) == (3, 16)


def test_find_learning_rate(tmp_path, language_model, texts, run):
    before = {path: path.read_bytes() for path in language_model.iterdir()}
    output = run(
        *["find_learning_rate", "--model_name_or_path", language_model, "--dataset_name", texts],
        *["--figure", tmp_path / "search.png"],
    )
    rate, steps = numbers(r"found for 300 steps: (\S+) \(took (\d+) steps\)", output)
    assert 1e-4 < rate < 1
    # At least three trials, and no more than 40 % of the run.
    assert 3 * 14 < steps <= 120
    assert (tmp_path / "search.png").stat().st_size > 0
    assert {path: path.read_bytes() for path in language_model.iterdir()} == before


def test_resume_keeps_the_rate_and_the_decisions(tmp_path, language_model, texts, run):
    output = run(
        *["resume", "--model_name_or_path", language_model, "--dataset_name", texts],
        *["--output_dir", tmp_path / "out", "--max_steps", 150],
    )

    whole, resumed = (report(tmp_path / "out" / name) for name in ("whole", "parts"))
    assert [(entry["step"], entry["test"]) for entry in whole["history"]] == [
        (0, "below_bound"),
        (15, "look"),
        (45, "slope"),
    ]
    # It was interrupted at step 30, so the window of the test at 45 lies on both sides.
    assert resumed["history"] == whole["history"]
    assert resumed["losses"] == whole["losses"]
    (look,) = whole["searches"]
    assert look["learning_rate"] == whole["history"][1]["learning_rate"]
    assert resumed["searches"] == [look | {"seconds": resumed["searches"][0]["seconds"]}]
    assert "The same decisions: True" in output
