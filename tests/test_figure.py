# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import math
from pathlib import Path

import forks
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from reports import (
    CONFIG,
    FALLBACK_HISTORY,
    HISTORY,
    INCONCLUSIVE_SEARCH,
    LATER_SEARCH,
    LOSSES,
    RATES,
    SEARCH,
    STEPS,
    TWO_LOOKS_HISTORY,
    entry,
    look,
    make_report,
    start,
)

from hf_exptest import ExpTestConfig, Report
from hf_exptest.figure import draw, phases, plot_search


def vertical_lines(ax):
    """Step, colour and style of each vertical line over the whole height."""
    lines = [line for line in ax.lines if list(line.get_ydata()) == [0, 1]]
    return [(line.get_xdata()[0], line.get_color(), line.get_linestyle()) for line in lines]


def bands(ax):
    """First and last step, and colour, of each shaded band."""
    found = []
    # A rectangle, or a polygon in older releases of matplotlib.
    for patch in ax.patches:
        steps = patch.get_patch_transform().transform(patch.get_path().vertices)[:, 0]
        found.append((steps.min(), steps.max(), patch.get_facecolor()[:3]))
    return found


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_plot_has_loss_rate_and_decisions():
    loss_axes = make_report().plot()
    panels = loss_axes.figure.axes
    assert panels[0] is loss_axes
    assert [ax.get_ylabel() for ax in panels] == ["training loss", "learning rate"]
    raw, smooth = loss_axes.lines[:2]
    assert list(raw.get_xdata()) == list(smooth.get_xdata()) == STEPS
    assert list(raw.get_ydata()) == LOSSES
    assert list(smooth.get_ydata()) == make_report().smoothed_losses
    assert raw.get_linewidth() < smooth.get_linewidth()
    rate = panels[1].lines[0]
    assert list(rate.get_ydata()) == RATES
    assert rate.get_drawstyle() == "steps-pre"
    expected = [
        (0, "black", ":"),
        (10, "#E69F00", "--"),
        (20, "#009E73", ":"),
        (40, "#009E73", ":"),
        (60, "#D55E00", "--"),
    ]
    assert vertical_lines(loss_axes) == vertical_lines(panels[1]) == expected
    assert loss_axes.get_xlim() == panels[1].get_xlim() == (0, 100)


def test_plot_marks_each_kind_of_decision_in_its_own_way():
    names = {
        "start": "start",
        "raise": "look: a higher rate is better",
        "lower": "look: a lower rate is better",
        "keep": "look: no other rate is better",
        "detected": "detected: loss decays exponentially",
        "continue": "continue: loss still falls",
        "undecided": "undecided: too few or too noisy losses",
        "look": "test failed: time for a look",
        "decay": "decay: test failed, rate lowered",
    }
    ax = make_report([entry(10 * i, kind) for i, kind in enumerate(names)]).plot()
    assert legend(ax) == ["loss", "loss, smoothed", *names.values()]
    marked = [line for line in ax.lines if line.get_marker() != "None"]
    assert [list(line.get_xdata()) for line in marked] == [[10 * i] for i in range(9)]
    # Shapes that stay apart without their colours.
    assert len({line.get_marker() for line in marked}) == 9
    colors = dict(zip(names, (line.get_color() for line in marked), strict=True))
    # What looks led to, and the tests that failed, have one colour each.
    assert colors["raise"] == colors["lower"] == colors["keep"]
    assert colors["look"] == colors["decay"]
    assert len(set(colors.values())) == 6


def test_plot_marks_every_decision_of_a_kind_together():
    ax = make_report(TWO_LOOKS_HISTORY).plot()
    marked = {line.get_label(): list(line.get_xdata()) for line in ax.lines if line.get_marker() != "None"}
    assert {name.split(":")[0]: steps for name, steps in marked.items() if not name.startswith("look")} == {
        "start": [0],
        "continue": [20],
        "undecided": [40],
        "test failed": [60],
    }
    assert {name: steps for name, steps in marked.items() if name.startswith("look")} == {
        "look: a higher rate is better": [10],
        "look: a lower rate is better": [60],
    }
    # The fallback is another start.
    ax = make_report(FALLBACK_HISTORY).plot()
    assert [list(line.get_xdata()) for line in ax.lines if line.get_label() == "start"] == [[0, 10]]
    assert [line[0] for line in vertical_lines(ax)] == [0, 10]


