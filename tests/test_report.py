# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import errno
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from reports import (
    FALLBACK_HISTORY,
    GIVEN,
    HISTORY,
    INCONCLUSIVE_SEARCH,
    LOSSES,
    SEARCH,
    entry,
    make_report,
    start,
)
from toys import make_trainer
from transformers import TrainerCallback

from hf_exptest import ExpTestCallback, Report
from hf_exptest.cli import main
from hf_exptest.report import describe, search_from_dict, search_to_dict, write


def test_starting_rate_is_the_one_that_was_used():
    found = make_report(search=SEARCH)
    assert (found.starting_rate, found.rate_source) == (0.3, "search")
    # The search has a rate all the same, which nobody used.
    fallback = make_report(FALLBACK_HISTORY, INCONCLUSIVE_SEARCH)
    assert (fallback.starting_rate, fallback.rate_source) == (5e-5, "training_arguments")
    bound = make_report([start("first_update_bound", 0.2), *HISTORY[1:]])
    assert (bound.starting_rate, bound.rate_source) == (0.2, "first_update_bound")
    # A given rate is not in the history, whose first entry may already have lowered it.
    given = make_report([entry(60, "decay", learning_rate=0.1)], config=GIVEN)
    assert (given.starting_rate, given.rate_source) == (0.7, "given")
    # Nor is it used where a checkpoint of a run without ExpTest goes on.
    taken_over = make_report([start("checkpoint", 0.02)], config=GIVEN)
    assert (taken_over.starting_rate, taken_over.rate_source) == (0.02, "checkpoint")


def test_rate_at_a_step_is_the_one_decided_on_before():
    assert [make_report().rate_at(step) for step in (0, 20, 59, 60, 100)] == [0.3, 0.3, 0.3, 0.1, 0.1]
    given = make_report([entry(60, "decay", learning_rate=0.1)], config=GIVEN)
    assert [given.rate_at(step) for step in (59, 60)] == [0.7, 0.1]


def test_a_report_without_a_start_goes_by_the_log():
    # Resumed without a rate from a checkpoint whose rate was given: no entry says it, and no training may end by that.
    resumed = make_report([])
    assert (resumed.starting_rate, resumed.rate_source) == (0.3, "checkpoint")
    assert resumed.summary().startswith("Training started from the learning rate of a checkpoint, 0.3")
    assert math.isnan(dataclasses.replace(resumed, steps=[], losses=[], learning_rates=[]).starting_rate)


def test_summary_says_how_the_rate_was_found():
    lines = make_report(search=SEARCH).summary().splitlines()
    assert lines[:2] == [
        "ExpTest found the learning rate 0.3 before the first step.",
        "It tried short runs from the same weights, beginning at the upper bound 0.9:",
    ]
    assert [line.split() for line in lines[3:7]] == [
        ["9.00e-01", "24", "diverged"],
        ["3.00e-01", "24", "0.5000"],
        ["1.00e-01", "48", "0.5625"],
        ["untouched", "0", "0.7500"],
    ]
    assert lines[7:9] == [
        "The best rates of 24 and 48 steps, carried on to the length of the run, give 0.3.",
        "The search took 75 steps in 12 s; then the model was put back as it was.",
    ]


def test_summary_of_a_resumed_run_tells_of_the_search_and_of_the_checkpoint():
    lines = make_report([start("checkpoint", 0.1)], SEARCH).summary().splitlines()
    assert lines[0] == (
        "ExpTest found the learning rate 0.3 before the first step."
        " Training started from the learning rate of a checkpoint, 0.1."
    )
    assert lines[7].endswith("give 0.3.")


def test_summary_lists_every_decision():
    lines = make_report(search=SEARCH).summary().splitlines()
    assert lines[9] == "Decisions:"
    assert lines[10] == "    starts with learning rate 0.3 (search)"
    assert lines[13] == "    step 60: loss no longer falls (p = 0.4 over 20 steps): learning rate 0.3 -> 0.1"
    assert len(lines) == 14


def test_summary_of_an_inconclusive_search_claims_no_rate():
    summary = make_report(FALLBACK_HISTORY, INCONCLUSIVE_SEARCH).summary()
    lines = summary.splitlines()
    assert lines[0] == (
        "ExpTest tried 3 learning rates and found none that lowers the loss on held-out batches."
        " Training started from TrainingArguments.learning_rate, 5e-05."
    )
    assert [line.split()[0] for line in lines[3:7]] == ["9.00e-01", "3.00e-01", "1.00e-01", "untouched"]
    assert lines[7:] == [
        "The search took 75 steps in 12 s; then the model was put back as it was.",
        "Decisions:",
        "    starts with learning rate 5e-05 (training arguments)",
    ]


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (
            make_report(FALLBACK_HISTORY),
            "Training started from TrainingArguments.learning_rate, 5e-05: there was no search.",
        ),
        (
            make_report([start("first_update_bound", 0.2)]),
            "Training started from the upper bound along the first update, 0.2: there was no search.",
        ),
        (
            make_report([start("checkpoint", 0.02)]),
            "Training started from the learning rate of a checkpoint, 0.02: there was no search.",
        ),
        # Resumed from a checkpoint that does not tell of the search.
        (make_report(), "Training started from the learning rate that a search found, 0.3."),
        (make_report([], config=GIVEN), "Training started from the given learning rate, 0.7: there was no search."),
    ],
)
def test_summary_without_search(report, sentence):
    assert report.summary().splitlines()[0] == sentence


