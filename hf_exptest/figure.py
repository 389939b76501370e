# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Everything that is drawn; needs matplotlib, but none of the global state of its pyplot, nor a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .config import ExpTestConfig
from .controller import DETECT, TUNE, schedule_bounds

# Colours that colour-blind readers can tell apart (Okabe and Ito); and nothing is told by colour alone.
_BLACK, _ORANGE, _SKY, _GREEN, _BLUE, _VERMILLION = "black", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
# Colour, marker, line style and explanation of each kind of decision.
_DECISIONS = {
    "start": (_BLACK, ">", ":", "start"),
    "raise": (_ORANGE, "^", "--", "look: a higher rate is better"),
    "lower": (_ORANGE, "v", "--", "look: a lower rate is better"),
    "keep": (_ORANGE, "D", ":", "look: no other rate is better"),
    "detected": (_BLUE, "*", "-.", "detected: loss decays exponentially"),
    "continue": (_GREEN, "o", ":", "continue: loss still falls"),
    "undecided": ("gray", "s", ":", "undecided: too few or too noisy losses"),
    "look": (_VERMILLION, "P", ":", "test failed: time for a look"),
    "decay": (_VERMILLION, "X", "--", "decay: test failed, rate lowered"),
}
# Colour of each phase.
_PHASES = {"warm-up": _ORANGE, DETECT: _BLUE, TUNE: _SKY, "cool-down": "gray"}
# A band narrower than this share of the run has no room for its name.
_NARROW = 0.05
# A cool-down ends at zero, which a log axis lacks: the axis reaches this far below the lowest rate decided on.
_AXIS_REACH = 30