def test_plot_shades_and_names_the_phases():
    ax, rate_axes = make_report().plot().figure.axes
    shaded = bands(ax)
    assert shaded == bands(rate_axes)
    assert [span[:2] for span in shaded] == [(0, 10), (10, 20), (20, 40), (40, 60), (60, 100)]
    colors = [span[2] for span in shaded]
    assert colors[1] == colors[2] == colors[3]
    assert len(set(colors)) == 3
    assert [(text.get_text(), text.xy[0]) for text in ax.texts] == [("warm-up", 5), ("TUNE", 35), ("cool-down", 80)]


def test_phases_follow_the_decisions():
    history = [
        entry(0, "start", phase="detect"),
        entry(15, "decay", phase="detect"),
        entry(20, "detected", phase="detect"),
        entry(50, "continue"),
        # Divergence may be noticed in the cool-down, where no window ends.
        entry(70, "decay"),
    ]
    expected = [
        ("warm-up", 0, 10),
        ("detect", 10, 15),
        ("detect", 15, 20),
        ("tune", 20, 50),
        ("tune", 50, 60),
        ("cool-down", 60, 100),
    ]
    assert phases(make_report(history)) == expected
    # A look takes no steps of the run, so it ends no phase.
    looked = [start("below_bound"), look(10, "raise"), entry(35, "look"), look(35, "keep"), entry(60, "continue")]
    tuned = [("tune", 10, 35), ("tune", 35, 60)]
    assert phases(make_report(looked)) == [("warm-up", 0, 10), *tuned, ("cool-down", 60, 100)]
    assert phases(make_report([], config=ExpTestConfig(learning_rate=0.1, warmup=0.0, cooldown=0.0))) == [
        ("tune", 0, 100)
    ]
    assert phases(make_report([], config=ExpTestConfig.paper(learning_rate=0.1))) == [("detect", 0, 100)]


def test_rate_axis_is_logarithmic_and_does_not_follow_the_cool_down_to_zero():
    rate_axes = make_report(rates=[*RATES[:-2], 1e-6, 0.0]).plot().figure.axes[1]
    assert rate_axes.get_yscale() == "log"
    # The lowest rate decided on is that below the bound.
    assert rate_axes.get_ylim()[0] == pytest.approx(0.03 / 30)
    assert 0.3 < rate_axes.get_ylim()[1] < 1
    # Without a cool-down the axis does not reach further than the rates.
    steady = make_report(HISTORY[1:], rates=[0.3] * 60 + [0.1] * 40).plot().figure.axes[1]
    assert 0.05 < steady.get_ylim()[0] < 0.1


def test_plot_without_decisions():
    report = make_report([], config=ExpTestConfig(learning_rate=0.3))
    loss_axes, rate_axes = report.plot().figure.axes
    assert vertical_lines(loss_axes) == vertical_lines(rate_axes) == []
    assert legend(loss_axes) == ["loss", "loss, smoothed"]


def test_plot_with_a_look_has_a_panel_for_it():
    axes = make_report(searches=[SEARCH]).plot().figure.axes
    assert [ax.get_ylabel() for ax in axes] == ["loss on held-out batches", "training loss", "learning rate"]
    assert list(axes[0].lines[0].get_xdata()) == [0.03, 0.1, 0.3]


def test_plot_with_two_looks_has_a_panel_for_each_in_their_order():
    loss_axes = make_report(TWO_LOOKS_HISTORY, [SEARCH, LATER_SEARCH]).plot()
    axes = loss_axes.figure.axes
    assert [ax.get_ylabel() for ax in axes] == [*["loss on held-out batches"] * 2, "training loss", "learning rate"]
    assert axes[2] is loss_axes
    assert [ax.get_title() for ax in axes[:2]] == ["Look at step 10 (p = 0.002)", "Look at step 60 (p = 0.01)"]
    assert list(axes[1].lines[0].get_xdata()) == [0.1, 0.3, 0.9]
    # The trial at 0.9 ends higher than the untouched model, so it is drawn there.
    assert list(axes[1].lines[0].get_ydata()) == [0.4375, 0.5, 0.5625]
    loss_axes.figure.draw_without_rendering()
    positions = [ax.get_position() for ax in axes]
    assert positions[0].x1 < positions[1].x0 < positions[1].x1 < positions[2].x0
    assert positions[2].y0 > positions[3].y1


