# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""DeepSpeed on two processes of a CPU. Its first run builds an op for a minute or two, with a C++ compiler."""

import os
from pathlib import Path

import pytest
import toys

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def torchrun(folder, *arguments):
    script = Path(__file__).with_name("train_deepspeed.py")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    results, done = toys.run_processes(2, script, folder, str(folder), *arguments, timeout=900, env=environment)
    return results, done.stdout + done.stderr


@pytest.mark.parametrize(("stage", "optimizer"), [(2, "trainer"), (3, "trainer"), (2, "config")])
def test_starts_from_the_given_rate_and_lowers_it(tmp_path, stage, optimizer):
    results, output = torchrun(tmp_path, str(stage), optimizer)

    assert [result["stage"] for result in results] == [stage, stage]
    assert "ExpTest found no learning rate: DeepSpeed" in output
    first, *decisions = results[0]["history"]
    assert (first["decision"], first["test"], first["learning_rate"]) == ("start", "training_arguments", 0.05)
    assert "decay" in [entry["decision"] for entry in decisions]
    assert results[1]["history"] == results[0]["history"]
    assert [result["steps"] for result in results] == [60, 60]
    for result in results:
        assert result["optimizer_rates"] == result["scheduler_rates"] == results[0]["logged_rates"]
    assert len(results[0]["logged_rates"]) == 60
