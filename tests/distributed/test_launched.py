# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""`accelerate launch` with the files of examples/accelerate, on two processes of a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import engines
import pytest
import torch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FOLDER = Path(__file__).parents[2] / "examples" / "accelerate"


@pytest.mark.parametrize(
    ("name", "engine", "stage"),
    [
        ("fsdp2", "FSDPGPT2LMHeadModel", None),
        ("deepspeed_zero2", "DeepSpeedEngine", 2),
        ("deepspeed_zero3", "DeepSpeedEngine", 3),
    ],
)
def test_the_files_search_and_train(tmp_path, name, engine, stage):
    if stage is not None:
        pytest.importorskip("deepspeed")
    if name == "fsdp2" and torch.__version__.startswith("2.6."):
        pytest.skip("fully_shard of torch 2.6 needs streams, which a CPU has not")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    script = Path(__file__).with_name("train_launched.py")
    done = subprocess.run(
        [*launch, "--num_processes", "2", "--main_process_port", "0", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **engines.ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert (first["world_size"], first["engine"], first["stage"]) == (2, engine, stage)
    assert (first["precision"], first["steps"]) == ("bf16", 20)
    assert [entry["test"] for entry in first["history"]] == ["below_bound", "look"]
    assert first["history"][1]["learning_rate"] == first["rate"]
    assert len(first["first_losses"]) >= 3
    assert len(set(first["first_losses"])) == 1
    assert max(first["gains"]) > 0.1
