# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
How does the best rate of a trial go over to the rest of the run? Records wide looks, and judges rules by them.

    python -m examples.benchmarks.horizon --data DATA --out looks.jsonl --runs RUNS.jsonl ...

A recorded look has trials, as long as the product's, at every rate from the present one to 243 times it, where the
product would stop earlier; it is made once. The regret of a rule is read off the grid's runs of the same task and
length (in the files of `--runs`), between its rates. Each constant is chosen on the other tasks, so that no task
judges a rule that it shaped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator
from transformers import Trainer
from transformers.utils import logging

from hf_exptest import ExpTestCallback, ExpTestScheduler, Trial
from hf_exptest.look import Looks
from hf_exptest.search import FIRST_POWERS, SPACING, HorizonRule, carried_over, read_trials, trial_steps, walk
from hf_exptest.stage import NUM_EVAL_BATCHES, open_stage

from .lengths import rows_by_length
from .run import BF16_TASKS, BUDGETS, Row, append_row
from .tables import markdown
from .tasks import CPU_TASKS, IS_HIGHER_BETTER, make_trainer

POWERS = range(6)
# Constants of a rule, as `hf_exptest.search.horizon_power` has them.
_BY_SHARE = (0.2, 0.3, 0.4, 0.5, 0.6), (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
CANDIDATES: dict[str, list[HorizonRule]] = {
    "vertex, not moved": [(0.0, 0.0, None)],
    "a power of the length": list(itertools.product((-0.3, -0.2, -0.1, 0.0, 0.1, 0.2), (0.0,), (None,))),
    "by the root of the share removed": list(itertools.product(*_BY_SHARE, (None,))),
    "the same, fine-tuning by itself": list(itertools.product(*_BY_SHARE, (-0.1, -0.2, -0.3, -0.4, -0.5))),
}


class _AllTrials(Looks):
    """Makes all trials in place of the first look, and ends the training."""

    row: Row

    def look_if_due(self) -> None:
        if not self._scheduler.wants_look:
            return
        start, from_scratch = self._scheduler.learning_rate, self._scheduler.bound["from_scratch"]
        budget = self._budget
        length = trial_steps(budget)
        with open_stage(self._trainer, length + NUM_EVAL_BATCHES) as stage:
            trials = [stage.trial(start * SPACING**power, length) for power in POWERS]
            untouched = stage.untouched
        # Only now, since a stage puts back what callbacks hold.
        self.row = {
            "step": self._trainer.state.global_step,
            "budget": budget,
            "start": start,
            "from_scratch": from_scratch,
            "untouched": untouched,
            "trials": [(trial.num_steps, trial.learning_rate, trial.end_losses, trial.movement) for trial in trials],
        }
        self._trainer.control.should_training_stop = True


class Recorder(ExpTestCallback):
    """Records trials in place of the first look."""

    def _new_looks(self, trainer: Trainer, scheduler: ExpTestScheduler) -> Looks:
        self.recorded = _AllTrials(trainer, scheduler)
        return self.recorded


def record(task: str, seed: int, num_steps: int, data: Path) -> Row:
    """One wide look, as plain values; the loss of a trial that diverged is `None`."""
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(task, data, seed, num_steps, folder, [recorder], bf16=task in BF16_TASKS).train()
    row = {"task": task, "seed": seed, "num_steps": num_steps, **recorder.recorded.row}
    row["trials"] = [
        [length, rate, ends if all(map(math.isfinite, ends)) else None, movement]
        for length, rate, ends, movement in row["trials"]
    ]
    return row


def read_grids(paths: Sequence[Path]) -> dict[tuple[str, int], dict[float, float]]:
    """Mean metric by task and number of steps, and by rate; those that diverged count as nothing."""
    metrics: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, row in rows_by_length(paths):
        if row["method"].startswith("grid ") and math.isfinite(row["metric"]):
            metrics[key][float(row["method"].split()[1])].append(row["metric"])
    return {key: {rate: mean(values) for rate, values in rates.items()} for key, rates in metrics.items()}


def regret(grid: Mapping[float, float], rate: float, is_higher_better: bool) -> float:
    """Percent of the best metric of the grid that is lost at `rate`, between its rates or at its edge."""
    rates = sorted(grid)
    best = (max if is_higher_better else min)(grid.values())
    curve = PchipInterpolator(np.log(rates), [grid[rate] for rate in rates])
    metric = float(curve(np.clip(math.log(rate), math.log(rates[0]), math.log(rates[-1]))))
    return 100 * (best - metric if is_higher_better else metric - best) / best


class Replay:
    """The stage of a recorded look: gives its trials back; beyond those that were made, all diverge."""

    def __init__(self, row: Row) -> None:
        self.untouched: list[float] = row["untouched"]
        self.num_steps = 0
        self._ends = {_power(rate, row): end for _, rate, *end in row["trials"]}
        self._row = row

    def trial(self, learning_rate: float, num_steps: int) -> Trial:
        ends, movement = self._ends.get(_power(learning_rate, self._row), (None, None))
        # Where one diverges, it ends early.
        self.num_steps += num_steps if ends else num_steps // 4
        return Trial(learning_rate, num_steps, [], ends or [math.inf] * len(self.untouched), movement)


def _power(learning_rate: float, row: Row) -> int:
    return round(math.log(learning_rate / row["start"], SPACING))


def regrets(
    looks: Sequence[Row], grids: Mapping[tuple[str, int], Mapping[float, float]]
) -> Callable[[HorizonRule], dict[tuple[str, int], float]]:
    """A function that gives the mean regret of a rule by task and length of the run."""
    cases = []
    for row in looks:
        length = row["trials"][0][0]
        trials = walk(Replay(row), row["start"], length, row["budget"], FIRST_POWERS)
        times = (row["num_steps"] - row["step"]) / length
        reading = read_trials(trials, row["untouched"], 0.05, row["from_scratch"])
        cases.append(((row["task"], row["num_steps"]), times, reading))

    def of(rule: HorizonRule) -> dict[tuple[str, int], float]:
        found: dict[tuple[str, int], list[float]] = defaultdict(list)
        for key, times, reading in cases:
            rate = carried_over(reading, times, rule)
            found[key].append(regret(grids[key], rate, IS_HIGHER_BETTER[key[0]]))
        return {key: mean(values) for key, values in found.items()}

    return of


def table(looks: Sequence[Row], grids: Mapping[tuple[str, int], Mapping[float, float]]) -> str:
    """Markdown: regret with the constants that are best on all tasks, and with those chosen on the other tasks."""
    of = regrets(looks, grids)
    kinds = sorted({row["task"].removesuffix(" 3000") for row in looks})
    lines = []
    for name, rules in CANDIDATES.items():
        found = {rule: of(rule) for rule in rules}
        best = min(rules, key=lambda rule: mean(found[rule].values()))
        left_out = []
        for kind in kinds:
            others = {rule: [v for k, v in found[rule].items() if not k[0].startswith(kind)] for rule in rules}
            chosen = min(rules, key=lambda rule: mean(others[rule]))
            left_out += [value for key, value in found[chosen].items() if key[0].removesuffix(" 3000") == kind]
        values = found[best].values()
        lines.append(
            [
                name,
                " ".join(f"{x:g}" for x in best if x is not None),
                f"{mean(values):.2f}",
                f"{max(values):.2f}",
                f"{mean(left_out):.2f}",
                f"{max(left_out):.2f}",
            ]
        )
    header = ["rule", "best constants", "mean regret, %", "worst, %", "chosen on other tasks: mean, %", "worst, %"]
    return markdown(header, lines)


def main() -> None:
    """Record what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see tasks.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines of looks; added to")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="files with the grid's runs")
    parser.add_argument("--tasks", nargs="*", default=CPU_TASKS, choices=CPU_TASKS, help="to record (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--steps", type=int, help="optimizer steps of the run (default: what `BUDGETS` says)")
    options = parser.parse_args()
    logging.set_verbosity_error()
    looks: list[Any] = []
    if options.out.exists():
        looks = [json.loads(line) for line in options.out.read_text().splitlines()]
    made = {(row["task"], row["seed"], row["num_steps"]) for row in looks}
    for task, seed in itertools.product(options.tasks, options.seeds):
        num_steps = options.steps or BUDGETS[task]
        if (task, seed, num_steps) not in made:
            looks.append(record(task, seed, num_steps, options.data))
            append_row(options.out, looks[-1])
    grids = read_grids(options.runs)
    print(table([row for row in looks if (row["task"], row["num_steps"]) in grids], grids))


if __name__ == "__main__":
    main()
