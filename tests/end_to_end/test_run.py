# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_exptest import run

FLAGS = ["--max_steps", "30", "--per_device_train_batch_size", "8", "--logging_steps", "1", "--use_cpu", "true"]
FLAGS += ["--report_to", "none", "--save_strategy", "no"]
SFT_FLAGS = ["--bf16", "false", "--gradient_checkpointing", "false"]


def launch(*command):
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=300)


def rates(folder):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [row["learning_rate"] for row in state["log_history"] if "learning_rate" in row]


@pytest.mark.parametrize("script", ["run_classification.py", "run_sft.py"])
def test_an_unmodified_script_uses_exptest_when_told_to(tmp_path, script):
    command = ["hf_exptest.run", str(Path(__file__).with_name(script)), *FLAGS]
    command += SFT_FLAGS if script == "run_sft.py" else []
    done = launch(*command, "--output_dir", str(tmp_path / "with"), "--exptest", "true", "--exptest_alpha", "0.01")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "starts with learning rate" in done.stdout + done.stderr
    found = max(rates(tmp_path / "with"))
    # The 3 steps of warm-up, and no trace of the default 5e-5 or of TRL's 2e-5.
    assert rates(tmp_path / "with")[:3] == pytest.approx([found / 3, found * 2 / 3, found])
    assert found > 2e-4
    saved = torch.load(tmp_path / "with" / "training_args.bin", weights_only=False)
    assert (saved.exptest, saved.exptest_alpha) == (True, 0.01)


def test_without_the_flag_the_script_runs_as_ever(tmp_path):
    script = str(Path(__file__).with_name("run_classification.py"))
    launched = launch("hf_exptest.run", script, *FLAGS, "--output_dir", str(tmp_path / "launched"))
    assert launched.returncode == 0, launched.stderr[-3000:]
    plain = subprocess.run(
        [sys.executable, script, *FLAGS, "--output_dir", str(tmp_path / "plain")], capture_output=True, text=True
    )
    assert plain.returncode == 0, plain.stderr[-3000:]
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("launched", "plain")]
    losses = [[row["loss"] for row in log["log_history"] if "loss" in row] for log in logs]
    assert len(losses[0]) == 30
    assert losses[0] == losses[1]


@pytest.mark.distributed
def test_under_torchrun(tmp_path):
    script = str(Path(__file__).with_name("run_classification.py"))
    done = launch(
        *["torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"],
        *["--rdzv_endpoint", "localhost:0", "-m", "hf_exptest.run", script, *FLAGS],
        *["--output_dir", str(tmp_path), "--exptest", "true", "--disable_tqdm", "false"],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Two processes share 256 rows in batches of 16: 30 steps are 30/16 epochs.
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(30 / 16)
    assert len(rates(tmp_path)) == 30
    assert (done.stdout + done.stderr).count("starts with learning rate") == 1


def test_wrong_calls_say_what_would_be_right(tmp_path, monkeypatch, capsys):
    def exit_code(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf_exptest.run", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            run.main()
        return exit_info.value.code

    missing = str(tmp_path / "missing.py")
    assert exit_code(missing).startswith(f"hf_exptest.run: there is no script {missing!r}; usage: ")
    assert capsys.readouterr().out == ""
    for arguments, code in (((), 2), (("--help",), 0)):
        assert exit_code(*arguments) == code
        assert "accelerate launch -m hf_exptest.run" in capsys.readouterr().out