def test_summary_without_decisions():
    assert make_report([], config=GIVEN).summary().splitlines()[1:] == ["No test was made while training."]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"decision": "start", "test": "first_update_bound"}, "starts with learning rate 0.1 (first update bound)"),
        (
            {"decision": "detected", "test": "exponential_decay"},
            "step 400: loss decays exponentially (p = 0.31 over 120 steps): learning rate stays 0.1",
        ),
        (
            {"decision": "decay", "test": "exponential_decay"},
            "step 400: loss does not decay exponentially (p = 0.31 over 120 steps): learning rate 0.3 -> 0.1",
        ),
        ({"decision": "continue"}, "step 400: loss still falls (p = 0.31 over 120 steps): learning rate stays 0.1"),
    ],
)
def test_decisions_in_words(changes, text):
    last = {**entry(400, "decay", learning_rate=0.1, p_value=0.31, window=120), **changes}
    assert describe(last, HISTORY[0]) == text


def test_divergence_in_words():
    last = entry(7, "decay", learning_rate=0.1, test="divergence", p_value=1.0, window=0)
    assert describe(last, HISTORY[0]) == (
        "step 7: loss is not finite, so the weights may be lost: learning rate 0.3 -> 0.1"
    )


def test_smoothed_losses_average_a_twentieth_around_each_point():
    losses = np.random.default_rng(0).normal(size=80).tolist()
    expected = [np.mean([losses[j] for j in range(80) if abs(i - j) <= 2]) for i in range(80)]
    np.testing.assert_allclose(make_report(losses=losses).smoothed_losses, expected)


def test_smoothed_losses_of_a_few_points_are_the_losses():
    assert make_report(losses=[3.0, 1.0, 2.0]).smoothed_losses == [3.0, 1.0, 2.0]
    assert make_report(losses=[]).smoothed_losses == []


def test_report_survives_its_file(tmp_path):
    report = make_report(search=SEARCH, losses=[*LOSSES[:-1], float("inf")])
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == report
    assert loaded.summary() == report.summary()
    assert loaded.search.is_conclusive == SEARCH.is_conclusive
    assert "Infinity" not in (tmp_path / "exptest.json").read_text()


def change(values, *path, **changes):
    """The values of a report with some of those at `path` changed, or taken out where the new one is `None`."""
    for key in path:
        values = values[key]
    values.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del values[key]


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ((), {"version": 99}, "it has version 99; this release reads version 3"),
        ((), {"version": None}, "it has version None"),
        ((), {"losses": None}, "'losses'"),
        ((), {"num_training_steps": None}, "'num_training_steps'"),
        # A report holds no paths, so there are none to follow.
        ((), {"figure": "../../secret.png"}, "'figure'"),
        ((), {"steps": [1, 2]}, r"\[2, 100, 100\] steps, losses and learning rates"),
        (("search",), {"upper_bound": None}, "'upper_bound'"),
        (("search", "trials", 1), {"momentum": 0.9}, "'momentum'"),
        (("config",), {"momentum": 0.9}, r"Unknown ExpTest settings \['momentum'\]"),
        (("config",), {"alpha": 2.0}, "alpha=2.0"),
        (("config",), {"learning_rate": -1.0}, "learning_rate=-1.0"),
        (("history", 0), {"test": "oracle"}, "a learning rate from 'oracle', not one of"),
        (("history", 1), {"p_value": None, "window": None}, r"history lacks \['p_value', 'window'\]"),
    ],
)
def test_reports_with_other_keys_or_values_are_refused(tmp_path, path, changes, message):
    make_report(search=SEARCH).save(tmp_path)
    file = tmp_path / "exptest.json"
    values = json.loads(file.read_text())
    change(values, *path, **changes)
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"exptest\.json' cannot be read: .*" + message):
        Report.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_reports_are_refused(tmp_path, share):
    make_report(search=SEARCH).save(tmp_path)
    file = tmp_path / "exptest.json"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"exptest\.json' cannot be read: .*line"):
        Report.load(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"7", b"\x80\x04\x95pickle", b'{"version": 1}'])
