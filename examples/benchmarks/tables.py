# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Tables and a figure of the runs that `run.py` made: Markdown, every number from the file.

    python -m examples.benchmarks.tables runs.jsonl
    python -m examples.benchmarks.tables runs.jsonl --tasks digits --methods exptest prodigy --figure regret.png

Regret is how much worse a run's metric is than the mean metric of the grid's best rate, in percent of the latter;
below zero it is better. The grid's best rate has the best mean over the seeds, seen afterwards and on the same data,
which is in the grid's favour. A run that diverged counts as infinitely bad. The grid's runs are always needed.

Peak memory on a CPU is that of the whole process, libraries and data included, so differences of a few MB say nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from .constants import CALIBRATED, CONSTANTS, DOCUMENTED, KINDS, runs_of
from .methods import ALPHAS, BETAS, LEARNING_RATE_FREE, grid_rates, knob_name, single_rate, with_grid
from .run import Key, Row, add_choices, keys, read_rows
from .tasks import IS_HIGHER_BETTER, METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Mapping[Key, Row]
BEST = "best of the grid"
NUM_RESAMPLES = 10_000
# Okabe and Ito's colours, which the colour-blind can tell apart, and two greys; the markers do it in black and white.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "0.5", "0.85"]
MARKERS = "os^DvP*Xp<"


def check_complete(rows: Rows, wanted: Sequence[Key]) -> None:
    """
    Raise a `ValueError` unless every wanted run is there, and all of a task had the same number of steps.

    Args:
        rows (`Mapping`): the runs that there are.
        wanted (`Sequence`): task, method and seed of the runs that must be there.
    """
    missing = [key for key in wanted if key not in rows]
    if missing:
        raise ValueError(f"{len(missing)} runs are missing: " + ", ".join(map(str, missing)))
    for task in {task for task, _, _ in wanted}:
        budgets = {rows[key]["budget"] for key in wanted if key[0] == task}
        if len(budgets) > 1:
            raise ValueError(f"The runs of {task!r} have different numbers of steps: {sorted(budgets)}")


def cost(row: Row) -> float:
    """The metric, with the sign that makes less better; infinite if it is not a number."""
    value = -row["metric"] if IS_HIGHER_BETTER[row["task"]] else row["metric"]
    return math.inf if math.isnan(value) else value


def best_of(rows: Rows, task: str, methods: Sequence[str], seeds: Sequence[int]) -> str:
    """The method with the best mean over the seeds."""
    return min(methods, key=lambda name: mean(cost(rows[task, name, seed]) for seed in seeds))


def best_of_grid(rows: Rows, task: str, seeds: Sequence[int]) -> str:
    """The best of the methods that are the rates of the grid, seen afterwards."""
    return best_of(rows, task, with_grid(["grid"], task), seeds)


def regret(rows: Rows, task: str, method: str, seeds: Sequence[int]) -> list[float]:
    """Regret in percent, by seed; `BEST` is the grid's best rate."""
    best = best_of_grid(rows, task, seeds)
    reference = mean(cost(rows[task, best, seed]) for seed in seeds)
    name = best if method == BEST else method
    return [100 * (cost(rows[task, name, seed]) - reference) / abs(reference) for seed in seeds]


