# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What happened in one run: values for the log, a text, a figure, a section for the model card, and a file with
everything that they need."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import ExpTestConfig
from .controller import DETECT, TUNE, schedule_bounds
from .search import LearningRateSearch
from .stage import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colours that colour-blind readers can tell apart (Okabe and Ito); and nothing is told by colour alone.
_BLACK, _ORANGE, _SKY, _GREEN, _BLUE, _VERMILLION = "black", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
# Colour, marker, line style and explanation of each kind of decision.
_DECISIONS = {
    "start": (_BLACK, ">", ":", "start"),
    "detected": (_BLUE, "^", "-.", "detected: loss decays exponentially"),
    "continue": (_GREEN, "o", ":", "continue: loss still falls"),
    "decay": (_VERMILLION, "v", "--", "decay: test failed, rate lowered"),
}
# Colour of each phase.
_PHASES = {"warm-up": _ORANGE, DETECT: _BLUE, TUNE: _SKY, "cool-down": "gray"}
# A band narrower than this share of the run has no room for its name.
_NARROW = 0.05
_VERDICTS = {
    ("exponential_decay", True): "loss decays exponentially",
    ("exponential_decay", False): "loss does not decay exponentially",
    ("slope", True): "loss still falls",
    ("slope", False): "loss no longer falls",
    ("divergence", False): "loss is not finite, so the weights may be lost",
}
REPORT_NAME = "exptest.json"
FIGURE_NAME = "exptest.png"
REPORT_VERSION = 3
# The smoothed loss averages this share of the points.
_SMOOTHING = 0.05
# A cool-down ends at zero, which a log axis lacks: the axis reaches this far below the lowest rate decided on.
_AXIS_REACH = 30
_ENTRY_KEYS = {"step", "phase", "test", "p_value", "learning_rate", "window", "left_out", "decision"}