def test_other_files_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"has no exptest\.json"):
        Report.load(tmp_path)
    (tmp_path / "exptest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"exptest\.json' cannot be read"):
        Report.load(tmp_path)


def test_search_survives_as_plain_values():
    search = dataclasses.replace(SEARCH, untouched_losses=[math.inf] * 12)
    values = json.loads(json.dumps(search_to_dict(search), allow_nan=False))
    assert values["trials"][1]["end_losses"] == [None] * 12
    assert search_from_dict(values) == search


FOUND = make_report(search=SEARCH)


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.figures
def test_write_leaves_both_files(tmp_path, caplog):
    write(FOUND, tmp_path / "new", with_figure=True)
    assert names(tmp_path / "new") == {"exptest.json", "exptest.png"}
    assert caplog.messages == []


def test_write_leaves_no_figure_at_a_save(tmp_path):
    write(FOUND, tmp_path, with_figure=False)
    assert names(tmp_path) == {"exptest.json"}


@pytest.mark.figures
@pytest.mark.parametrize("with_figure", [True, False])
def test_folder_that_cannot_be_written_costs_a_warning_a_file(tmp_path, caplog, with_figure):
    # A file is in its place: what is read-only for others is not so for root.
    folder = tmp_path / "file"
    folder.write_text("")
    write(FOUND, folder, with_figure=with_figure)
    files = ["exptest.json", "exptest.png"] if with_figure else ["exptest.json"]
    assert [message.split(": ")[0] for message in caplog.messages] == [
        f"ExpTest could not write '{folder / file}'" for file in files
    ]
    assert "FileExistsError" in caplog.messages[0]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.figures
def test_full_disk_keeps_older_files(tmp_path, caplog, monkeypatch):
    write(FOUND, tmp_path, with_figure=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def write_half(path, *args, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kwargs: write_half(path))
    write(make_report(FALLBACK_HISTORY), tmp_path, with_figure=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert Report.load(tmp_path) == FOUND
    assert caplog.messages == [
        f"ExpTest could not write '{tmp_path / name}': OSError: [Errno 28] No space left on device"
        for name in ("exptest.json", "exptest.png")
    ]


@pytest.mark.figures
def test_figure_that_cannot_be_drawn_costs_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hf_exptest.figure.draw", lambda report, path: 1 / 0)
    write(FOUND, tmp_path, with_figure=True)
    assert names(tmp_path) == {"exptest.json"}
    (message,) = caplog.messages
    assert message == f"ExpTest could not write '{tmp_path / 'exptest.png'}': ZeroDivisionError: division by zero"


@pytest.mark.figures
def test_without_matplotlib_or_losses_there_is_no_figure(tmp_path, caplog, monkeypatch):
    write(dataclasses.replace(FOUND, steps=[], losses=[], learning_rates=[]), tmp_path, with_figure=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write(FOUND, tmp_path, with_figure=True)
    assert names(tmp_path) == {"exptest.json"}
    assert caplog.messages == []


@pytest.mark.figures
def test_a_training_leaves_a_report_and_logs_its_numbers(tmp_path, capsys):
    class Reporter(TrainerCallback):
        """What TensorBoard and the others get."""

        def __init__(self):
            self.rows = []

        def on_log(self, args, state, control, logs, **kwargs):
            self.rows.append(dict(logs))

    callback, reporter = ExpTestCallback(), Reporter()
    make_trainer(tmp_path, [callback, reporter], max_steps=200).train()
    rows = [row for row in reporter.rows if "loss" in row]
    assert len(rows) == 200
    # A row is logged after its step, when the scheduler already speaks of the next one.
    assert [row["exptest_phase"] for row in rows] == [0] * 19 + [2] * 40 + [3] * 141
    assert [row["exptest_decays"] for row in rows] == [0] * 59 + [callback.history[-1]["decision"] == "decay"] * 141
    assert "exptest_p_value" not in rows[50]
    assert rows[-1]["exptest_p_value"] == callback.history[-1]["p_value"]
    assert rows[-1]["exptest_window"] == 40
    assert all(isinstance(value, (int, float)) for row in rows for value in row.values())
    report = Report.load(tmp_path)
    assert report == callback.report()
    assert report.steps == list(range(1, 201))
    assert report.starting_rate == callback.search.learning_rate
    assert plt.imread(tmp_path / "exptest.png").shape[:2] == (750, 1650)

    capsys.readouterr()
    main(["show", str(tmp_path)])
    assert capsys.readouterr().out.rstrip() == report.summary()
    main(["plot", str(tmp_path), "--output", str(tmp_path / "again.png")])
    assert plt.imread(tmp_path / "again.png").shape[:2] == (750, 1650)