def regrets(rows: Rows, tasks: Sequence[str], method: str, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Regret in percent, of shape `(tasks, seeds)`."""
    return np.array([regret(rows, task, method, seeds) for task in tasks])


def calibrated_rate(rows: Rows, task: str, seeds: Sequence[int]) -> float:
    """
    The rate with the least mean regret on the other tasks of the same kind whose grid is in `rows`.

    It is one that all of their grids have. A kind with one task has nothing to be calibrated on, and takes the highest
    documented rate.
    """
    others = [
        other
        for other, kind in KINDS.items()
        if kind == KINDS[task] and other != task and all(key in rows for key in keys([other], ["grid"], seeds))
    ]
    rates = [rate for rate in grid_rates(task) if all(rate in grid_rates(other) for other in others)]
    if not others:
        return DOCUMENTED[KINDS[task]][-1]
    return min(rates, key=lambda rate: regrets(rows, others, single_rate(rate), seeds).mean())


def with_constants(rows: Rows, tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Rows:
    """
    `rows`, and for those of `methods` that are among `CONSTANTS` a row each of their own.

    It is that of their best run, with the steps of the others as a search.
    """
    made = dict(rows)
    for task in tasks:
        for method in [method for method in methods if method in CONSTANTS]:
            names = (
                [single_rate(calibrated_rate(rows, task, seeds))] if method == CALIBRATED else runs_of(method, task)
            )
            for seed in seeds:
                best, *others = sorted((rows[task, name, seed] for name in names), key=cost)
                made[task, method, seed] = {**best, "search_steps": sum(row["steps"] for row in others)}
    return made


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """
    Bootstrap interval of 95 % for the mean of `values`, of shape `(tasks, seeds)`.

    Tasks are drawn with replacement, and for each of them seeds: other tasks and other seeds might have come.
    """
    generator = np.random.default_rng(0)
    num_tasks, num_seeds = values.shape
    tasks = generator.integers(num_tasks, size=(NUM_RESAMPLES, num_tasks, 1))
    seeds = generator.integers(num_seeds, size=(NUM_RESAMPLES, num_tasks, num_seeds))
    # No interpolation, since some may be infinite.
    means = np.sort(values[tasks, seeds].mean((1, 2)))
    return float(means[round(0.025 * NUM_RESAMPLES)]), float(means[round(0.975 * NUM_RESAMPLES) - 1])


def mean_ranks(rows: Rows, tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> dict[str, float]:
    """Place among `methods`, 1 the best, averaged over tasks and seeds; equal metrics share their places."""
    places = [rankdata([cost(rows[task, name, seed]) for name in methods]) for task in tasks for seed in seeds]
    return dict(zip(methods, np.mean(places, axis=0).tolist(), strict=True))


def extra_memory(rows: Rows, task: str, method: str, seeds: Sequence[int]) -> float:
    """Mean peak memory over that of the grid's runs, in MB."""
    memory, grid = (
        mean(rows[task, name, seed]["peak_memory"] for name in names for seed in seeds)
        for names in ([method], with_grid(["grid"], task))
    )
    return (memory - grid) / 1e6


def search_share(rows: Rows, task: str, method: str, seeds: Sequence[int]) -> float:
    """Mean share of the budget that the search took, in percent."""
    return 100 * mean(rows[task, method, seed]["search_steps"] / rows[task, method, seed]["budget"] for seed in seeds)


def task_table(rows: Rows, task: str, methods: Sequence[str], seeds: Sequence[int]) -> str:
    """One task: the metric, and what it cost."""
    header = [METRICS[task].removeprefix("eval_"), "by seed", "regret, %", "peak learning rate", "search, % of steps"]
    lines = []
    for name in with_grid(methods, task):
        group = [rows[task, name, seed] for seed in seeds]
        lines.append(
            [
                name,
                f"{mean(row['metric'] for row in group):.4f}",
                " ".join(f"{row['metric']:.4f}" for row in group),
                signed(mean(regret(rows, task, name, seeds))),
                " ".join(f"{row['peak_learning_rate']:.2g}" for row in group),
                f"{search_share(rows, task, name, seeds):.0f}",
                signed(extra_memory(rows, task, name, seeds), 0),
            ]
        )
    return markdown(["method", *header, "extra memory, MB"], lines)


def summary_table(rows: Rows, tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> str:
    """All tasks: regret with its interval and its worst case, rank among several, tasks won, and means of the cost."""
    free = [method for method in methods if method in LEARNING_RATE_FREE]
    ranks = mean_ranks(rows, tasks, free, seeds) if len(free) > 1 else {}
    ours = regrets(rows, tasks, "exptest", seeds).mean(1) if "exptest" in methods else None
    lines = []
    for method in [BEST, *(method for method in methods if method != "grid")]:
        table = regrets(rows, tasks, method, seeds)
        low, high = interval(table)
        task, seed = np.unravel_index(table.argmax(), table.shape)
        # The best rate of the grid is another method on each task.
        names = {t: best_of_grid(rows, t, seeds) if method == BEST else method for t in tasks}
        memory, search = (
            mean(function(rows, t, name, seeds) for t, name in names.items())
            for function in (extra_memory, search_share)
        )
        is_compared = ours is not None and method != "exptest"
        lines.append(
            [
                method,
                f"{signed(table.mean())} [{signed(low)}, {signed(high)}]",
                f"{signed(table[task, seed])} ({tasks[task]}, seed {seeds[seed]})",
                *([f"{ranks[method]:.2f}" if method in ranks else ""] if ranks else []),
                f"{(ours < table.mean(1)).sum()} of {len(tasks)}" if is_compared else "",
                f"{search:.0f}",
                signed(memory, 0),
            ]
        )
    header = ["method", "mean regret, % [95 %]", "worst regret, %"]
    header += [f"mean rank of {len(free)}"] if ranks else []
    header += ["exptest better on", "search, % of steps"]
    return markdown([*header, "extra memory, MB"], lines)


def kind_table(rows: Rows, tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> str:
    """Mean regret in percent of each method, by the kind of training and over all tasks."""
    kinds = {kind: [task for task in tasks if KINDS[task] == kind] for kind in dict.fromkeys(KINDS.values())}
    lines = [
        [f"{name} ({', '.join(group)})", *(signed(regrets(rows, group, method, seeds).mean()) for method in methods)]
        for name, group in kinds.items()
        if group
    ]
    over_all = [signed(regrets(rows, tasks, method, seeds).mean()) for method in methods]
    return markdown(["regret, %", *methods], [*lines, [f"all {len(tasks)} tasks", *over_all]])


def knob_table(rows: Rows, task: str, preset: str, seeds: Sequence[int]) -> str:
    """Mean metric of a preset by alpha (down) and beta (across)."""
    lines = [
        [
            f"alpha {alpha:g}",
            *(
                f"{mean(rows[task, knob_name(preset, alpha, beta), seed]['metric'] for seed in seeds):.4f}"
                for beta in BETAS
            ),
        ]
        for alpha in ALPHAS
    ]
    return markdown(["", *(f"beta {beta:g}" for beta in BETAS)], lines)


def signed(value: float, digits: int = 2) -> str:
    """With a sign; the sum makes a zero of a negative one."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def circumstances(rows: Rows, wanted: Sequence[Key]) -> str:
    """Budgets, machines and versions of the runs, as a Markdown list."""
    budgets = {task: rows[task, method, seed]["budget"] for task, method, seed in wanted}
    machines = {
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, GPU: {m['gpu'] or 'none'}"
        for m in (rows[key]["machine"] for key in wanted)
    }
    packages = {f"{name} {version}" for key in wanted for name, version in rows[key]["versions"].items()}
    return "\n".join(
        [
            "- Budgets in optimizer steps: " + ", ".join(f"{task} {budget}" for task, budget in budgets.items()),
            "- Machines: " + "; ".join(sorted(machines)),
            "- Versions: " + ", ".join(sorted(packages)),
        ]
    )


def draw(rows: Rows, tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Figure:
    """Regret of every run by method, one marker a task, with the mean and its interval; less is better."""
    from matplotlib.figure import Figure

    names = [BEST, *(method for method in methods if method != "grid")]
    tables = {name: regrets(rows, tasks, name, seeds) for name in names}
    finite = [abs(value) for table in tables.values() for value in table.flat if math.isfinite(value)]
    limit = 3 * max(10.0, *finite)
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(names)), layout="constrained")
    ax = figure.subplots()
    for place, name in enumerate(names):
        # Diverged runs stand at the right edge.
        shown = np.minimum(tables[name], limit)
        for task, color, marker, row in zip(tasks, COLORS, MARKERS, shown, strict=False):
            label = task if place == 0 else None
            y = [place - 0.12] * len(row)
            ax.scatter(row, y, s=24, color=color, marker=marker, edgecolor="black", linewidth=0.4, label=label)
        average = min(tables[name].mean(), limit)
        ax.hlines(place + 0.2, *np.minimum(interval(tables[name]), limit), color="black", linewidth=1.5)
        ax.plot(average, place + 0.2, marker="|", color="black", markersize=9, markeredgewidth=2)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0.9)
    ax.set_xscale("symlog", linthresh=1)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="regret against the best rate of the grid, %, less is better", xlim=(None, 1.3 * limit))
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    if any(not np.isfinite(table).all() for table in tables.values()):
        ax.axvline(limit, color="gray", linewidth=0.8, linestyle=":")
        ax.annotate("diverged", (limit, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    ax.plot([], [], marker="|", color="black", markeredgewidth=2, label="mean and 95 % interval")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON lines from run.py")
    add_choices(parser)
    presets = ["exptest", "exptest paper"]
    parser.add_argument("--knobs", choices=presets, help="only the metric of this preset by alpha and beta")
    parser.add_argument("--summary", action="store_true", help="without the tables of single tasks")
    parser.add_argument("--figure", type=Path, help="file for a figure of the regret; the suffix says the format")
    options = parser.parse_args()
    rows = read_rows(options.rows)
    if options.knobs is not None:
        check_complete(rows, keys(options.tasks, [f"{options.knobs} knobs"], options.seeds))
        for task in options.tasks:
            print(f"{task}, {options.knobs}:\n\n{knob_table(rows, task, options.knobs, options.seeds)}\n")
        return
    methods = options.methods if "grid" in options.methods else ["grid", *options.methods]
    wanted = keys(options.tasks, methods, options.seeds)
    check_complete(rows, wanted)
    rows = with_constants(rows, options.tasks, methods, options.seeds)
    print(summary_table(rows, options.tasks, methods, options.seeds))
    if len(options.tasks) > 1:
        compared = [method for method in methods if method != "grid"]
        print(f"\nBy the kind of training:\n\n{kind_table(rows, options.tasks, compared, options.seeds)}")
    for task in [] if options.summary else options.tasks:
        print(f"\n{task}:\n\n{task_table(rows, task, methods, options.seeds)}")
    print(f"\n{circumstances(rows, wanted)}")
    if options.figure is not None:
        draw(rows, options.tasks, methods, options.seeds).savefig(options.figure, dpi=200)


if __name__ == "__main__":
    main()
