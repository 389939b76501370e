# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
What each part of the default preset is worth, against a grid of learning rates: one JSON line a run, and two tables.

    python -m examples.benchmarks.ablation --data DATA --out ablation.jsonl
    python -m examples.benchmarks.ablation --data DATA --out ablation.jsonl --tasks trec --parts default grid

A run that the file already holds is not made again; a part stands there as the run's method. The schedules start from
the rate that the default found on the same task and seed. The searches only search; the metric beside each rate is
read off the grid's runs on that seed, linearly in the logarithm of the rate.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers.utils import logging

from hf_exptest import ExpTestCallback, ExpTestConfig, LearningRateSearch, find_learning_rate
from hf_exptest.search import MIN_STEPS, STRETCH, vertex

from .run import Row, append_row, read_rows
from .tables import BEST, Rows, best_of, markdown
from .tasks import GRIDS, METRICS, NUM_STEPS, make_trainer

# Training from the rate that the default found; a window of 0.9 without cool-down tests at the last step only.
SCHEDULES: dict[str, dict[str, Any]] = {
    "search only": {"cooldown": 0.0, "window": 0.9},
    "search, TUNE": {"cooldown": 0.0},
    "windows of 10 %": {"window": 0.1},
    "windows of 10 %, path correction": {"window": 0.1, "window_correction": True},
    "cool-down of 50 %": {"cooldown": 0.5, "window": 0.4},
    "linear decay": {"cooldown": 0.9},
}
# Settings of the search, and the constants of the method that it replaces.
SEARCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "14 and 56 steps": ({}, {}),
    "7 and 28 steps": ({}, {"MIN_STEPS": 7}),
    "12 and 24 steps": ({}, {"MIN_STEPS": 12, "STRETCH": 2}),
    "24 and 48 steps": ({}, {"MIN_STEPS": 24, "STRETCH": 2}),
    "48 and 96 steps": ({}, {"MIN_STEPS": 48, "STRETCH": 2}),
    "beta 1/2": ({"beta": 0.5}, {}),
    "constant rates": ({"warmup": 0.0, "cooldown": 0.0}, {}),
}
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
    history = [] if callback is None else callback.history
    row = {
        "metric": metric,
        "decays": sum(entry["decision"] == "decay" for entry in history),
        "seconds": round(time.monotonic() - began, 1),
    }
    return row if callback is None or callback.search is None else row | search_row(callback.search)


def search(task: str, seed: int, data: Path, settings: dict[str, Any], constants: dict[str, Any]) -> Row:
    """Search once, without training."""
    constants = {"MIN_STEPS": MIN_STEPS, "STRETCH": STRETCH} | constants
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple("hf_exptest.search", **constants):
        trainer = make_trainer(task, data, seed, NUM_STEPS[task], folder, [])
        return search_row(find_learning_rate(trainer, ExpTestConfig(**settings)))


def search_row(found: LearningRateSearch) -> Row:
    """The rate found, what simpler rules would have made of the same trials, and the cost."""
    longest = max(trial.num_steps for trial in found.trials)
    longer = [trial for trial in found.trials if trial.num_steps == longest]
    untouched = mean(found.untouched_losses)
    rates = [trial.learning_rate for trial in longer]
    return {
        "learning_rate": found.learning_rate,
        "winner": min(longer, key=lambda trial: trial.end_loss).learning_rate,
        "vertex": vertex(rates, [min(trial.end_loss, untouched) for trial in longer]),
        "search_steps": found.num_steps,
        "search_seconds": round(found.seconds, 1),
        "trials": [(trial.learning_rate, trial.num_steps, trial.end_loss, trial.p_value) for trial in found.trials],
        "untouched": untouched,
    }


def grid_parts(task: str) -> list[str]:
    """The rates of the task's grid, as parts: warm-up over 10 % of the steps, then linear decay."""
    return [f"grid {rate:g}" for rate in GRIDS[task]]


def runs_of(parts: Sequence[str], task: str) -> list[str]:
    """The parts that are runs, with those that they need before them."""
    wanted = set(parts)
    grid = grid_parts(task) if wanted & {"grid", BEST, *SEARCHES} else []
    default = ["default"] if wanted & {"default", *SCHEDULES} else []
    return grid + default + [part for part in (*SCHEDULES, *SEARCHES) if part in wanted]


def run(task: str, part: str, seed: int, data: Path, rows: Rows) -> Row:
    """One part, as plain values."""
    if part == "default":
        return train(task, seed, data, ExpTestCallback())
    if part in SEARCHES:
        return search(task, seed, data, *SEARCHES[part])
    if part in grid_parts(task):
        rate = float(part.split()[1])
        arguments = {"learning_rate": rate, "warmup_steps": NUM_STEPS[task] // 10}
        return {"learning_rate": rate} | train(task, seed, data, None, **arguments)
    rate = rows[task, "default", seed]["learning_rate"]
    callback = ExpTestCallback(learning_rate=rate, **SCHEDULES[part])
    return {"learning_rate": rate} | train(task, seed, data, callback)


def quality_table(rows: Rows, tasks: Sequence[str], seeds: Sequence[int], parts: Sequence[str]) -> str:
    """Markdown: the metric of every run, with the rates and the cost of the search."""
    lines = []
    for task in tasks:
        # What a line is called, and the part whose runs are in it.
        named = {part: part for part in parts if part not in ("grid", BEST, *SEARCHES)}
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
    header = ["task", "part", "mean", "by seed", "learning rates", "decays", "search steps", "search seconds"]
    return markdown(header, lines)


def search_table(rows: Rows, tasks: Sequence[str], seeds: Sequence[int], parts: Sequence[str]) -> str:
    """Markdown: for each search and rule, its rates over the grid's best, and the metric that the grid has there."""
    lines = []
    for task in tasks:
        best = rows[task, best_of(rows, task, grid_parts(task), seeds), seeds[0]]["learning_rate"]
        for part in (part for part in parts if part in SEARCHES):
            group = [rows[task, part, seed] for seed in seeds]
            for rule, key in (("winner", "winner"), ("vertex", "vertex"), ("moved on", "learning_rate")):
                metrics = []
                for seed, row in zip(seeds, group, strict=True):
                    grid = [rows[task, name, seed] for name in grid_parts(task)]
                    x = np.log([r["learning_rate"] for r in grid])
                    metrics.append(float(np.interp(np.log(row[key]), x, [r["metric"] for r in grid])))
                lines.append(
                    [
                        task,
                        part,
                        rule,
                        " ".join(f"{row[key] / best:.2g}" for row in group),
                        f"{mean(metrics):.3f}",
                        f"{mean(row['search_steps'] for row in group):.0f}",
                        f"{mean(row['search_seconds'] for row in group):.0f}",
                    ]
                )
    header = ["task", "search", "rule", "rate / best rate of the grid", "metric there", "search steps"]
    return markdown([*header, "search seconds"], lines)


def main() -> None:
    """Make the runs that are missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see tasks.py")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=list(NUM_STEPS), help="default: all but MNIST")
    parts = ["default", *SCHEDULES, *SEARCHES]
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
    if any(part in SEARCHES for part in options.parts):
        print()
        print(search_table(rows, options.tasks, options.seeds, options.parts))


if __name__ == "__main__":
    main()