def test_plot_draws_the_loss_into_given_axes():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert make_report(searches=[SEARCH]).plot(right) is right
    assert figure.axes == [left, right]
    assert not left.lines
    assert list(right.lines[0].get_ydata()) == LOSSES
    assert len(vertical_lines(right)) == 5
    assert len(right.patches) == 5
    assert (right.get_xlabel(), right.get_ylabel()) == ("step", "training loss")


def test_axis_of_a_run_stopped_in_its_warm_up_is_not_upside_down():
    axes = make_report(HISTORY[:1], rates=[1e-4 * step for step in STEPS]).plot().figure.axes[1]
    bottom, top = axes.get_ylim()
    assert 1e-4 / 2 < bottom < 0.01 / 10
    assert 0.01 < top < 0.02


def test_frozen_first_group_is_drawn_on_a_linear_axis(tmp_path):
    report = make_report(rates=[0.0] * 100)
    assert report.plot().figure.axes[1].get_yscale() == "linear"
    draw(report, tmp_path / "frozen.png")
    assert plt.imread(tmp_path / "frozen.png").shape[:2] == (750, 1050)


def test_run_that_logged_nothing_is_drawn_with_what_was_decided(tmp_path):
    report = Report(CONFIG, 100, HISTORY, [SEARCH], [], [], [])
    draw(report, tmp_path / "empty.png")
    assert plt.imread(tmp_path / "empty.png").shape[:2] == (750, 1650)
    look_axes, loss_axes, rate_axes = report.plot().figure.axes
    assert len(look_axes.lines) == 5
    assert loss_axes.texts[0].get_text() == "no loss was logged"
    assert list(loss_axes.get_yticks()) == []
    assert [line[0] for line in vertical_lines(loss_axes)] == [0, 10, 20, 40, 60]
    (rates,) = [patch for patch in rate_axes.patches if isinstance(patch, StepPatch)]
    assert list(rates.get_data().values) == [0.03, 0.3, 0.3, 0.3, 0.1]
    assert list(rates.get_data().edges) == [0, 10, 20, 40, 60, 100]
    assert (rate_axes.get_yscale(), rate_axes.get_ylabel()) == ("log", "learning rate decided on")


def test_run_without_a_look_that_logged_nothing_is_drawn(tmp_path):
    draw(Report(CONFIG, 100, [], [], [], [], []), tmp_path / "empty.png")
    assert plt.imread(tmp_path / "empty.png").shape[:2] == (750, 1050)


def test_losses_too_few_to_smooth_are_drawn_once_and_a_single_one_as_a_point():
    few = Report(CONFIG, 100, HISTORY, [], [50, 100], [2.0, 1.0], [0.3, 0.1])
    loss_axes, rate_axes = few.plot().figure.axes
    assert legend(loss_axes)[:2] == ["loss", "start"]
    assert list(loss_axes.lines[0].get_ydata()) == [2.0, 1.0]
    assert rate_axes.lines[0].get_marker() == ""
    single = Report(CONFIG, 100, HISTORY, [], [50], [2.0], [0.3])
    assert [ax.lines[0].get_marker() for ax in single.plot().figure.axes] == [".", "."]


def test_legend_hides_neither_losses_nor_rates():
    loss_axes, rate_axes = make_report(TWO_LOOKS_HISTORY).plot().figure.axes
    loss_axes.figure.draw_without_rendering()
    legend_box = loss_axes.get_legend().get_window_extent()
    assert rate_axes.get_window_extent().y1 < legend_box.y0 < legend_box.y1 < loss_axes.get_window_extent().y0


