# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import os
import runpy
import sys
from pathlib import Path

import pytest
from reports import (
    FALLBACK_HISTORY,
    GIVEN,
    INCONCLUSIVE_SEARCH,
    LATER_SEARCH,
    SEARCH,
    TWO_LOOKS_HISTORY,
    entry,
    look_alone,
    make_report,
    start,
)

from hf_exptest.cli import main

REPORTS = {
    "found": make_report(searches=[SEARCH]),
    "fallback": make_report(FALLBACK_HISTORY, [INCONCLUSIVE_SEARCH]),
    "two": make_report(TWO_LOOKS_HISTORY, [SEARCH, LATER_SEARCH]),
    # Ended in its warm-up.
    "below": make_report([start("below_bound", 0.02)]),
    "bound": make_report([start("first_update_bound", 0.2)]),
    "given": make_report([entry(60, "decay", learning_rate=0.25)], config=GIVEN),
    "unlogged": dataclasses.replace(make_report([], config=GIVEN), steps=[], losses=[], learning_rates=[]),
    "alone": look_alone(),
    "stopped": dataclasses.replace(make_report(searches=[SEARCH]), num_steps_made=18),
}


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, report in REPORTS.items():
        report.save(name)


@pytest.mark.parametrize("name", ["found", "fallback", "two", "below", "alone", "stopped"])
def test_show_prints_the_summary(capsys, name):
    main(["show", name])
    assert capsys.readouterr().out == REPORTS[name].summary() + "\n"


def test_a_reader_that_has_enough_is_no_error(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        main(["show", "found"])
        stdout.write("more")


def test_compare_has_the_rates_that_were_used_and_where_they_are_from(capsys):
    main(["compare", *REPORTS])
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        [
            "run",
            "steps",
            "search steps",
            "starting rate",
            "rate from",
            "decays",
            "last rate",
            "first loss",
            "last loss",
        ],
        ["found", "100", "96", "0.3", "a look", "1", "0.1", "0.6111", "0.0101"],
        ["fallback", "100", "96", "5e-05", "TrainingArguments.learning_rate", "0", "5e-05", "0.6111", "0.0101"],
        # A look that lowers the rate is no decay.
        ["two", "100", "138", "0.3", "a look", "0", "0.1", "0.6111", "0.0101"],
        ["below", "100", "0", "0.02", "a thirtieth of the upper bound", "0", "0.02", "0.6111", "0.0101"],
        ["bound", "100", "0", "0.2", "the upper bound", "0", "0.2", "0.6111", "0.0101"],
        ["given", "100", "0", "0.7", "given", "1", "0.25", "0.6111", "0.0101"],
        ["unlogged", "100", "0", "0.7", "given", "0", "0.7", "not logged", "not logged"],
        ["alone", "100", "96", "0.3", "a look", "0", "0.3", "not trained", "not trained"],
        ["stopped", "18 of 100", "96", "0.3", "a look", "1", "0.1", "0.6111", "0.0101"],
    ]


def test_plot_writes_the_format_that_the_name_ends_with(capsys, tmp_path):
    main(["plot", "found", "--output", "run.pdf"])
    assert (tmp_path / "run.pdf").read_bytes().startswith(b"%PDF")
    assert capsys.readouterr().out == "Figure: run.pdf\n"


@pytest.mark.parametrize("run", ["found", "found/exptest.json"])
def test_plot_writes_to_the_folder_of_the_run(capsys, tmp_path, run):
    main(["plot", run])
    assert capsys.readouterr().out == f"Figure: {Path('found', 'exptest.png')}\n"
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"exptest.json", "exptest.png"}
    assert not (tmp_path / "exptest.png").exists()


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf-exptest", "show", "found"])
    monkeypatch.delitem(sys.modules, "hf_exptest.cli")
    runpy.run_module("hf_exptest.cli", run_name="__main__")
    assert capsys.readouterr().out == REPORTS["found"].summary() + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "missing"], "hf-exptest: 'missing' has no exptest.json"),
        (["compare", "found", "missing"], "hf-exptest: 'missing' has no exptest.json"),
        (["plot", "found", "--output", "missing/run.png"], "hf-exptest: .*No such file or directory"),
        (["plot", "found", "--output", "run.doc"], "hf-exptest: Format 'doc' is not supported"),
    ],
)
def test_errors_are_told_in_a_line(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_plot_without_matplotlib_says_what_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "hf_exptest.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(SystemExit, match=r"hf-exptest: .*matplotlib\.axes"):
        main(["plot", "found"])
