# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import json
import subprocess
import sys
from pathlib import Path

import pytest


def train(folder, num_processes, accumulation):
    """What every process of one torchrun reports."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
    command += ["--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    script = Path(__file__).with_name("train.py")
    done = subprocess.run(
        [*command, str(script), str(folder), "16", str(accumulation)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_processes)]
    assert [result["world_size"] for result in results] == [num_processes] * num_processes
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_processes_decide_as_one(tmp_path, accumulation):
    (one,) = train(tmp_path / "one", 1, accumulation)
    first, second = train(tmp_path / "two", 2, accumulation)
    # Only the main process keeps a log; the decisions are everyone's.
    assert first["history"] == second["history"]
    assert first["search"] == second["search"] == pytest.approx(one["search"], rel=1e-3)
    assert len(one["history"]) >= 3
    keys = ("step", "phase", "test", "window", "decision")
    assert [[e[k] for k in keys] for e in first["history"]] == [[e[k] for k in keys] for e in one["history"]]
    assert first["rates"] == pytest.approx(one["rates"], rel=1e-3)
