# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Table of ExpTest at other lengths of the tasks: Markdown, every number from the files.

    python -m examples.benchmarks.lengths grids.jsonl ablation.jsonl

The files hold runs of `run.py` with `--steps`, or of `ablation.py`. Of a task and length, the best rate is that of the
grid's which has the best mean over the seeds that ExpTest has; how far the grid goes is up to who made the runs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from .run import Row
from .tables import cost, markdown, signed
from .tasks import NUM_STEPS

Runs = dict[tuple[str, int], dict[str, dict[int, Row]]]


def rows_by_length(paths: Sequence[Path]) -> Iterator[tuple[tuple[str, int], Row]]:
    """Each row of the files, with its task and number of steps, which `ablation.py` does not write."""
    for row in (json.loads(line) for path in paths for line in path.read_text().splitlines()):
        yield (row["task"], row.get("budget", NUM_STEPS.get(row["task"]))), row


def read_runs(paths: Sequence[Path]) -> Runs:
    """Runs by task and number of steps, then by method and seed; of the same run, the first."""
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    for key, row in rows_by_length(paths):
        runs[key][row["method"]].setdefault(row["seed"], row)
    return runs


def table(runs: Runs) -> str:
    """A line for each task and length at which there is ExpTest."""
    lines = []
    for (task, num_steps), methods in sorted(runs.items()):
        if "exptest" not in methods:
            continue
        ours = methods["exptest"]
        seeds = sorted(ours)
        costs = {
            name: mean(cost(by_seed[seed]) for seed in seeds)
            for name, by_seed in methods.items()
            if set(seeds) <= set(by_seed)
        }
        best = min((name for name in costs if name.startswith("grid ")), key=costs.__getitem__)
        lines.append(
            [
                task,
                str(num_steps),
                f"{abs(costs[best]):.4f} at {best.split()[1]}",
                f"{abs(costs['exptest']):.4f}",
                " ".join(f"{ours[seed]['metric']:.4f}" for seed in seeds),
                " ".join(f"{ours[seed]['peak_learning_rate']:.2g}" for seed in seeds),
                signed(100 * (costs["exptest"] - costs[best]) / abs(costs[best])),
                f"{100 * mean(ours[seed]['search_steps'] / num_steps for seed in seeds):.0f}",
            ]
        )
    header = ["task", "steps in all", "best of the grid", "exptest", "by seed", "highest rates", "regret, %"]
    return markdown([*header, "looks, % of steps"], lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with runs")
    print(table(read_runs(parser.parse_args().files)))


if __name__ == "__main__":
    main()