@dataclass(frozen=True)
class Report:
    """
    One run, as `exptest.json` in its `output_dir` has it.

    Attributes:
        config ([`ExpTestConfig`]): the settings.
        num_training_steps (`int`): length of the run in optimizer steps.
        history (`list[dict]`): the decisions, see [`ExpTestController`].
        search ([`LearningRateSearch`] or `None`): how the starting rate was found.
        steps (`list[int]`), losses (`list[float]`), learning_rates (`list[float]`): of each logged step.

    Example:

        >>> from transformers import Trainer
        >>> from hf_exptest import ExpTestCallback, Report
        >>> callback = ExpTestCallback(learning_rate=0.03)
        >>> trainer = Trainer(model=model, args=args, train_dataset=train_dataset, callbacks=[callback])
        >>> result = trainer.train()
        >>> report = Report.load(args.output_dir)
        >>> report.starting_rate, len(report.losses)
        (0.03, 150)
        >>> report.plot().figure.savefig("exptest.pdf")
    """

    config: ExpTestConfig
    num_training_steps: int
    history: list[dict[str, Any]]
    search: LearningRateSearch | None
    steps: list[int]
    losses: list[float]
    learning_rates: list[float]

    @property
    def starting_rate(self) -> float:
        """The rate that a later run can start from."""
        if self.search is not None:
            return self.search.learning_rate
        given = self.config.learning_rate
        return float(self.history[0]["learning_rate"] if given is None else given)

    def plot(self, ax: Axes | None = None) -> Axes:
        """
        Draw the run; needs matplotlib.

        The loss, raw and smoothed, above the learning rate on a log axis; phases are shaded, window by window, and
        decisions marked. The search, if there was one, has a panel to the left.

        Args:
            ax (`matplotlib.axes.Axes`, *optional*):
                Draw the panel of the loss alone there, with phases and decisions.

        Returns:
            `matplotlib.axes.Axes`: of the loss; its `.figure` has the other panels.
        """
        return _plot_run(self)[1] if ax is None else _plot_loss(self, ax)

    def summary(self) -> str:
        """The text of [`summary`]."""
        return summary(self.history, self.search)

    def save(self, folder: str | Path) -> None:
        """Write `exptest.json`."""
        values = {"version": REPORT_VERSION, **_plain(dataclasses.asdict(self))}
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=1, allow_nan=False) + "\n"
        Path(folder, REPORT_NAME).write_text(text, encoding="utf-8")

    def save_figure(self, folder: str | Path) -> None:
        """Write `exptest.png`, if matplotlib is installed and anything was logged."""
        if self.steps and importlib.util.find_spec("matplotlib") is not None:
            draw(self, Path(folder, FIGURE_NAME))

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """
        Read `exptest.json` from `folder`.

        Raises:
            `ValueError`: naming the file, if there is none, or not one that this release wrote.
        """
        path = Path(folder, REPORT_NAME)
        if not path.is_file():
            raise ValueError(
                f"{str(folder)!r} has no {REPORT_NAME}; it is written at the end of a training with ExpTest."
            )
        try:
            return _report(json.loads(path.read_text(encoding="utf-8")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} cannot be read: {error}") from error


def _report(values: dict[str, Any]) -> Report:
    """A report from the values in its file, which may be anybody's."""
    version = values.pop("version", None)
    if version != REPORT_VERSION:
        raise ValueError(f"it has version {version!r}; this release reads version {REPORT_VERSION}.")
    if values["search"] is not None:
        trials = [
            Trial(**{**trial, "curve": _floats(trial["curve"]), "end_losses": _floats(trial["end_losses"])})
            for trial in values["search"]["trials"]
        ]
        values["search"] = LearningRateSearch(**{**values["search"], "trials": trials})
    values["losses"] = _floats(values["losses"])
    report = Report(**{**values, "config": ExpTestConfig.from_dict(values["config"])})
    lengths = [len(report.steps), len(report.losses), len(report.learning_rates)]
    if len(set(lengths)) > 1:
        raise ValueError(f"it has {lengths} steps, losses and learning rates; they belong together.")
    for entry in report.history:
        if not _ENTRY_KEYS <= entry.keys():
            raise ValueError(f"its history lacks {sorted(_ENTRY_KEYS - entry.keys())} in {entry}.")
    return report


def _plain(value: Any) -> Any:
    """The same, with `None` for every number that JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _floats(values: Sequence[float | None]) -> list[float]:
    """The inverse: a loss that is no number was infinite, as far as any reader of it cares."""
    return [math.inf if value is None else value for value in values]


def describe(entry: dict[str, Any], previous: dict[str, Any] | None = None) -> str:
    """One line for one entry of `history`, given the entry before it."""
    rate = f"{entry['learning_rate']:.2g}"
    if entry["decision"] == "start":
        return f"starts with learning rate {rate} ({entry['test'].replace('_', ' ')})"
    verdict = _VERDICTS[entry["test"], entry["decision"] != "decay"]
    if entry["decision"] != "decay":
        change = f"stays {rate}"
    elif previous is None:
        change = f"falls to {rate}"
    else:
        change = f"{previous['learning_rate']:.2g} -> {rate}"
    left_out = f", {entry['left_out']} left out" if entry["left_out"] else ""
    test = f" (p = {entry['p_value']:.2g} over {entry['window']} steps{left_out})"
    if entry["test"] == "divergence":
        test = ""
    return f"step {entry['step']}: {verdict}{test}: learning rate {change}"


def descriptions(history: Sequence[dict[str, Any]]) -> list[str]:
    """One line an entry of `history`."""
    return [describe(*pair) for pair in zip(history, [None, *history], strict=False)]


def log_values(history: Sequence[dict[str, Any]], phase: int) -> dict[str, float]:
    """Numbers for the Trainer's log; text would be refused by TensorBoard."""
    values: dict[str, float] = {
        "exptest_phase": phase,
        "exptest_decays": sum(entry["decision"] == "decay" for entry in history),
    }
    tests = [entry for entry in history if entry["decision"] != "start"]
    if tests:
        values |= {"exptest_p_value": tests[-1]["p_value"], "exptest_window": tests[-1]["window"]}
    return values


def phases(report: Report) -> list[tuple[str, float, float]]:
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


def draw(report: Report, path: str | Path) -> None:
    """Write the figure to a file, in the format that its name ends with; needs matplotlib."""
    from matplotlib import pyplot as plt

    figure, _ = _plot_run(report)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_run(report: Report) -> tuple[Figure, Axes]:
    """The figure, and in it the axes of the loss."""
    from matplotlib import pyplot as plt

    if report.search is None:
        figure, axes = plt.subplot_mosaic([["loss"], ["rate"]], figsize=(7, 5), layout="constrained")
    else:
        figure, axes = plt.subplot_mosaic(
            [["search", "loss"], ["search", "rate"]], figsize=(11, 5), width_ratios=[2, 3], layout="constrained"
        )
        axes["search"].set_prop_cycle(color=[_BLUE, _VERMILLION], linestyle=["-", "--"])
        report.search.plot(axes["search"])
        axes["search"].set_title("Before training: short rehearsals at each rate")
        _label_rates(axes["search"].xaxis)
    loss_axes, rate_axes = axes["loss"], axes["rate"]
    _plot_loss(report, loss_axes).set_xlabel("")
    loss_axes.set_title("Training", pad=22)
    loss_axes.tick_params(labelbottom=False)
    _plot_rate(report, rate_axes)
    rate_axes.sharex(loss_axes)
    return figure, loss_axes


def _plot_loss(report: Report, ax: Axes) -> Axes:
    ax.plot(report.steps, report.losses, color="gray", linewidth=0.8, label="loss")
    ax.plot(report.steps, smoothed(report.losses), color=_BLACK, linewidth=2.2, label="loss, smoothed")
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
    ax.legend(fontsize="small")
    return ax


def _plot_rate(report: Report, ax: Axes) -> None:
    # In steps, so that a decay between two logged steps shows as a fall, not as a slope.
    ax.plot(report.steps, report.learning_rates, color=_BLACK, linewidth=2.2, drawstyle="steps-pre")
    _mark_schedule(report, ax)
    ax.set(yscale="log", xlabel="step", ylabel="learning rate")
    _label_rates(ax.yaxis)
    lowest = min(entry["learning_rate"] for entry in report.history) if report.history else report.starting_rate
    ax.set_ylim(bottom=max(ax.get_ylim()[0], lowest / _AXIS_REACH))


def _label_rates(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade, in figures that can be typed in again."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _mark_schedule(report: Report, ax: Axes) -> None:
    """Shade the phases, and draw a line at each decision."""
    for name, start, end in phases(report):
        ax.axvspan(start, end, facecolor=(_PHASES[name], 0.2), edgecolor="gray", linewidth=0.6, zorder=0)
    for entry in report.history:
        color, _, style, _ = _DECISIONS[entry["decision"]]
        ax.axvline(entry["step"], color=color, linewidth=1.2, linestyle=style, zorder=1)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Centred moving average over a twentieth of the points; at the ends, over the points that are there."""
    reach = round(_SMOOTHING * len(losses) / 2)
    return [float(np.mean(losses[max(0, i - reach) : i + reach + 1])) for i in range(len(losses))]


def summary(history: Sequence[dict[str, Any]], search: LearningRateSearch | None = None) -> str:
    """
    Say in plain text why the learning rate is what it is.

    Args:
        history (`Sequence[dict]`): the decisions, from `ExpTestCallback.history` or `ExpTestScheduler.history`.
        search ([`LearningRateSearch`], *optional*): from `ExpTestCallback.search`.

    Returns:
        `str`: the search (its bound, each rehearsal, the rate found, its cost), then one line a decision.
    """
    return "\n".join([*_search_lines(search), *_decision_lines(history)])


def _search_lines(search: LearningRateSearch | None) -> list[str]:
    if search is None:
        return ["The learning rate was not searched for."]
    lengths = " and ".join(str(length) for length in sorted({trial.num_steps for trial in search.trials}))
    lines = [
        f"ExpTest found the learning rate {search.learning_rate:.3g} before the first step.",
        f"It rehearsed short runs from the same weights, beginning at the upper bound {search.upper_bound:.3g}:",
        "    learning rate   steps   loss on held-out batches",
    ]
    return [
        *lines,
        *(f"    {rate:<13}   {steps:>5}   {end}" for rate, steps, end in _search_rows(search)),
        f"The best rates of {lengths} steps, carried on to the length of the run, give {search.learning_rate:.3g}.",
        f"The search took {search.num_steps} steps in {search.seconds:.0f} s; then the model was put back as it was.",
    ]


def _search_rows(search: LearningRateSearch) -> list[tuple[str, str, str]]:
    """Rate, length and outcome of each rehearsal, the short ones first, and of none."""
    trials = sorted(search.trials, key=lambda trial: (trial.num_steps, -trial.learning_rate))
    ends = [f"{trial.end_loss:.4f}" if np.isfinite(trial.end_loss) else "diverged" for trial in trials]
    rows = [(f"{trial.learning_rate:.2e}", str(trial.num_steps), end) for trial, end in zip(trials, ends, strict=True)]
    return [*rows, ("untouched", "0", f"{np.mean(search.untouched_losses):.4f}")]


def _decision_lines(history: Sequence[dict[str, Any]]) -> list[str]:
    if not history:
        return ["No test was made while training."]
    return ["Decisions:", *(f"    {line}" for line in descriptions(history))]


def add_to_model_card(card: str, report: Report, has_figure: bool) -> str:
    """
    The text of a model card, with ExpTest's section and with its learning rate among the hyper-parameters.

    Args:
        card (`str`): as `Trainer.create_model_card` wrote it; TRL's has no hyper-parameters.
        report ([`Report`]): what the section tells.
        has_figure (`bool`): whether `exptest.png` lies beside the card.
    """
    schedule = f"ExpTest, warm-up {report.config.warmup:.0%}, cool-down {report.config.cooldown:.0%} of the steps"
    card = re.sub(r"^- learning_rate: .*$", f"- learning_rate: {report.starting_rate}", card, flags=re.MULTILINE)
    card = re.sub(r"^- lr_scheduler_type: .*$", f"- lr_scheduler_type: {schedule}", card, flags=re.MULTILINE)
    card = re.sub(r"^- lr_scheduler_warmup_steps: .*\n", "", card, flags=re.MULTILINE)
    text, heading, rest = card.partition("### Framework versions\n")
    return f"{text.rstrip()}\n\n{_card_section(report, has_figure)}\n\n{heading}{rest}"


def _card_section(report: Report, has_figure: bool) -> str:
    link = "[ExpTest](https://arxiv.org/abs/2411.16975)"
    search = report.search
    if search is None:
        parts = [f"{link} set the learning rate, beginning at {report.starting_rate:.2g}."]
    else:
        table = [("learning rate", "steps", "loss on held-out batches"), ("---:",) * 3, *_search_rows(search)]
        parts = [
            f"{link} found the learning rate {search.learning_rate:.2g} by short rehearsals from the same weights, in"
            f" {search.num_steps} steps, beginning at the upper bound {search.upper_bound:.2g}:",
            "\n".join(f"| {' | '.join(row)} |" for row in table),
        ]
    if report.history:
        parts.append("\n".join(f"- {line}" for line in descriptions(report.history)))
    if has_figure:
        parts.append(f"![Rehearsals, loss, learning rate and decisions]({FIGURE_NAME})")
    return "\n\n".join(["### Learning rate", *parts])
