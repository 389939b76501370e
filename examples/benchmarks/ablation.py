# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
What each part of the default preset is worth: one JSON line a run, and a table of them.

    python -m examples.benchmarks.ablation --data DATA --tasks characters --seeds 0 1 2 --out ablation.jsonl

A run that the file already holds is not made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers.utils import logging

from hf_exptest import ExpTestCallback

from .tasks import METRICS, NUM_STEPS, make_trainer

# Settings of ExpTest, or, where there is a learning rate, a baseline: warm-up over 10 % and linear decay.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear decay": {"cooldown": 0.9},
    "windows of 10 %": {"window": 0.1},
    "beta 1/2": {"beta": 0.5},
    **{f"grid {rate:g}": {"grid": rate} for rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)},
}


def run(task: str, variant: str, seed: int, data: Path) -> dict[str, Any]:
    """Train once; everything that the table needs, as plain values."""
    settings = dict(VARIANTS[variant])
    rate = settings.pop("grid", None)
    callback = ExpTestCallback(**settings)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            task,
            data,
            seed,
            NUM_STEPS[task],
            folder,
            [callback] if rate is None else [],
            **({} if rate is None else {"learning_rate": rate, "warmup_steps": NUM_STEPS[task] // 10}),
        )
        trainer.train()
        metric = trainer.evaluate()[METRICS[task]]
    search = callback.search
    return {
        "task": task,
        "variant": variant,
        "seed": seed,
        "metric": metric,
        "learning_rate": rate if search is None else search.learning_rate,
        "search_steps": 0 if search is None else search.num_steps,
        "search_seconds": 0.0 if search is None else round(search.seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
        "decays": sum(entry["decision"] == "decay" for entry in callback.history),
        "rungs": []
        if search is None
        else [(rung.learning_rate, rung.num_steps, rung.end_loss, rung.p_value) for rung in search.rungs],
        "torch": torch.__version__,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean, and each seed, of the metric, with the rate and the cost of the search."""
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["task"], row["variant"], row["seed"])):
        groups[row["task"], row["variant"]].append(row)
    lines = [
        "| task | variant | mean | by seed | learning rates | decays | search steps | search seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, variant), group in groups.items():
        cells = [
            task,
            variant,
            f"{mean(r['metric'] for r in group):.4f}",
            " ".join(f"{r['metric']:.3f}" for r in group),
            " ".join(f"{r['learning_rate']:.2g}" for r in group),
            " ".join(str(r["decays"]) for r in group),
            f"{mean(r['search_steps'] for r in group):.0f}",
            f"{mean(r['search_seconds'] for r in group):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Make the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see tasks.py")
    parser.add_argument("--tasks", nargs="+", default=list(METRICS), choices=list(METRICS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; added to")
    options = parser.parse_args()
    logging.set_verbosity_error()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["task"], row["variant"], row["seed"]) for row in rows}
    for task in options.tasks:
        for seed in options.seeds:
            for variant in options.variants:
                if (task, variant, seed) in done:
                    continue
                row = run(task, variant, seed, options.data)
                rows.append(row)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
