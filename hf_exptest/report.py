# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What happened: a figure and a plain text of the losses, the learning rates and the decisions of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .callback import describe
from .rehearsal import LearningRateSearch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour, line width and explanation of each kind of decision.
_DECISIONS = {
    "start": ("black", 1.2, "start"),
    "detected": ("tab:blue", 1.2, "detected: loss decays exponentially"),
    "continue": ("tab:green", 0.9, "continue: loss still falls"),
    "decay": ("tab:red", 1.2, "decay: test failed, rate lowered"),
}
# The smoothed loss averages this share of the points.
_SMOOTHING = 0.05


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
    return ["Decisions:", *(f"    {describe(entry)}" for entry in history)]
