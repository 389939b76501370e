# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
ExpTest, its peers and a grid of learning rates on the benchmark tasks: one JSON line a run.

    python -m examples.benchmarks.run --data DATA --out runs.jsonl
    python -m examples.benchmarks.run --data DATA --out runs.jsonl --tasks digits --methods grid exptest --seeds 0 1

Every method gets the same number of optimizer steps in all: what a search or looks may spend, the training lacks. Only
`--methods "exptest on top"`, not among those of the default, trains as long as the others beside its looks. A run that
the file already holds is not made again, so the command may be stopped and given again; `tables.py` makes the tables.
The peers need the extra `peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import Trainer
from transformers.utils import logging

from .constants import CONSTANTS, runs_of
from .methods import METHODS, ON_TOP, PACKAGES, make_setup, with_grid
from .overhead import Clock
from .processes import in_new_process
from .tasks import CPU_TASKS, GPU_TASKS, LORA_VARIANTS, METRICS, make_trainer

# Optimizer steps of every method: three epochs of fine-tuning, and enough for the small models to end well.
BUDGETS = {
    "characters": 1000,
    "characters 3000": 3000,
    "characters large": 2000,
    "sst2": 1297,
    "trec": 1022,
    "trec lora": 1022,
    **dict.fromkeys(LORA_VARIANTS, 1022),
    "smollm2 lora": 300,
    "smollm2 full": 300,
    "dpo": 300,
    "reward": 300,
    "pairs": 300,
    "vit": 2000,
    "resnet sgd": 2000,
    "resnet20 sgd": 600,
    "efficientnet": 300,
    "efficientnet sgd": 300,
    "digits": 2000,
    "mnist softmax": 9375,
    "california": 2000,
}
# Fine-tuning is customarily done in mixed precision; on a CPU that has bfloat16 it takes half the time.
BF16_TASKS = [*GPU_TASKS, "sst2", "trec", "trec lora", *LORA_VARIANTS]
Row = dict[str, Any]
Key = tuple[str, str, int]


class Meter(Clock):
    """The clock, and the highest learning rate of the first parameter group."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_learning_rate = 0.0

    def on_step_begin(self, *args: object, **kwargs: Any) -> None:
        super().on_step_begin()
        self.peak_learning_rate = max(self.peak_learning_rate, float(kwargs["optimizer"].param_groups[0]["lr"]))


def measure(task: str, method: str, seed: int, data: Path, num_steps: int) -> Row:
    """
    Make one run, in a process that has made none before.

    Returns:
        `dict`:
            - `task`, `method`, `seed`, and `metric`, the task's own at the end
            - `budget`: optimizer steps that every method gets (`ON_TOP`: those of its training)
            - `steps`: those that were made, those of a search or of looks included
            - `search_steps`: the latter alone
            - `knobs`: every setting: of `TrainingArguments`, of the optimizer, of the method
            - `peak_learning_rate`: highest of the first parameter group; a factor for optimizers that set their own
            - `seconds`: wall time of search and training, without reading data and the last evaluation
            - `step_seconds`: median from one step's beginning to the next, `None` for less than seven steps
            - `peak_memory`: bytes, of all the run: allocated on the GPU, or the resident set of the process where
              there is none; the latter includes the libraries and the data
            - `versions` and `machine`
    """
    logging.set_verbosity_error()
    setup = make_setup(method, num_steps)
    with tempfile.TemporaryDirectory() as folder:
        # The data of some tasks depends on the number of steps, so a search's steps are taken off only afterwards.
        trainer = make_trainer(task, data, seed, num_steps, folder, [], bf16=task in BF16_TASKS, **setup.arguments)
        began = time.monotonic()
        search_steps, settings = setup.prepare(trainer)
        meter = Meter()
        trainer.add_callback(meter)
        trainer.args.max_steps = setup.training_steps or num_steps - search_steps
        if trainer.args.max_steps > 0:
            search_steps += int(trainer.train().metrics.get("exptest_search_steps", 0))
        seconds = time.monotonic() - began
        metric = trainer.evaluate()[METRICS[task]]
    step_seconds = meter.seconds()
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "metric": metric,
        "budget": num_steps,
        "steps": search_steps + trainer.state.global_step,
        "search_steps": search_steps,
        "knobs": {**trainer_knobs(trainer), "method": settings},
        "peak_learning_rate": meter.peak_learning_rate,
        "seconds": round(seconds, 2),
        "step_seconds": median(step_seconds) if step_seconds else None,
        "peak_memory": peak_memory(),
        "versions": versions(method),
        "machine": machine(),
    }


def trainer_knobs(trainer: Trainer) -> dict[str, Any]:
    """The settings of the arguments and of the optimizer; the latter is `None` if a search left no step to it."""
    names = ["learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"]
    names += ["max_grad_norm", "optim", "per_device_train_batch_size", "bf16", "eval_strategy", "eval_steps"]
    arguments = {name: getattr(trainer.args, name) for name in names}
    if trainer.optimizer is None:
        return {"arguments": arguments, "optimizer": None}
    # Training puts it into Accelerate's wrapper.
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return {"arguments": arguments, "optimizer": {"class": type(optimizer).__name__, **optimizer.defaults}}


def peak_memory() -> int:
    """
    Most bytes that this process ever had on the GPU, or in memory where there is no GPU.

    On Linux a new process takes over the peak of the one that starts it. That one only keeps rows, so it stays below.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def versions(method: str) -> dict[str, str]:
    """Versions of Python and of every package that matters to a run of `method`."""
    packages = ["torch", "transformers", "accelerate", "hf-exptest"]
    packages += [PACKAGES[method]] if method in PACKAGES else []
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def machine() -> dict[str, Any]:
    """Processor, cores, threads and GPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def read_rows(path: Path) -> dict[Key, Row]:
    """The runs that a file holds, by task, method and seed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["task"], row["method"], row["seed"]): row for row in rows}


def append_row(path: Path, row: Row) -> None:
    """Add a run to a file that `read_rows` reads."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def keys(tasks: Iterable[str], methods: list[str], seeds: list[int]) -> list[Key]:
    """Every run that these make, `"grid"` counting as its rates, and a constant as its runs."""
    return [
        (task, run, seed)
        for task in tasks
        for seed in seeds
        for run in dict.fromkeys(run for method in with_grid(methods, task) for run in runs_of(method, task))
    ]


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The options that `tables.py` has too."""
    parser.add_argument("--tasks", nargs="+", default=CPU_TASKS, choices=list(METRICS), help="default: all for a CPU")
    methods = ["grid", *CONSTANTS, *METHODS]
    choices = [*methods, ON_TOP, "exptest knobs", "exptest paper knobs"]
    parser.add_argument("--methods", nargs="+", default=methods, choices=choices, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")


def main() -> None:
    """Make the runs that are missing; those that fail are named at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see tasks.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; added to")
    add_choices(parser)
    parser.add_argument("--steps", type=int, help="optimizer steps of every run (default: what `BUDGETS` says)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    options = parser.parse_args()
    rows = read_rows(options.out)
    budgets = {key: options.steps or BUDGETS[key[0]] for key in keys(options.tasks, options.methods, options.seeds)}
    for key in rows.keys() & budgets.keys():
        if rows[key]["budget"] != budgets[key]:
            parser.error(
                f"{options.out} holds {key} with {rows[key]['budget']} steps, not {budgets[key]}: name another"
            )
    failures = []
    pool = ThreadPoolExecutor(options.jobs)
    try:
        missing = {
            pool.submit(in_new_process, measure, (*key, options.data, budget)): key
            for key, budget in budgets.items()
            if key not in rows
        }
        for future in as_completed(missing):
            try:
                row = future.result()
            except Exception as error:
                # The others are still worth having.
                failures.append(f"{missing[future]}: {type(error).__name__}: {error}")
                print(f"failed: {failures[-1]}", file=sys.stderr, flush=True)
                continue
            append_row(options.out, row)
            print(
                f"{missing[future]}: {row['metric']:.4f} in {row['steps']} steps, {row['seconds']:.0f} s", flush=True
            )
    finally:
        # So that a stop is not followed by the runs that have not begun.
        pool.shutdown(cancel_futures=True)
    if failures:
        sys.exit("Runs that failed:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
