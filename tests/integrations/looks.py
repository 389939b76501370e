# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tests of several frameworks share: a command, and what a run with one look must leave behind."""

import json
import subprocess
import sys

import pytest

from hf_exptest import Report

LAUNCHER = ["-m", "hf_exptest.run", "--exptest"]


def python(*command):
    """What the command printed; it must end well."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def saved_log(folder):
    """The log of a Trainer, as it saves its state."""
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def assert_looked(folder, log):
    """
    That a run of 30 steps, each in the `log`, had ExpTest's rates: of the start, and of a look after the warm-up.

    Returns:
        `float`: the rate that the look found.
    """
    report = Report.load(folder)
    start, look = report.history[:2]
    assert (start["test"], look["test"], look["step"], look["decision"]) == ("below_bound", "look", 3, "raise")
    low, found = start["learning_rate"], look["learning_rate"]
    rates = [row["learning_rate"] for row in log if "loss" in row]
    assert len(rates) == report.num_training_steps == 30
    assert report.learning_rates == rates
    # A warm-up of 3 steps, a second one of 5, and a linear way down from step 9, where 30 % of the run are over.
    rise = [low + (found - low) * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    fall = [found * (30 - step) / 21 for step in range(9, 30)]
    assert rates == pytest.approx([low / 3, low * 2 / 3, low, *rise, found, *fall])
    return found
