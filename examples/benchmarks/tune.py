# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
How often is TUNE wrong? Good runs whose rate it lowers, and plateaus that it does not notice: a Markdown table.

    python -m examples.benchmarks.tune --data DATA --out tune.jsonl

Five trainings of each task at a good rate, the middle one of the grid, which differ in the order of the data alone,
record their losses as far as TUNE's window reaches. What TUNE says of them is what it says in a training. A plateau is
the same training whose loss stops where the window begins: the noise of its window, which is what tells it from the
mean of the five, stands on a flat line. A training that the file already holds is not made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl
from transformers.utils import logging

from hf_exptest import ExpTestCallback, ExpTestConfig, ExpTestController
from hf_exptest.controller import TUNE, schedule_bounds

from .calibration import TASKS, Vector, deviations
from .methods import grid_rates
from .run import BF16_TASKS, BUDGETS
from .tables import markdown
from .tasks import make_trainer

NUM_TRAININGS = 5
CONFIG = ExpTestConfig()


class _StopAfterWindow(TrainerCallback):
    """There is no test after the first window of the default preset."""

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= schedule_bounds(CONFIG, state.max_steps)[1]


def record(task: str, order: int, data: Path) -> list[float]:
    """Losses of the steps until TUNE has decided."""
    callbacks: list[TrainerCallback] = [ExpTestCallback(CONFIG, learning_rate=grid_rates(task)[3]), _StopAfterWindow()]
    arguments = {"data_seed": order, "bf16": task in BF16_TASKS, "logging_strategy": "steps", "logging_steps": 1}
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = make_trainer(task, data, 0, BUDGETS[task], output_dir, callbacks, **arguments)
        trainer.train()
    return [float(f"{row['loss']:.5g}") for row in trainer.state.log_history if "loss" in row]


def plateaus(losses: Vector, begins: int) -> Vector:
    """
    The same trainings with a loss that stops falling.

    Args:
        losses (`ndarray`): of shape `(trainings, steps)`.
        begins (`int`): the step from which the loss stands still.
    """
    level = losses[:, begins:].mean(1, keepdims=True)
    return np.hstack([losses[:, :begins], level + deviations(losses)[:, begins:]])


def verdict(task: str, losses: Vector) -> str:
    """What TUNE decides on the losses of one training: "continue", "undecided" or "decay"."""
    controller = ExpTestController(CONFIG, grid_rates(task)[3], BUDGETS[task], phase=TUNE)
    for loss in losses:
        controller.observe(loss)
    (entry,) = controller.history
    return str(entry["decision"])


def table(trainings: dict[str, Vector]) -> str:
    """Markdown: how many of the trainings, and of the plateaus made of them, TUNE says what of."""
    lines = []
    total: Counter[tuple[str, str]] = Counter()
    for task, losses in trainings.items():
        begins, _ = schedule_bounds(CONFIG, BUDGETS[task])
        found = Counter(("good", verdict(task, row)) for row in losses)
        found += Counter(("plateau", verdict(task, row)) for row in plateaus(losses, begins))
        lines.append([task, f"{losses.shape[1] - begins}", *_cells(found)])
        total += found
    header = ["task", "window", "good runs: goes on", "undecided", "lowered"]
    header += ["plateaus: goes on", "undecided", "lowered"]
    return markdown(header, [*lines, ["all", "", *_cells(total)]])


def _cells(found: Counter[tuple[str, str]]) -> list[str]:
    return [str(found[kind, answer]) for kind in ("good", "plateau") for answer in ("continue", "undecided", "decay")]


def main() -> None:
    """Record what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see tasks.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; added to")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="(default: all)")
    options = parser.parse_args()
    logging.set_verbosity_error()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    made = {(row["task"], row["order"]): row["losses"] for row in map(json.loads, lines)}
    for task in options.tasks:
        for order in range(NUM_TRAININGS):
            if (task, order) not in made:
                made[task, order] = record(task, order, options.data)
                with options.out.open("a") as file:
                    file.write(json.dumps({"task": task, "order": order, "losses": made[task, order]}) + "\n")
    print(table({task: np.array([made[task, order] for order in range(NUM_TRAININGS)]) for task in options.tasks}))


if __name__ == "__main__":
    main()
