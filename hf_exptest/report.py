# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What happened in one run: a file with everything that its text, its figure and the model card need, and values for
the log."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from .config import ExpTestConfig
from .search import LearningRateSearch
from .trial import Trial
from .words import SOURCES, summary_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.get_logger(__name__)

REPORT_NAME = "exptest.json"
FIGURE_NAME = "exptest.png"
REPORT_VERSION = 5
# Version 4 has no `setup`.
_READABLE_VERSIONS = 4, REPORT_VERSION
# The smoothed loss averages this share of the points.
_SMOOTHING = 0.05
_ENTRY_KEYS = {"step", "phase", "test", "p_value", "learning_rate", "window", "left_out", "decision"}


@dataclass(frozen=True)
class Report:
    """
    One run, as `exptest.json` in its `output_dir` has it; or a look alone, without a history, see
    [`find_learning_rate`].

    Attributes:
        config ([`ExpTestConfig`]): the settings.
        num_training_steps (`int`): length of the run in optimizer steps.
        history (`list[dict]`): the decisions, see [`ExpTestController`].
        searches (`list[LearningRateSearch]`): the looks at other rates, whether or not they led to one.
        steps (`list[int]`), losses (`list[float]`), learning_rates (`list[float]`): of each logged step.
        setup (`dict`): what the rate depends on: `model`, `name_or_path`, `trainable_parameters`, `optimizer`,
            `weight_decay`, `total_batch_size`; empty in files of earlier releases.
        num_steps_made (`int` or `None`): optimizer steps made so far; `None` in files of earlier releases.

    Example:

        >>> from transformers import Trainer
        >>> from hf_exptest import ExpTestCallback, Report
        >>> callback = ExpTestCallback(learning_rate=0.03)
        >>> trainer = Trainer(model=model, args=args, train_dataset=train_dataset, callbacks=[callback])
        >>> result = trainer.train()
        >>> report = Report.load(args.output_dir)
        >>> report.starting_rate, report.rate_source, len(report.losses)
        (0.03, 'given', 150)
        >>> report.plot().figure.savefig("exptest.pdf")
    """

    config: ExpTestConfig
    num_training_steps: int
    history: list[dict[str, Any]]
    searches: list[LearningRateSearch]
    steps: list[int]
    losses: list[float]
    learning_rates: list[float]
    setup: dict[str, Any] = field(default_factory=dict)
    num_steps_made: int | None = None

    @property
    def starting_rate(self) -> float:
        """
        The rate that the run left its warm-up with: the first look's, or that which training started from. NaN where a
        look alone found none.
        """
        return self._start[0]

    @property
    def rate_source(self) -> str:
        """
        Where it is from: "search" (a look), "below_bound", "training_arguments", "optimizer", "given", "reused" (from
        `config.reuse`) or others.
        """
        return self._start[1]

    @property
    def search(self) -> LearningRateSearch | None:
        """The first look."""
        return self.searches[0] if self.searches else None

    @property
    def is_look_alone(self) -> bool:
        """Whether nothing was trained: a training that looks has the rate it began with in its history by then."""
        return bool(self.searches) and not self.history

    @property
    def is_unfinished(self) -> bool:
        """Whether the training is known to have made fewer steps than planned: it was stopped, or still runs."""
        is_known = self.num_steps_made is not None and not self.is_look_alone
        return is_known and self.num_steps_made != self.num_training_steps

    @property
    def _start(self) -> tuple[float, str]:
        if self.is_look_alone:
            search = self.searches[0]
            return search.learning_rate if search.is_conclusive else math.nan, "search"
        starts = [entry for entry in self.history if entry["decision"] == "start"]
        looks = [entry for entry in self.history if entry["test"] == "look"]
        # What was found may be the rate that the run began with.
        is_found = bool(looks) and (looks[0]["decision"] != "keep" or looks[0]["p_value"] < self.config.alpha)
        if is_found and starts and starts[-1]["test"] == "below_bound":
            return looks[0]["learning_rate"], "search"
        if starts:
            return starts[-1]["learning_rate"], starts[-1]["test"]
        if self.config.learning_rate is not None:
            return self.config.learning_rate, "given"
        # Resumed, without saying so again, from a checkpoint whose rate was given.
        return max(self.learning_rates, default=math.nan), "checkpoint"

    def rate_at(self, step: int) -> float:
        """The rate in force after `step` steps, before warm-up and cool-down."""
        decided = [float(entry["learning_rate"]) for entry in self.history if entry["step"] <= step]
        return decided[-1] if decided else self.starting_rate

    @property
    def smoothed_losses(self) -> list[float]:
        """Centred moving average over a twentieth of the losses; at the ends, over those that are there."""
        reach = round(_SMOOTHING * len(self.losses) / 2)
        return [float(np.mean(self.losses[max(0, i - reach) : i + reach + 1])) for i in range(len(self.losses))]

    def plot(self, ax: Axes | None = None) -> Axes:
        """
        Draw the run; needs matplotlib.

        The loss, raw and smoothed, above the learning rate on a log axis; phases are shaded, window by window, and
        decisions marked. Each look at other rates has a panel to the left.

        Args:
            ax (`matplotlib.axes.Axes`, *optional*):
                Draw the panel of the loss alone there, with phases and decisions.

        Returns:
            `matplotlib.axes.Axes`: of the loss; its `.figure` has the other panels.
        """
        from .figure import plot_loss, plot_run

        return plot_run(self) if ax is None else plot_loss(self, ax)

    def summary(self) -> str:
        """
        Say in plain text why the learning rate is what it is.

        Returns:
            `str`: the rate and its source, how far a training came that is not at its end, each look (trials, test,
                cost), then one line a decision.
        """
        return "\n".join(summary_lines(self))

    def save(self, folder: str | Path) -> None:
        """Write `exptest.json`, in place of an older one."""
        values = {"version": REPORT_VERSION, **_plain(dataclasses.asdict(self))}
        text = json.dumps(values, indent=1, allow_nan=False) + "\n"
        Path(folder).mkdir(parents=True, exist_ok=True)
        _replace(Path(folder, REPORT_NAME), lambda path: path.write_text(text, encoding="utf-8"))

    def save_figure(self, folder: str | Path) -> None:
        """Write `exptest.png`, in place of an older one, if matplotlib is installed and there is a look or a loss."""
        if (self.steps or self.searches) and importlib.util.find_spec("matplotlib") is not None:
            from .figure import draw

            _replace(Path(folder, FIGURE_NAME), lambda path: draw(self, path))

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """
        Read `exptest.json` from `folder`, which may be the path of the file itself.

        Raises:
            `ValueError`: naming the file, if there is none, or not one that this release can read.
        """
        path = report_file(folder)
        if not path.is_file():
            raise ValueError(f"{str(folder)!r} has no {REPORT_NAME}; ExpTest writes it when a training saves or ends.")
        try:
            return _report(json.loads(path.read_text(encoding="utf-8")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} cannot be read: {error}") from error


def report_file(folder: str | Path) -> Path:
    """`exptest.json` in `folder`, which may be the path of the file itself."""
    return Path(folder) if Path(folder).is_file() else Path(folder, REPORT_NAME)


def write(report: Report, folder: str | Path, with_figure: bool) -> None:
    """
    Leave `exptest.json` and, `with_figure`, `exptest.png` in `folder`.

    Whatever goes wrong costs a warning each: no training is lost to its report.
    """
    _try(report.save, Path(folder, REPORT_NAME))
    if with_figure:
        _try(report.save_figure, Path(folder, FIGURE_NAME))


def _try(save: Callable[[Path], None], path: Path) -> None:
    try:
        save(path.parent)
    except Exception as error:
        logger.warning(f"ExpTest could not write {str(path)!r}: {type(error).__name__}: {error}")


def _replace(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write beside `path`, then move it there, so that a disk which is full half-way destroys no older file."""
    new = path.with_name(f".{path.name}")
    try:
        write_to(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def search_to_dict(search: LearningRateSearch) -> dict[str, Any]:
    """A search in values that JSON has."""
    values: dict[str, Any] = _plain(dataclasses.asdict(search))
    return values


def search_from_dict(values: dict[str, Any]) -> LearningRateSearch:
    """The inverse of `search_to_dict`."""
    trials = [
        Trial(**{**trial, "curve": _floats(trial["curve"]), "end_losses": _floats(trial["end_losses"])})
        for trial in values["trials"]
    ]
    untouched = _floats(values["untouched_losses"])
    return LearningRateSearch(**{**values, "trials": trials, "untouched_losses": untouched})


def _report(values: dict[str, Any]) -> Report:
    """A report from the values in its file, which may be anybody's."""
    version = values.pop("version", None)
    if version not in _READABLE_VERSIONS:
        readable = " and ".join(map(str, _READABLE_VERSIONS))
        raise ValueError(f"it has version {version!r}; this release reads versions {readable}.")
    values["setup"] = dict(values.get("setup", {}))
    values["config"] = ExpTestConfig.from_dict(values["config"])
    values["losses"] = _floats(values["losses"])
    values["searches"] = [search_from_dict(search) for search in values["searches"]]
    report = Report(**values)
    lengths = [len(report.steps), len(report.losses), len(report.learning_rates)]
    if len(set(lengths)) > 1:
        raise ValueError(f"it has {lengths} steps, losses and learning rates; they belong together.")
    for entry in report.history:
        if not _ENTRY_KEYS <= entry.keys():
            raise ValueError(f"its history lacks {sorted(_ENTRY_KEYS - entry.keys())} in {entry}.")
    if report.rate_source not in SOURCES:
        raise ValueError(f"it has a learning rate from {report.rate_source!r}, not one of {sorted(SOURCES)}.")
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


def log_values(history: Sequence[dict[str, Any]], phase: int) -> dict[str, float]:
    """Numbers for the Trainer's log; text would be refused by TensorBoard."""
    values: dict[str, float] = {
        "exptest_phase": phase,
        "exptest_decays": sum(entry["decision"] == "decay" for entry in history),
    }
    tests = [entry for entry in history if entry["decision"] != "start" and entry["test"] != "look"]
    if tests:
        values |= {"exptest_p_value": tests[-1]["p_value"], "exptest_window": tests[-1]["window"]}
    return values