@pytest.mark.parametrize("num_steps", [2, 3, 8, 100])
def test_ticks_are_whole_steps(num_steps):
    config = ExpTestConfig(learning_rate=0.3)
    ax = Report(config, num_steps, [], [], [1, 2], [2.0, 1.0], [0.3, 0.3]).plot()
    assert len(ax.get_xticks()) >= 3
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_look_has_its_trials_and_the_rates_before_and_after():
    ax = plot_search(SEARCH)
    assert ax.get_title() == "Look at step 10 (p = 0.002)"
    assert ax.get_xscale() == "log"
    assert legend(ax) == [
        "trial of 24 steps",
        "diverged",
        "untouched model, or worse",
        "rate until then: 0.03",
        "for the 90 steps left: 0.3",
    ]
    ended, diverged, untouched, before, found = ax.lines
    assert (list(ended.get_xdata()), list(ended.get_ydata())) == ([0.03, 0.1, 0.3], [0.71875, 0.5625, 0.5])
    # Trials without an end are drawn at the loss of the untouched model, with a marker of their own.
    assert (list(diverged.get_xdata()), list(diverged.get_ydata())) == ([0.9], [0.75])
    assert ended.get_marker() != diverged.get_marker()
    assert list(untouched.get_ydata()) == [0.75, 0.75]
    assert list(before.get_xdata()) == [0.03, 0.03]
    assert list(found.get_xdata()) == [0.3, 0.3]
    assert before.get_linestyle() != found.get_linestyle()


def test_look_whose_trials_all_end_names_no_others():
    assert legend(plot_search(LATER_SEARCH)) == [
        "trial of 14 steps",
        "untouched model, or worse",
        "rate until then: 0.3",
        "for the 40 steps left: 0.1",
    ]


def test_look_of_which_no_trial_ends_is_drawn(tmp_path):
    search = dataclasses.replace(SEARCH, trials=SEARCH.trials[3:])
    ax = plot_search(search)
    assert [line.get_label() for line in ax.lines][1] == "diverged"
    assert list(ax.lines[0].get_xdata()) == []
    ax.figure.savefig(tmp_path / "search.png")
    assert plt.imread(tmp_path / "search.png").ndim == 3


def test_inconclusive_search_is_not_drawn_as_if_it_had_found_a_rate():
    ax, *_ = make_report(FALLBACK_HISTORY, [INCONCLUSIVE_SEARCH]).plot().figure.axes
    assert ax.get_title() == "Look at step 10:\nno trial lowers the loss significantly"
    assert legend(ax) == [
        "trial of 24 steps",
        "diverged",
        "untouched model, or worse",
        "rate until then: 0.03",
    ]
    # All ends are above the loss of the untouched model, and drawn there.
    assert list(ax.lines[0].get_ydata()) == [0.75] * 3
    assert [line[0] for line in vertical_lines(ax)] == [0.03]


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_search_on_a_model_without_a_finite_loss_is_drawn(tmp_path, loss):
    search = dataclasses.replace(SEARCH, untouched_losses=[loss] * 12)
    plot_search(search).figure.savefig(tmp_path / "search.png")
    assert plt.imread(tmp_path / "search.png").ndim == 3


def test_search_is_drawn_into_given_axes():
    ax = Figure().subplots()
    assert plot_search(SEARCH, ax) is ax
    assert len(ax.lines) == 5


def test_figures_are_not_registered_with_pyplot(tmp_path):
    plt.close("all")
    make_report(searches=[SEARCH]).plot()
    plot_search(SEARCH)
    draw(make_report(searches=[SEARCH]), tmp_path / "exptest.png")
    assert plt.imread(tmp_path / "exptest.png").shape[:2] == (750, 1650)
    draw(make_report(TWO_LOOKS_HISTORY, [SEARCH, LATER_SEARCH]), tmp_path / "two.png")
    assert plt.imread(tmp_path / "two.png").shape[:2] == (750, 2250)
    assert plt.get_fignums() == []


_WRITE = """
import sys
sys.path.insert(0, sys.argv[2])
from reports import SEARCH, make_report
from hf_exptest.report import write
write(make_report(searches=[SEARCH]), sys.argv[1], with_figure=True)
assert "matplotlib.pyplot" not in sys.modules
"""


# matplotlib itself refuses a name that it does not know.
@pytest.mark.parametrize(("backend", "is_refused"), [("module://not_there", False), ("TkAgg", False), ("nope", True)])
def test_broken_backend_costs_at_most_the_figure(tmp_path, backend, is_refused):
    script = tmp_path / "script.py"
    script.write_text(_WRITE)
    environment = {"MPLBACKEND": backend, "DISPLAY": ""}
    done = forks.python(script, tmp_path, Path(__file__).parent, environment=environment)
    assert Report.load(tmp_path) == make_report(searches=[SEARCH])
    assert ("exptest.png': ValueError: " in done.stderr) == is_refused
    assert (tmp_path / "exptest.png").is_file() != is_refused
