# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What happened in one run: values for the log, a text, a figure, and a file with everything that they need."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .rehearsal import LearningRateSearch
from .stage import Rung

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour, line width and explanation of each kind of decision.
_DECISIONS = {
    "start": ("black", 1.2, "start"),
    "detected": ("tab:blue", 1.2, "detected: loss decays exponentially"),
    "continue": ("tab:green", 0.9, "continue: loss still falls"),
    "decay": ("tab:red", 1.2, "decay: test failed, rate lowered"),
}
_VERDICTS = {
    ("exponential_decay", True): "loss decays exponentially",
    ("exponential_decay", False): "loss does not decay exponentially",
    ("slope", True): "loss still falls",
    ("slope", False): "loss no longer falls",
}
REPORT_NAME = "exptest.json"
FIGURE_NAME = "exptest.png"
REPORT_VERSION = 1
# The smoothed loss averages this share of the points.
_SMOOTHING = 0.05


@dataclass(frozen=True)
class Report:
    """
    One run, as `exptest.json` in its `output_dir` has it.

    Attributes:
        config (`dict`): the settings, see [`ExpTestConfig`].
        num_training_steps (`int`): length of the run in optimizer steps.
        history (`list[dict]`): the decisions, see [`ExpTestController`].
        search ([`LearningRateSearch`] or `None`): how the starting rate was found.
        steps (`list[int]`), losses (`list[float]`), learning_rates (`list[float]`): of each logged step.
    """

    config: dict[str, Any]
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
        rate = self.history[0]["learning_rate"] if self.history else self.config["learning_rate"]
        return float(rate)

    def plot(self) -> Figure:
        """The figure of [`plot_training`]."""
        return plot_training(self.steps, self.losses, self.learning_rates, self.history, self.search)

    def summary(self) -> str:
        """The text of [`summary`]."""
        return summary(self.history, self.search)

    def save(self, folder: str | Path) -> None:
        """Write `exptest.json`."""
        values = {"version": REPORT_VERSION, **_plain(dataclasses.asdict(self))}
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, REPORT_NAME).write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")

    def save_figure(self, folder: str | Path) -> None:
        """Write `exptest.png`, if matplotlib is installed and anything was logged."""
        if not self.steps or importlib.util.find_spec("matplotlib") is None:
            return
        from matplotlib import pyplot as plt

        figure = self.plot()
        figure.savefig(Path(folder, FIGURE_NAME), dpi=150)
        plt.close(figure)

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """
        Read `exptest.json` from `folder`.

        Raises:
            `ValueError`: if there is none, or of another version.
        """
        path = Path(folder, REPORT_NAME)
        if not path.is_file():
            raise ValueError(
                f"{str(folder)!r} has no {REPORT_NAME}; it is written at the end of a training with ExpTest."
            )
        values = json.loads(path.read_text())
        version = values.pop("version", None)
        if version != REPORT_VERSION:
            raise ValueError(f"{str(path)!r} has version {version!r}; this release reads version {REPORT_VERSION}.")
        if values["search"] is not None:
            rungs = [
                Rung(**{**rung, "curve": _floats(rung["curve"]), "end_losses": _floats(rung["end_losses"])})
                for rung in values["search"]["rungs"]
            ]
            values["search"] = LearningRateSearch(**{**values["search"], "rungs": rungs})
        return cls(**{**values, "losses": _floats(values["losses"])})


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
    test = f"p = {entry['p_value']:.2g} over {entry['window']} steps"
    return f"step {entry['step']}: {verdict} ({test}): learning rate {change}"


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


