# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from toys import make_trainer
from transformers import TrainerCallback

from hf_exptest import ExpTestCallback, ExpTestConfig, Report
from hf_exptest.cli import main
from hf_exptest.report import describe, phases, smoothed, summary
from hf_exptest.search import LearningRateSearch
from hf_exptest.stage import Trial

STEPS = list(range(1, 101))
LOSSES = [1 / step for step in STEPS]
RATES = [0.3] * 60 + [0.1 * (100 - step) / 40 for step in range(60, 100)]
# Warm-up to step 10, cool-down from step 60.
CONFIG = ExpTestConfig(warmup=0.1, cooldown=0.4)


def entry(step, decision, learning_rate=0.3, phase="tune", test="slope", p_value=0.01, window=20):
    return {
        "step": step,
        "phase": phase,
        "test": test,
        "p_value": p_value,
        "learning_rate": learning_rate,
        "window": window,
        "left_out": 0,
        "decision": decision,
    }


HISTORY = [
    entry(0, "start", test="search", p_value=None, window=0),
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
        trials=[
            Trial(0.3, 24, [0.0], [0.1], [0.45, 0.55], 0.01),
            Trial(0.9, 24, [0.0], [0.1], [float("inf")] * 2, 1.0),
            Trial(0.1, 48, [0.0], [0.1], [0.5, 0.625], 0.02),
        ],
        num_training_steps=300,
        num_steps=75,
        seconds=12.4,
    )


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def make_report(history=HISTORY, search=None, config=CONFIG, losses=LOSSES, rates=RATES):
    return Report(config, 100, history, search, STEPS, losses, rates)


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
    assert list(smooth.get_ydata()) == smoothed(LOSSES)
    assert raw.get_linewidth() < smooth.get_linewidth()
    rate = panels[1].lines[0]
    assert list(rate.get_ydata()) == RATES
    assert rate.get_drawstyle() == "steps-pre"
    expected = [(0, "black", ":"), (20, "#009E73", ":"), (40, "#009E73", ":"), (60, "#D55E00", "--")]
    assert vertical_lines(loss_axes) == vertical_lines(panels[1]) == expected
    assert loss_axes.get_xlim() == panels[1].get_xlim() == (0, 100)


def test_plot_marks_each_kind_of_decision_in_its_own_way():
    kinds = ["start", "detected", "continue", "decay"]
    ax = make_report([entry(10 * i, kind) for i, kind in enumerate(kinds)]).plot()
    assert [text.split(":")[0] for text in legend(ax)] == ["loss", "loss, smoothed", *kinds]
    marked = [line for line in ax.lines if line.get_marker() != "None"]
    assert [list(line.get_xdata()) for line in marked] == [[0], [10], [20], [30]]
    # Shapes and colours that stay apart without each other.
    assert len({line.get_marker() for line in marked}) == len({line.get_color() for line in marked}) == 4


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
    assert phases(make_report([], config=ExpTestConfig(learning_rate=0.1, warmup=0.0, cooldown=0.0))) == [
        ("tune", 0, 100)
    ]
    assert phases(make_report([], config=ExpTestConfig.paper(learning_rate=0.1))) == [("detect", 0, 100)]


def test_rate_axis_is_logarithmic_and_does_not_follow_the_cool_down_to_zero():
    rate_axes = make_report(rates=[*RATES[:-2], 1e-6, 0.0]).plot().figure.axes[1]
    assert rate_axes.get_yscale() == "log"
    # The lowest rate decided on is 0.1.
    assert rate_axes.get_ylim()[0] == pytest.approx(0.1 / 30)
    assert 0.3 < rate_axes.get_ylim()[1] < 1
    # Without a cool-down the axis does not reach further than the rates.
    steady = make_report(rates=[0.3] * 60 + [0.1] * 40).plot().figure.axes[1]
    assert 0.05 < steady.get_ylim()[0] < 0.1


def test_plot_without_decisions():
    report = make_report([], config=ExpTestConfig(learning_rate=0.3))
    loss_axes, rate_axes = report.plot().figure.axes
    assert vertical_lines(loss_axes) == vertical_lines(rate_axes) == []
    assert legend(loss_axes) == ["loss", "loss, smoothed"]


def test_plot_with_search_has_its_own_panel(search):
    axes = make_report(search=search).plot().figure.axes
    assert [ax.get_ylabel() for ax in axes] == ["loss on held-out batches", "training loss", "learning rate"]
    short, long = axes[0].lines[:2]
    assert list(short.get_xdata()) == [0.3, 0.9]
    assert short.get_linestyle() != long.get_linestyle()


def test_plot_draws_the_loss_into_given_axes(search):
    figure, (left, right) = plt.subplots(1, 2)
    assert make_report(search=search).plot(right) is right
    assert figure.axes == [left, right]
    assert not left.lines
    assert list(right.lines[0].get_ydata()) == LOSSES
    assert len(vertical_lines(right)) == 4
    assert len(right.patches) == 5
    assert (right.get_xlabel(), right.get_ylabel()) == ("step", "training loss")


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
    assert lines[10] == "    starts with learning rate 0.3 (search)"
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


def test_divergence_in_words():
    last = entry(7, "decay", learning_rate=0.1, test="divergence", p_value=1.0, window=0)
    assert describe(last, HISTORY[0]) == (
        "step 7: loss is not finite, so the weights may be lost: learning rate 0.3 -> 0.1"
    )


def test_starting_rate(search):
    given = ExpTestConfig(learning_rate=0.7)
    assert make_report(search=search).starting_rate == 0.3
    assert make_report([entry(0, "start", learning_rate=0.2), *HISTORY[1:]]).starting_rate == 0.2
    # A given rate is not in the history, whose first entry may already have lowered it.
    assert make_report([entry(60, "decay", learning_rate=0.1)], config=given).starting_rate == 0.7


def test_report_survives_its_file(tmp_path, search):
    report = make_report(search=search, losses=[*LOSSES[:-1], float("inf")])
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == report
    assert loaded.summary() == summary(HISTORY, search)
    assert loaded.search.is_conclusive == search.is_conclusive
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
        (("history", 1), {"p_value": None, "window": None}, r"history lacks \['p_value', 'window'\]"),
    ],
)
def test_reports_with_other_keys_or_values_are_refused(tmp_path, search, path, changes, message):
    make_report(search=search).save(tmp_path)
    file = tmp_path / "exptest.json"
    values = json.loads(file.read_text())
    change(values, *path, **changes)
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"exptest\.json' cannot be read: .*" + message):
        Report.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_reports_are_refused(tmp_path, search, share):
    make_report(search=search).save(tmp_path)
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
    capsys.readouterr()
    main(["compare", str(tmp_path), str(tmp_path)])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "run"
    assert first == second
    assert first.split()[1:4] == ["200", str(callback.search.num_steps), f"{report.starting_rate:.2g}"]
    with pytest.raises(SystemExit, match=r"hf-exptest: '.*missing' has no exptest\.json"):
        main(["show", str(tmp_path / "missing")])
