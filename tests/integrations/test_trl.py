# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The Trainers of TRL: by callback, by flags in their arguments, by the launcher on TRL's scripts, and `trl sft`."""

import json
from dataclasses import dataclass
from pathlib import Path

import forks
import pytest
from llama import save_model
from looks import LAUNCHER, assert_looked, saved_log
from packaging.version import Version
from toys import numbered_words, preference, save_numbered_tokenizer

from hf_exptest import ExpTestArgumentsMixin, ExpTestCallback

trl = pytest.importorskip("trl")


# A row of the data of each Trainer, by its number.
ROWS = {
    "SFT": lambda row: {"text": numbered_words(row, 3)},
    "DPO": preference,
    "KTO": lambda row: {
        "prompt": numbered_words(row, 3),
        "completion": f" {numbered_words(row, 11 if row % 2 else 19)}",
        "label": bool(row % 2),
    },
    "Reward": preference,
}
# Older releases have it among the experimental ones.
HAS_KTO = Version(trl.__version__) >= Version("1.14")
if not HAS_KTO:
    del ROWS["KTO"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Llama of a few thousand parameters with its tokenizer, and a folder of data for each Trainer."""
    folder = tmp_path_factory.mktemp("tiny")
    save_numbered_tokenizer(folder)
    # Larger weights than usual, so that so small a model has something to say to an adapter and of preferences.
    save_model(folder, max_position_embeddings=32, bos_token_id=3, initializer_range=0.1)
    for name, row in ROWS.items():
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("\n".join(json.dumps(row(i)) for i in range(128)))
    return folder


VALUES = {
    "max_steps": 30,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}
FLAGS = [text for name, value in VALUES.items() for text in (f"--{name}", str(value).lower())]


def make_trainer(name, args, tiny, callbacks):
    from datasets import load_dataset

    trainer_type = getattr(trl, f"{name}Trainer")
    data = load_dataset(str(tiny / name), split="train")
    return trainer_type(model=str(tiny), args=args, train_dataset=data, callbacks=callbacks)


@pytest.mark.parametrize("name", ROWS)
def test_callback(tmp_path, tiny, name):
    args = getattr(trl, f"{name}Config")(output_dir=str(tmp_path), disable_tqdm=True, **VALUES)
    trainer = make_trainer(name, args, tiny, [ExpTestCallback()])
    trainer.train()
    found = assert_looked(tmp_path, trainer.state.log_history)
    trainer.create_model_card()
    assert f"found the learning rate {found:.3g} while training" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ROWS)
def test_flags_in_the_arguments(tmp_path, tiny, name):
    @dataclass
    class Arguments(ExpTestArgumentsMixin, getattr(trl, f"{name}Config")):
        pass

    flags = [*FLAGS, "--output_dir", str(tmp_path), "--max_steps", "5", "--exptest", "--exptest_learning_rate", "0.01"]
    (args,) = trl.TrlParser(Arguments).parse_args_and_config(flags)
    assert args.exptest
    trainer = make_trainer(name, args, tiny, [ExpTestCallback.from_args(args)])
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.02 / 3, 0.01 / 3])
    assert (tmp_path / "exptest.json").is_file()


@pytest.mark.skipif(not HAS_KTO, reason="an older release of TRL")
def test_the_script_of_kto(tmp_path, tiny):
    script = Path(trl.__file__).with_name("scripts") / "kto.py"
    flags = [*FLAGS, "--save_strategy", "steps", "--model_name_or_path", tiny, "--dataset_name", tiny / "KTO"]
    forks.python(*LAUNCHER, script, *flags, "--output_dir", tmp_path)
    assert_looked(tmp_path, saved_log(tmp_path / "checkpoint-30"))


def test_the_command_with_lora(tmp_path, tiny):
    from trl.cli.main import main

    # What `trl` does not know, it hands to `accelerate launch`, which so starts our launcher with the script.
    flags = [*FLAGS, "--save_strategy", "steps", "--model_name_or_path", tiny, "--dataset_name", tiny / "SFT"]
    flags += ["--use_peft", "--lora_target_modules", "all-linear", "--output_dir", tmp_path]
    assert main(["sft", *LAUNCHER, *map(str, flags)]) == 0
    assert_looked(tmp_path, saved_log(tmp_path / "checkpoint-30"))
    assert (tmp_path / "adapter_model.safetensors").is_file()