def plot_training(
    steps: Sequence[int],
    losses: Sequence[float],
    learning_rates: Sequence[float],
    history: Sequence[dict[str, Any]],
    search: LearningRateSearch | None = None,
) -> Figure:
    """
    Draw one run: the loss, below it the learning rate, and the decisions as vertical lines through both.

    The rate is drawn on a log axis where the decisions span more than a factor of ten. Needs matplotlib.

    Args:
        steps (`Sequence[int]`): optimizer steps made when each loss was logged.
        losses (`Sequence[float]`): training loss at each of `steps`.
        learning_rates (`Sequence[float]`): learning rate at each of `steps`.
        history (`Sequence[dict]`): the decisions, from `ExpTestCallback.history` or `ExpTestScheduler.history`.
        search ([`LearningRateSearch`], *optional*): drawn in a panel of its own, to the left.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        `ValueError`: if `steps`, `losses` and `learning_rates` differ in length.
    """
    if not len(steps) == len(losses) == len(learning_rates):
        raise ValueError(
            f"steps, losses and learning_rates have {len(steps)}, {len(losses)} and {len(learning_rates)} values; they"
            " need one a logged step each."
        )
    from matplotlib import pyplot as plt

    if search is None:
        figure, axes = plt.subplot_mosaic([["loss"], ["rate"]], figsize=(7, 5), layout="constrained")
    else:
        figure, axes = plt.subplot_mosaic(
            [["search", "loss"], ["search", "rate"]], figsize=(12, 5), width_ratios=[2, 3], layout="constrained"
        )
        search.plot(axes["search"])
        axes["search"].set_title("Before training: short rehearsals at each rate")

    loss_axes, rate_axes = axes["loss"], axes["rate"]
    loss_axes.plot(steps, losses, color="tab:gray", linewidth=0.7, alpha=0.7, label="loss")
    loss_axes.plot(steps, smoothed(losses), color="tab:orange", linewidth=1.8, label="loss, smoothed")
    # In steps, so that a decay between two logged steps shows as a fall, not as a slope.
    rate_axes.plot(steps, learning_rates, color="tab:purple", linewidth=1.8, drawstyle="steps-pre")
    labels = {}
    for entry in history:
        color, width, label = _DECISIONS[entry["decision"]]
        for ax in (loss_axes, rate_axes):
            line = ax.axvline(entry["step"], color=color, linewidth=width, linestyle="--", zorder=1)
        labels[label] = line

    rates = [entry["learning_rate"] for entry in history]
    if rates and max(rates) > 10 * min(rates):
        rate_axes.set_yscale("log")
    else:
        rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        rate_axes.set_ylim(bottom=0)
    loss_axes.set(title="Training", ylabel="training loss")
    loss_axes.tick_params(labelbottom=False)
    # A falling loss leaves this corner free.
    loss_axes.legend(fontsize="small", loc="lower left")
    rate_axes.sharex(loss_axes)
    rate_axes.set(xlabel="step", ylabel="learning rate")
    if labels:
        rate_axes.legend(list(labels.values()), list(labels), fontsize="small")
    return figure


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
    untouched = float(np.mean(search.untouched_losses))
    lengths = " and ".join(str(length) for length in sorted({rung.num_steps for rung in search.rungs}))
    lines = [
        f"ExpTest found the learning rate {search.learning_rate:.3g} before the first step.",
        f"It rehearsed short runs from the same weights, beginning at the upper bound {search.upper_bound:.3g}:",
        "    learning rate   steps   loss on held-out batches",
    ]
    for rung in sorted(search.rungs, key=lambda rung: (rung.num_steps, -rung.learning_rate)):
        end = f"{rung.end_loss:.4f}" if np.isfinite(rung.end_loss) else "diverged"
        lines.append(f"    {rung.learning_rate:<13.2e}   {rung.num_steps:>5}   {end}")
    return [
        *lines,
        f"    {'untouched':<13}   {0:>5}   {untouched:.4f}",
        f"The best rates of {lengths} steps, carried on to the length of the run, give {search.learning_rate:.3g}.",
        f"The search took {search.num_steps} steps in {search.seconds:.0f} s; then the model was put back as it was.",
    ]


def _decision_lines(history: Sequence[dict[str, Any]]) -> list[str]:
    if not history:
        return ["No test was made while training."]
    return ["Decisions:", *(f"    {line}" for line in descriptions(history))]