class _Trial(Protocol):
    """What is drawn of a `Trial`."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def outcome(self) -> str: ...
    @property
    def end_loss(self) -> float: ...


class _Search(Protocol):
    """What is drawn of a `LearningRateSearch`."""

    @property
    def step(self) -> int: ...
    @property
    def previous_rate(self) -> float: ...
    @property
    def p_value(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def untouched_losses(self) -> Sequence[float]: ...
    @property
    def trials(self) -> Sequence[_Trial]: ...
    @property
    def num_training_steps(self) -> int: ...
    @property
    def is_conclusive(self) -> bool: ...


class _Report(Protocol):
    """What is drawn of a `Report`."""

    @property
    def config(self) -> ExpTestConfig: ...
    @property
    def num_training_steps(self) -> int: ...
    @property
    def history(self) -> Sequence[dict[str, Any]]: ...
    @property
    def searches(self) -> Sequence[_Search]: ...
    @property
    def steps(self) -> Sequence[int]: ...
    @property
    def losses(self) -> Sequence[float]: ...
    @property
    def is_look_alone(self) -> bool: ...
    @property
    def smoothed_losses(self) -> Sequence[float]: ...
    @property
    def learning_rates(self) -> Sequence[float]: ...


def draw(report: _Report, path: str | Path) -> None:
    """Write the figure of a run to a file, in the format that its name ends with."""
    figure = plot_run(report).figure
    assert isinstance(figure, Figure)
    figure.savefig(path, dpi=150)


def plot_run(report: _Report) -> Axes:
    """
    Draw the loss above the learning rate and, to the left, each look at other rates. Where a look is all there is, it
    has the figure for itself.

    Returns:
        `matplotlib.axes.Axes`: of the loss; its `.figure` has the other panels.
    """
    if report.is_look_alone:
        return plot_search(report.searches[0])
    looks = [f"look {number}" for number in range(len(report.searches))]
    axes = Figure(figsize=(7 + 4 * len(looks), 5), layout="constrained").subplot_mosaic(
        [[*looks, "loss"], [*looks, "rate"]], width_ratios=[2] * len(looks) + [3]
    )
    for name, search in zip(looks, report.searches, strict=True):
        plot_search(search, axes[name])
    loss_axes, rate_axes = axes["loss"], axes["rate"]
    plot_loss(report, loss_axes).set_xlabel("")
    # Between the panels, where it hides no curve.
    loss_axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0))
    loss_axes.set_title("Training", pad=22)
    loss_axes.tick_params(labelbottom=False)
    _plot_rate(report, rate_axes)
    rate_axes.sharex(loss_axes)
    return loss_axes


def plot_search(search: _Search, ax: Axes | None = None) -> Axes:
    """Draw the loss at the end of each trial against its rate; returns the axes."""
    ax = Figure(layout="constrained").add_subplot() if ax is None else ax
    untouched = float(np.mean(search.untouched_losses))
    trials = sorted(search.trials, key=lambda trial: trial.learning_rate)
    ended = [trial for trial in trials if trial.outcome == "ended"]
    ax.plot(
        [trial.learning_rate for trial in ended],
        [min(trial.end_loss, untouched) for trial in ended],
        color=_BLUE,
        marker="o",
        label=f"trial of {trials[0].num_steps} steps",
    )
    diverged = [trial.learning_rate for trial in trials if trial.outcome == "diverged"]
    if diverged:
        ax.plot(diverged, [untouched] * len(diverged), color=_VERMILLION, marker="x", linestyle="", label="diverged")
    ax.axhline(untouched, color="gray", linestyle=":", label="untouched model, or worse")
    ax.axvline(search.previous_rate, color="gray", label=f"rate until then: {search.previous_rate:.2g}")
    if search.is_conclusive:
        left = search.num_training_steps - search.step
        found = f"for the {left} steps left: {search.learning_rate:.2g}"
        ax.axvline(search.learning_rate, color=_BLACK, linestyle="--", label=found)
        ax.set_title(f"Look at step {search.step} (p = {search.p_value:.2g})")
    else:
        ax.set_title(f"Look at step {search.step}:\nno trial lowers the loss significantly")
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss on held-out batches")
    _label_rates(ax.xaxis)
    # No loss is drawn above that of the untouched model, so the legend hides none there.
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, top + 0.5 * (top - bottom))
    ax.legend(fontsize="small", loc="upper center")
    return ax


def plot_loss(report: _Report, ax: Axes) -> Axes:
    """Draw the loss, raw and smoothed, with phases and decisions; returns the axes."""
    smoothed = list(report.smoothed_losses)
    if not smoothed:
        ax.text(0.5, 0.5, "no loss was logged", transform=ax.transAxes, ha="center", va="center")
        ax.set_yticks([])
    elif smoothed == list(report.losses):
        # Too few to smooth. With markers, since a single one makes no line.
        ax.plot(report.steps, smoothed, color=_BLACK, linewidth=2.2, marker=".", label="loss")
    else:
        ax.plot(report.steps, report.losses, color="gray", linewidth=0.8, label="loss")
        ax.plot(report.steps, smoothed, color=_BLACK, linewidth=2.2, label="loss, smoothed")
    _mark_schedule(report, ax)
    for kind, (color, marker, _, label) in _DECISIONS.items():
        steps = [entry["step"] for entry in report.history if entry["decision"] == kind]
        if steps:
            # On the upper edge, where they hide no curve.
            ax.plot(
                steps,
                [1] * len(steps),
                color=color,
                marker=marker,
                markersize=9,
                linestyle="",
                transform=ax.get_xaxis_transform(),
                clip_on=False,
                zorder=3,
                label=label,
            )
    named = phases(report)
    for name in _PHASES:
        edges = [edge for phase, *span in named if phase == name for edge in span]
        if edges and edges[-1] - edges[0] > _NARROW * report.num_training_steps:
            ax.annotate(
                name if name in ("warm-up", "cool-down") else name.upper(),
                ((edges[0] + edges[-1]) / 2, 1),
                (0, 7),
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
                ha="center",
                fontsize="small",
            )
    ax.set(xlabel="step", ylabel="training loss", xlim=(0, report.num_training_steps))
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    ax.legend(fontsize="small")
    return ax


def phases(report: _Report) -> list[tuple[str, float, float]]:
    """Name, first step and last step of each phase; between warm-up and cool-down, of each window."""
    start, end = schedule_bounds(report.config, report.num_training_steps)
    spans: list[tuple[str, float, float]] = [("warm-up", 0, start)]
    phase = DETECT if report.config.window is None else TUNE
    for entry in report.history:
        if entry["decision"] == "start":
            phase = entry["phase"]
        elif start < entry["step"] <= end:
            spans.append((entry["phase"], spans[-1][2], entry["step"]))
            phase = TUNE if entry["decision"] == "detected" else entry["phase"]
    spans += [(phase, spans[-1][2], end), ("cool-down", end, report.num_training_steps)]
    return [span for span in spans if span[1] < span[2]]


def _plot_rate(report: _Report, ax: Axes) -> None:
    # What was decided is known without a log, too, but for warm-up and cool-down.
    rates = list(report.learning_rates) or [entry["learning_rate"] for entry in report.history]
    if report.steps:
        # In steps, so that a decay between two logged steps shows as a fall, not as a slope.
        marker = "." if len(rates) == 1 else ""
        ax.plot(report.steps, rates, color=_BLACK, linewidth=2.2, drawstyle="steps-pre", marker=marker)
    elif rates:
        edges = [*(entry["step"] for entry in report.history), report.num_training_steps]
        ax.stairs(rates, edges, baseline=None, color=_BLACK, linewidth=2.2)
    _mark_schedule(report, ax)
    ax.set(xlabel="step", ylabel="learning rate" if report.steps else "learning rate decided on")
    highest = max(rates, default=0.0)
    # A first parameter group that is frozen has no rate above zero.
    if highest > 0:
        ax.set_yscale("log")
        _label_rates(ax.yaxis)
        # A run that was stopped in its warm-up stays below the rate decided on.
        lowest = min([highest, *(entry["learning_rate"] for entry in report.history)])
        ax.set_ylim(bottom=max(ax.get_ylim()[0], lowest / _AXIS_REACH))


def _label_rates(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade, in figures that can be typed in again."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _mark_schedule(report: _Report, ax: Axes) -> None:
    """Shade the phases, and draw a line at each decision."""
    for name, start, end in phases(report):
        ax.axvspan(start, end, facecolor=(_PHASES[name], 0.2), edgecolor="gray", linewidth=0.6, zorder=0)
    for entry in report.history:
        color, _, style, _ = _DECISIONS[entry["decision"]]
        ax.axvline(entry["step"], color=color, linewidth=1.2, linestyle=style, zorder=1)
