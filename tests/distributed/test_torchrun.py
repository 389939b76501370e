# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toys
import transformers
from packaging.version import Version

pytestmark = pytest.mark.distributed

IS_TORCH_2_6 = torch.__version__.startswith("2.6.")
IS_OLD_RESUME = Version(transformers.__version__) < Version("5.18")

DECISION = ("step", "phase", "test", "window", "decision")


def torchrun(folder, num_processes, script, *arguments):
    """What every process reports."""
    results, _ = toys.run_processes(num_processes, [Path(__file__).with_name(script), *arguments], folder)
    return results


def run(folder, num_processes, scenario, **options):
    return torchrun(folder, num_processes, "train.py", scenario, str(folder), json.dumps(options))


def assert_same_decisions(results, history):
    for result in results:
        # Only the main process keeps a log; the decisions are everyone's.
        assert result["history"] == results[0]["history"]
        assert [[entry[k] for k in DECISION] for entry in result["history"]] == [
            [entry[k] for k in DECISION] for entry in history
        ]
        assert [entry["learning_rate"] for entry in result["history"]] == pytest.approx(
            [entry["learning_rate"] for entry in history], rel=1e-6
        )


def test_several_processes_decide_as_one(tmp_path):
    (one,) = run(tmp_path / "one", 1, "decide", accumulation=1)
    assert len(one["history"]) >= 3
    # The same batch for each optimizer step, in other parts.
    for world, accumulation in ((2, 4), (4, 1)):
        results = run(tmp_path / f"{world}-{accumulation}", world, "decide", accumulation=accumulation)
        assert_same_decisions(results, one["history"])
        assert {result["search"] for result in results} == {one["search"]}
        assert results[0]["rates"] == pytest.approx(one["rates"], rel=1e-6)


def test_uneven_last_batch_and_averages_per_process(tmp_path):
    results = run(
        tmp_path / "two", 2, "decide", accumulation=2, num_rows=250, average_tokens_across_devices=False, max_steps=160
    )
    assert [result["steps"] for result in results] == [160, 160]
    assert_same_decisions(results, results[0]["history"])
    assert len(results[0]["history"]) >= 3


def test_steps_hardly_communicate(tmp_path):
    results = run(tmp_path / "two", 2, "collectives")
    for result in results:
        assert result["steps"] == 200
        assert [(entry["phase"], entry["window"]) for entry in result["history"]] == [("tune", 40)]
        num_collectives = sum(result["counts"].values())
        # The losses of 200 steps cannot come in fewer than seven parts of 32.
        assert 7 <= num_collectives <= 0.1 * 200


def test_different_settings_are_an_error_on_every_process(tmp_path):
    for result in run(tmp_path / "two", 2, "disagree"):
        assert "of 2 processes, rank 1 differs from the rest" in result["error"]


def test_one_process_that_diverges_leaves_no_other_waiting(tmp_path):
    first, second = run(tmp_path / "two", 2, "diverge")
    assert first == second
    lengths = {length for _, length, _ in first["trials"]}
    assert min(lengths) < 14 == max(lengths)


def test_supervised_fine_tuning_with_lora(tmp_path):
    results = run(tmp_path / "two", 2, "sft_lora")
    assert_same_decisions(results, results[0]["history"])
    assert [entry["test"] for entry in results[0]["history"]] == ["below_bound", "look"]
    assert results[0]["search"] == results[1]["search"] == results[0]["history"][1]["learning_rate"]


@pytest.mark.skipif(IS_OLD_RESUME, reason="transformers before 5.18 loads the optimizer to cpu:0, which torch refuses")
def test_two_processes_resume_bit_for_bit(tmp_path):
    first, second = run(tmp_path / "two", 2, "resume", steps=[5, 25, 73])
    assert first == second
    history, _ = first["whole"]
    assert [entry["test"] for entry in history] == ["slope", "slope"]
    assert first["resumed"] == [first["whole"]] * 3


@pytest.mark.parametrize("kind", ["single", "all"])
def test_bad_losses_on_one_process(tmp_path, kind):
    results = run(tmp_path / "two", 2, "fault", kind=kind)
    assert [result["steps"] for result in results] == [80, 80]
    assert results[0]["history"] == results[1]["history"]
    decided = [(entry["step"], entry["test"], entry["left_out"]) for entry in results[0]["history"]]
    assert decided[0] == (38, "slope", 1 if kind == "single" else 0)
    assert decided[1:] == [(68, "slope", 0)] if kind == "single" else [(51, "divergence", 1)]


@pytest.mark.skipif(IS_TORCH_2_6, reason="fully_shard of torch 2.6 needs streams, which a CPU has not")
def test_sharded_parameters_give_the_same_path(tmp_path):
    (one,) = torchrun(tmp_path / "one", 1, "train_sharded.py", str(tmp_path / "one"))
    results = torchrun(tmp_path / "two", 2, "train_sharded.py", str(tmp_path / "two"))
    assert one["shards"] == 1
    assert [result["shards"] for result in results] == [2, 2]
    assert any(entry["window"] > one["shortest_window"] for entry in one["history"])
    # A path is whole in one process alone: resumed shards begin a new one.
    assert [one["is_path_saved"], *(result["is_path_saved"] for result in results)] == [True, False, False]
    assert one["ratios"][0] == one["ratios"][1] > 1
    assert all(result["ratios"][1] == 1 < result["ratios"][0] for result in results)
    assert all(result["resumed"] == result["history"] for result in [one, *results])
    assert_same_decisions(results, one["history"])


def test_debug_launcher(tmp_path):
    script = Path(__file__).with_name("debug_launcher.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [result.pop("world_size") for result in results] == [2, 2]
    assert results[0] == results[1]
    assert [entry["decision"] for entry in results[0]["history"]] == ["continue", "continue", "decay"]
