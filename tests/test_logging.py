# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import contextlib
import json
import sqlite3
import struct
from unittest import mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import make_trainer
from transformers import PrinterCallback

from hf_exptest import ExpTestCallback
from hf_exptest.loss_signal import LossSignal
from hf_exptest.words import descriptions

KEYS = ("loss", "learning_rate", "exptest_phase", "exptest_decays", "exptest_p_value", "exptest_window")
# Two windows of thirty steps, from step 20 to 80.
TWO_WINDOWS = {"learning_rate": 0.1, "warmup": 0.1, "cooldown": 0.6, "window": 0.15, "alpha": 0.2}
STEPS = 200


def train(path, **overrides):
    """What ExpTest sees falls until step 50, and then rises, whatever batches this release of torch draws."""
    callback = ExpTestCallback(**TWO_WINDOWS)
    trainer = make_trainer(path, [callback], max_steps=STEPS, per_device_train_batch_size=32, **overrides)
    noise = 0.1 * np.random.default_rng(0).standard_normal(STEPS)
    losses = torch.tensor(2.0 + 0.02 * np.abs(np.arange(STEPS) - 50) + noise)
    with mock.patch.object(LossSignal, "take", side_effect=losses):
        trainer.train()
    assert [(entry["step"], entry["decision"]) for entry in callback.history] == [(50, "continue"), (80, "decay")]
    return callback, trainer


def expected_series(callback, trainer):
    """Steps and values that a reporter must have got for each key."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    first, second = callback.history
    steps = list(range(1, STEPS + 1))
    # A row is logged after its step, when the scheduler already speaks of the next one.
    return {
        "loss": (steps, [row["loss"] for row in rows]),
        "learning_rate": (steps, [row["learning_rate"] for row in rows]),
        "exptest_phase": (steps, [0] * 19 + [2] * 60 + [3] * 121),
        "exptest_decays": (steps, [0] * 79 + [1] * 121),
        "exptest_p_value": (steps[49:], [first["p_value"]] * 30 + [second["p_value"]] * 121),
        "exptest_window": (steps[49:], [30] * 151),
    }


def assert_same_rows(rows, expected):
    """Whether what a reporter kept, one dict a log, is the expected series; a row without a key counts not for it."""
    series = {}
    for key in KEYS:
        found = [row for row in rows if f"train/{key}" in row]
        series[key] = ([row["train/global_step"] for row in found], [row[f"train/{key}"] for row in found])
    assert_same_series(series, expected)


def assert_same_series(series, expected):
    for key in KEYS:
        assert series[key][0] == expected[key][0]
        assert series[key][1] == pytest.approx(expected[key][1], rel=1e-6)


def test_tensorboard_has_the_numbers_beside_the_loss(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    callback, trainer = train(tmp_path, report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0}).Reload()
    scalars = {key: events.Scalars(f"train/{key}") for key in KEYS}
    series = {key: ([e.step for e in found], [e.value for e in found]) for key, found in scalars.items()}
    assert_same_series(series, expected_series(callback, trainer))


def read_records(content):
    """The records of a W&B file: blocks of 32 KiB, in which each part of a record has a header of seven bytes."""
    position, record = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        # A whole record, or the last part of one.
        if kind in (1, 4):
            yield record
            record = b""


def test_weights_and_biases_has_the_numbers_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="in the extra `reporters`")
    from wandb.proto import wandb_internal_pb2

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "LOG_MODEL": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    callback, trainer = train(tmp_path, report_to=["wandb"])
    wandb.finish()
    # Waits for the process that writes the file.
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = map(wandb_internal_pb2.Record.FromString, read_records(file.read_bytes()))
    items = [record.history.item for record in records]
    rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row} for row in items]
    assert_same_rows(rows, expected_series(callback, trainer))


def test_trackio_has_the_numbers_on_this_machine(tmp_path, monkeypatch):
    # Read when trackio is imported, so it comes first.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="in the extra `reporters`")
    callback, trainer = train(tmp_path, report_to=["trackio"])
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "huggingface.db")) as database:
        rows = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY step")]
    assert_same_rows(rows, expected_series(callback, trainer))


def test_each_decision_is_one_line(tmp_path, caplog, capsys):
    # Before each checkpoint the losses are handed over too, so that decisions are looked for more often than made.
    with caplog.at_level("INFO", logger="hf_exptest"):
        callback, _ = train(tmp_path, disable_tqdm=False, save_strategy="steps", save_steps=10)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("hf_exptest")]
    assert said == [f"ExpTest: {line}" for line in descriptions(callback.history)]
    first, second = callback.history
    assert said[0] == (
        f"ExpTest: step 50: loss still falls (p = {first['p_value']:.2g} over 30 steps): learning rate stays 0.1"
    )
    assert said[1] == (
        f"ExpTest: step 80: loss no longer falls (p = {second['p_value']:.2g} over 30 steps):"
        " learning rate 0.1 -> 0.033"
    )
    # Beside the progress bar, only what changes something.
    printed = [line for line in capsys.readouterr().out.splitlines() if "ExpTest" in line]
    assert printed == [said[1]]


@pytest.mark.figures
def test_nothing_but_the_rate_is_printed_where_silence_is_wanted(tmp_path, capfd):
    callback = ExpTestCallback()
    trainer = make_trainer(
        tmp_path, [callback], max_steps=STEPS, disable_tqdm=True, report_to="none", logging_strategy="no"
    )
    # Trainer's own, which prints the run time at the end.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    began, looked, tested = callback.history
    assert (began["test"], looked["decision"], tested["decision"]) == ("below_bound", "raise", "undecided")
    # One line each: where training starts, and the rate that a later run can start from.
    printed = [f"ExpTest: {line}" for line in descriptions(callback.history)[:2]]
    assert (
        printed[0]
        == f"ExpTest: starts with learning rate {began['learning_rate']:.2g} (a thirtieth of the upper bound)"
    )
    assert printed[1] == (
        f"ExpTest: step 20: a look finds a higher rate better (p = {looked['p_value']:.2g}):"
        f" learning rate {began['learning_rate']:.2g} -> {looked['learning_rate']:.2g}"
    )
    assert capfd.readouterr() == ("".join(f"{line}\n" for line in printed), "")
    assert {path.name for path in tmp_path.iterdir()} == {"exptest.json", "exptest.png"}


@pytest.mark.figures
def test_other_processes_say_and_write_nothing(tmp_path, monkeypatch, caplog, capfd):
    callback = ExpTestCallback()
    trainer = make_trainer(tmp_path, [callback], max_steps=STEPS, disable_tqdm=False)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    monkeypatch.setattr(trainer, "is_local_process_zero", lambda: False)
    with caplog.at_level("INFO", logger="hf_exptest"):
        trainer.train()
    assert [entry["step"] for entry in callback.history] == [0, 20, 60]
    assert [record for record in caplog.records if record.name.startswith("hf_exptest")] == []
    assert "ExpTest" not in "".join(capfd.readouterr())
    assert list(tmp_path.iterdir()) == []
