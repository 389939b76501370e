# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from matplotlib import pyplot as plt
from toys import make_trainer
from transformers import TrainerCallback

from hf_exptest import ExpTestCallback, Report
from hf_exptest.cli import main
from hf_exptest.rehearsal import LearningRateSearch
from hf_exptest.report import describe, plot_training, smoothed, summary
from hf_exptest.stage import Rung

STEPS = list(range(1, 101))
LOSSES = [1 / step for step in STEPS]
RATES = [0.3] * 60 + [0.1] * 40


def entry(step, decision, learning_rate=0.3, phase="tune", test="slope", p_value=0.01, window=20):
    return {
        "step": step,
        "phase": phase,
        "test": test,
        "p_value": p_value,
        "learning_rate": learning_rate,
        "window": window,
        "decision": decision,
    }


HISTORY = [
    entry(0, "start", test="rehearsal", p_value=None, window=0),
    entry(20, "continue"),
    entry(40, "continue"),
    entry(60, "decay", learning_rate=0.1, p_value=0.4),
]


@pytest.fixture
def search():
    return LearningRateSearch(
        learning_rate=0.3,
        upper_bound=0.9,
        untouched_losses=[0.6, 0.8],
        rungs=[
            Rung(0.3, 24, [0.0], [0.1], [0.45, 0.55], 0.01),
            Rung(0.9, 24, [0.0], [0.1], [float("inf")] * 2, 1.0),
            Rung(0.1, 48, [0.0], [0.1], [0.5, 0.625], 0.02),
        ],
        num_training_steps=300,
        num_steps=75,
        seconds=12.4,
    )


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def markers(ax):
    """Step and colour of each vertical line over the whole height."""
    lines = [line for line in ax.lines if list(line.get_ydata()) == [0, 1]]
    return [(line.get_xdata()[0], line.get_color()) for line in lines]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_plot_has_loss_rate_and_decisions():
    loss_axes, rate_axes = plot_training(STEPS, LOSSES, RATES, HISTORY).axes
    raw, smooth = loss_axes.lines[:2]
    assert list(raw.get_xdata()) == STEPS
    assert list(raw.get_ydata()) == LOSSES
    assert list(smooth.get_ydata()) == smoothed(LOSSES)
    assert raw.get_linewidth() < smooth.get_linewidth()
    assert list(rate_axes.lines[0].get_ydata()) == RATES
    assert rate_axes.lines[0].get_drawstyle() == "steps-pre"
    expected = [(0, "black"), (20, "tab:green"), (40, "tab:green"), (60, "tab:red")]
    assert markers(loss_axes) == expected
    assert markers(rate_axes) == expected
    assert loss_axes.get_xlim() == rate_axes.get_xlim()


def test_legend_names_each_kind_once():
    _, rate_axes = plot_training(STEPS, LOSSES, RATES, HISTORY).axes
    assert [text.split(":")[0] for text in legend(rate_axes)] == ["start", "continue", "decay"]


def test_every_kind_of_decision_can_be_drawn():
    history = [entry(i, kind) for i, kind in enumerate(["start", "detected", "continue", "decay"])]
    _, rate_axes = plot_training(STEPS, LOSSES, RATES, history).axes
    assert [text.split(":")[0] for text in legend(rate_axes)] == ["start", "detected", "continue", "decay"]


@pytest.mark.parametrize(("last_rate", "scale"), [(0.1, "linear"), (0.01, "log")])
def test_rate_axis_is_logarithmic_over_a_wide_range(last_rate, scale):
    history = [*HISTORY, entry(80, "decay", learning_rate=last_rate)]
    _, rate_axes = plot_training(STEPS, LOSSES, RATES, history).axes
    assert rate_axes.get_yscale() == scale


def test_plot_without_decisions():
    loss_axes, rate_axes = plot_training(STEPS, LOSSES, RATES, []).axes
    assert markers(loss_axes) == markers(rate_axes) == []
    assert rate_axes.get_legend() is None


def test_plot_with_search_has_its_own_panel(search):
    axes = plot_training(STEPS, LOSSES, RATES, HISTORY, search).axes
    assert [ax.get_ylabel() for ax in axes] == ["loss on held-out batches", "training loss", "learning rate"]
    assert list(axes[0].lines[0].get_xdata()) == [0.3, 0.9]


def test_plot_quotes_lengths_that_differ():
    with pytest.raises(ValueError, match="100, 99 and 100 values"):
        plot_training(STEPS, LOSSES[1:], RATES, [])


def test_smoothed_averages_a_twentieth_around_each_point():
    losses = np.random.default_rng(0).normal(size=80).tolist()
    expected = [np.mean([losses[j] for j in range(80) if abs(i - j) <= 2]) for i in range(80)]
    np.testing.assert_allclose(smoothed(losses), expected)


def test_smoothed_leaves_a_few_points_as_they_are():
    assert smoothed([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    assert smoothed([]) == []


def test_summary_says_how_the_rate_was_found(search):
    lines = summary(HISTORY, search).splitlines()
    assert lines[0] == "ExpTest found the learning rate 0.3 before the first step."
    assert "upper bound 0.9" in lines[1]
    assert [line.split() for line in lines[3:7]] == [
        ["9.00e-01", "24", "diverged"],
        ["3.00e-01", "24", "0.5000"],
        ["1.00e-01", "48", "0.5625"],
        ["untouched", "0", "0.7000"],
    ]
    assert "24 and 48 steps" in lines[7]
    assert lines[7].endswith("give 0.3.")
    assert "75 steps in 12 s" in lines[8]


def test_summary_lists_every_decision(search):
    lines = summary(HISTORY, search).splitlines()
    assert lines[9] == "Decisions:"
    assert lines[10] == "    starts with learning rate 0.3 (rehearsal)"
    assert lines[13] == "    step 60: loss no longer falls (p = 0.4 over 20 steps): learning rate 0.3 -> 0.1"
    assert len(lines) == 14


def test_summary_without_search_and_decisions():
    assert summary([]) == "The learning rate was not searched for.\nNo test was made while training."


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


def test_report_survives_its_file(tmp_path, search):
    report = Report({"alpha": 0.05}, 300, HISTORY, search, STEPS, [*LOSSES[:-1], float("inf")], RATES)
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == report
    assert loaded.summary() == summary(HISTORY, search)
    assert loaded.search.is_conclusive == search.is_conclusive
    assert "Infinity" not in (tmp_path / "exptest.json").read_text()


def test_reports_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no exptest\.json"):
        Report.load(tmp_path)
    (tmp_path / "exptest.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="has version 99; this release reads version 1"):
        Report.load(tmp_path)


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
    assert plt.imread(tmp_path / "exptest.png").shape[:2] == (750, 1800)

    capsys.readouterr()
    main(["show", str(tmp_path)])
    assert capsys.readouterr().out.rstrip() == report.summary()
    main(["plot", str(tmp_path), "--output", str(tmp_path / "again.png")])
    assert plt.imread(tmp_path / "again.png").shape[:2] == (750, 1800)
    capsys.readouterr()
    main(["compare", str(tmp_path), str(tmp_path)])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "run"
    assert first == second
    assert first.split()[1:4] == ["200", str(callback.search.num_steps), f"{report.starting_rate:.2g}"]
    with pytest.raises(SystemExit, match=r"hf-exptest: '.*missing' has no exptest\.json"):
        main(["show", str(tmp_path / "missing")])
