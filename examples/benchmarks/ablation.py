# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
What each part of the default preset is worth, against a grid of learning rates: one JSON line a run, and a table.

    python -m examples.benchmarks.ablation --data DATA --out ablation.jsonl
    python -m examples.benchmarks.ablation --data DATA --out ablation.jsonl --tasks trec --parts default grid

A run that the file already holds is not made again; a part stands there as the run's method. The schedules start from
the rate that the default found on the same task and seed; the looks differ from the default's in one constant; the
starts are far below the best rate of the grid, whose runs they need.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch
from transformers.utils import logging

from hf_exptest import ExpTestCallback
from hf_exptest.search import START_SHARE

from .run import Row, append_row, read_rows
from .tables import BEST, Rows, best_of, markdown
from .tasks import GRIDS, METRICS, NUM_STEPS, make_trainer

# Training from the rate that the default found; a window of 0.9 without cool-down tests at the last step only.
SCHEDULES: dict[str, dict[str, Any]] = {
    "look only": {"cooldown": 0.0, "window": 0.9},
    "look, TUNE": {"cooldown": 0.0},
    "windows of 10 %": {"window": 0.1},
    "windows of 10 %, path correction": {"window": 0.1, "window_correction": True},
    "cool-down of 50 %": {"cooldown": 0.5, "window": 0.4},
    "linear decay": {"cooldown": 0.9},
}
# Settings of a run, and the constants that it changes.
LOOKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "start at a tenth of the bound": ({}, {"look.START_SHARE": 1 / 10}),
    "look at 5 % of the steps": ({"warmup": 0.05, "window": 0.25}, {"controller._RISE_SHARE": 2}),
    "no second warm-up": ({}, {"controller._RISE_SHARE": 0}),
    "half the steps": ({"search_budget": 0.075}, {"search._SHORT_RUN_STEPS": 60}),
    "twice the steps": ({"search_budget": 0.3}, {"search._SHORT_RUN_STEPS": 240, "search._SHORT_RUN_SHARE": 0.8}),
    "vertex, not moved": ({}, {"search._HORIZON": (0.0, 0.0, 0.0)}),
}
# The rate of the warm-up, in place of a share of the bound: that of the grid which is best on the seed, over so much.
STARTS = {"start at the best": 1} | {f"start {times} times below the best": times for times in (3, 10, 30, 100)}
# Softmax regression on MNIST is the paper's, whose table needs the default alone.
TASKS = [task for task in NUM_STEPS if task != "mnist softmax"]


def train(task: str, seed: int, data: Path, callback: ExpTestCallback | None, **arguments: Any) -> Row:
    """Train once; the metric and what was decided."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [] if callback is None else [callback]
        trainer = make_trainer(task, data, seed, NUM_STEPS[task], folder, callbacks, **arguments)
        trainer.train()
        metric = trainer.evaluate()[METRICS[task]]
    row: Row = {"metric": metric, "decays": 0, "seconds": round(time.monotonic() - began, 1)}
    if callback is None:
        return row
    report = callback.report()
    return row | {
        "learning_rate": report.starting_rate,
        "decays": sum(entry["decision"] == "decay" for entry in report.history),
        "search_steps": sum(search.num_steps for search in report.searches),
        "search_seconds": round(sum(search.seconds for search in report.searches), 1),
        "looks": [
            {
                "step": search.step,
                "previous_rate": search.previous_rate,
                "p_value": search.p_value,
                "untouched": mean(search.untouched_losses),
                "trials": [(t.learning_rate, t.num_steps, t.end_loss, t.outcome) for t in search.trials],
            }
            for search in report.searches
        ],
    }


def grid_parts(task: str) -> list[str]:
    """The rates of the task's grid, as parts: warm-up over 10 % of the steps, then linear decay."""
    return [f"grid {rate:g}" for rate in GRIDS[task]]


def runs_of(parts: Sequence[str], task: str) -> list[str]:
    """The parts that are runs, with those that they need before them."""
    wanted = set(parts)
    grid = grid_parts(task) if wanted & {"grid", BEST, *STARTS} else []
    default = ["default"] if wanted & {"default", *SCHEDULES} else []
    return grid + default + [part for part in (*SCHEDULES, *LOOKS, *STARTS) if part in wanted]


def run(task: str, part: str, seed: int, data: Path, rows: Rows) -> Row:
    """One part, as plain values."""
    if part == "default":
        return train(task, seed, data, ExpTestCallback())
    if part in STARTS:
        start = float(best_of(rows, task, grid_parts(task), [seed]).split()[1]) / STARTS[part]
        with mock.patch("hf_exptest.look.first_update_bound", return_value=(start / START_SHARE, 0)):
            return train(task, seed, data, ExpTestCallback())
    if part in LOOKS:
        settings, constants = LOOKS[part]
        with contextlib.ExitStack() as stack:
            for name, value in constants.items():
                stack.enter_context(mock.patch(f"hf_exptest.{name}", value))
            return train(task, seed, data, ExpTestCallback(**settings))
    if part in grid_parts(task):
        rate = float(part.split()[1])
        arguments = {"learning_rate": rate, "warmup_steps": NUM_STEPS[task] // 10}
        return {"learning_rate": rate} | train(task, seed, data, None, **arguments)
    rate = rows[task, "default", seed]["learning_rate"]
    callback = ExpTestCallback(learning_rate=rate, **SCHEDULES[part])
    return {"learning_rate": rate} | train(task, seed, data, callback)


def quality_table(rows: Rows, tasks: Sequence[str], seeds: Sequence[int], parts: Sequence[str]) -> str:
    """Markdown: the metric of every run, with the rates and the cost of the looks."""
    lines = []
    for task in tasks:
        # What a line is called, and the part whose runs are in it.
        named = {part: part for part in parts if part not in ("grid", BEST)}
        if BEST in parts:
            best = best_of(rows, task, grid_parts(task), seeds)
            named = {f"{BEST}: {best.split()[1]}": best} | named
        if "grid" in parts:
            named = {part: part for part in grid_parts(task)} | named
        for name, part in named.items():
            group = [rows[task, part, seed] for seed in seeds]
            lines.append(
                [
                    f"{task}, {NUM_STEPS[task]} steps",
                    name,
                    f"{mean(row['metric'] for row in group):.3f}",
                    " ".join(f"{row['metric']:.3f}" for row in group),
                    " ".join(f"{row['learning_rate']:.2g}" for row in group),
                    " ".join(str(row["decays"]) for row in group),
                    f"{mean(row.get('search_steps', 0) for row in group):.0f}",
                    f"{mean(row.get('search_seconds', 0) for row in group):.0f}",
                ]
            )
    header = ["task", "part", "mean", "by seed", "learning rates", "decays", "look steps", "look seconds"]
    return markdown(header, lines)


def main() -> None:
    """Make the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see tasks.py")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=list(NUM_STEPS), help="default: all but MNIST")
    parts = ["default", *SCHEDULES, *LOOKS, *STARTS]
    parser.add_argument(
        "--parts", nargs="+", default=parts, choices=["grid", BEST, *parts], help="default: all but those of the grid"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; added to")
    options = parser.parse_args()
    logging.set_verbosity_error()
    rows = read_rows(options.out)
    for task in options.tasks:
        for key in itertools.product([task], runs_of(options.parts, task), options.seeds):
            if key not in rows:
                row = dict(zip(("task", "method", "seed"), key, strict=True)) | {"torch": torch.__version__}
                rows[key] = row | run(*key, options.data, rows)
                append_row(options.out, rows[key])
    print(quality_table(rows, options.tasks, options.seeds, options.parts))


if __name__ == "__main__":
    main()
