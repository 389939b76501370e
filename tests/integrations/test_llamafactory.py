# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
LLaMA-Factory, from its own command under the launcher, in one process and in two, and from its function with a
callback.

Skipped without it: it needs older releases than the tests of TRL do, so an environment of its own.
"""

import json
import sys
from pathlib import Path

import pytest
from llama import save_instructions, save_llama
from looks import assert_looked, python, saved_log
from toys import torchrun

llamafactory = pytest.importorskip("llamafactory")

pytestmark = pytest.mark.slow
LAUNCHER = ["-m", "hf_exptest.run"]


@pytest.fixture
def values(tmp_path, monkeypatch):
    """What stands in a config of LLaMA-Factory, in which nothing is of ExpTest."""
    # With fewer GPUs than processes, the barrier of processes on the CPU looks for a GPU that is not there.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    save_llama(tmp_path)
    save_instructions(tmp_path / "data.json")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"animals": {"file_name": "data.json"}}))
    return {
        "model_name_or_path": str(tmp_path),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset_dir": str(tmp_path),
        "dataset": "animals",
        "template": "default",
        "cutoff_len": 64,
        "output_dir": str(tmp_path / "out"),
        "max_steps": 30,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }


def write_config(folder, values):
    # JSON is YAML.
    path = folder / "config.yaml"
    path.write_text(json.dumps(values))
    return path


def assert_card_tells(folder, found):
    card = (folder / "README.md").read_text()
    assert f"found the learning rate {found:.3g} while training at step 3." in card
    (listed,) = [line for line in card.splitlines() if line.startswith("- learning_rate: ")]
    assert float(listed.split(": ")[1]) == found
    return card


def test_launcher(tmp_path, values):
    command = Path(sys.executable).with_name("llamafactory-cli")
    output = python(*LAUNCHER, command, "train", write_config(tmp_path, {**values, "exptest": True}))
    found = assert_looked(tmp_path / "out", saved_log(tmp_path / "out"))
    assert_card_tells(tmp_path / "out", found)
    assert output.count("ExpTest: starts with learning rate") == 1


@pytest.mark.distributed
def test_launcher_in_two_processes(tmp_path, values):
    script = Path(llamafactory.__file__).with_name("launcher.py")
    config = write_config(tmp_path, {**values, "exptest": True})
    output = python(*torchrun(2)[1:], *LAUNCHER, script, config)
    found = assert_looked(tmp_path / "out", saved_log(tmp_path / "out"))
    assert "- num_devices: 2\n" in assert_card_tells(tmp_path / "out", found)
    assert output.count("ExpTest: starts with learning rate") == 1


def test_callback(tmp_path, values):
    python(
        "-c",
        "import json, sys\n"
        "from hf_exptest import ExpTestCallback\n"
        "from llamafactory.train.tuner import run_exp\n"
        "run_exp(json.loads(sys.argv[1]), callbacks=[ExpTestCallback()])",
        json.dumps(values),
    )
    found = assert_looked(tmp_path / "out", saved_log(tmp_path / "out"))
    assert_card_tells(tmp_path / "out", found)
