# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import json
import subprocess
from pathlib import Path

import pytest
import toys

from hf_exptest import Report

pytestmark = pytest.mark.distributed


def test_the_finder_ends_every_process_and_the_main_one_speaks_and_writes(tmp_path):
    script = str(Path(__file__).with_name("train_found.py"))
    command = ["-m", "hf_exptest.run", "--find", script, tmp_path]
    _, done = toys.run_processes(2, command, tmp_path, is_forked=False)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "rank0.json", "rank1.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"exptest.json", "exptest.png"}
    report = Report.load(tmp_path / "out")
    # Eight rows on each of two processes.
    assert (report.is_look_alone, report.setup["total_batch_size"]) == (True, 16)
    assert done.stdout.count(report.summary()) == 1
    assert done.stdout.count("ExpTest found the learning rate") == 1
    assert done.stdout.count("To train with it: ") == 1


def test_a_finder_that_cannot_look_ends_every_process_with_an_error(tmp_path):
    script = str(Path(__file__).with_name("train_found.py"))
    command = [*toys.torchrun(2), "-m", "hf_exptest.run", "--find", script, str(tmp_path), "lomo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)] == [{"world_size": 2}] * 2
    assert done.stderr.count("hf_exptest.run: ExpTest cannot look for a learning rate here: optim='lomo'") == 1
    assert list(tmp_path.glob("trained*")) == []
