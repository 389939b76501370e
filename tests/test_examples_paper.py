# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The scripts in examples/paper run from beginning to end, on small made data."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, Value

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[1] / "examples" / "paper"


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # By path: other packages may have installed a folder called "examples".
    spec = importlib.util.spec_from_file_location(f"paper_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images() -> dict[str, np.ndarray]:
    """Ten digits, each a bright row of its own in a noisy image of 10 x 10 pixels."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, rows in (("train", 400), ("test", 100)):
        labels = np.arange(rows) % 10
        pixels = rng.integers(0, 128, (rows, 10, 10))
        pixels[np.arange(rows), labels] += 127
        arrays[f"x_{split}"], arrays[f"y_{split}"] = pixels.astype(np.uint8), labels.astype(np.uint8)
    return arrays


def table_row(output: str, first_cell: str) -> list[str]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    (row,) = [row for row in rows if row[0] == first_cell]
    return row


def test_mnist_prints_a_table_and_saves_a_figure(images, tmp_path, monkeypatch, capsys):
    script = load_script("mnist", monkeypatch)
    np.savez(tmp_path / "digits.npz", **images)
    figure = tmp_path / "figure.png"

    arguments = ["--dataset", str(tmp_path / "digits.npz"), "--batch-sizes", "32", "--epochs", "10", "--seeds", "2"]
    script.main([*arguments, "--figure", str(figure)])

    row = table_row(capsys.readouterr().out, "32")
    assert float(row[1].split("±")[0]) > 90
    assert row[2] == "92.30 ± 0.07"
    assert figure.stat().st_size > 0


def test_mnist_reads_the_layout_of_the_hub(images, tmp_path, monkeypatch):
    script = load_script("mnist", monkeypatch)
    np.savez(tmp_path / "digits.npz", **images)
    # load_dataset takes a folder like a name on the Hub.
    features = Features({"image": Array2D((10, 10), "uint8"), "label": Value("int64")})
    for split in ("train", "test"):
        rows = {"image": images[f"x_{split}"], "label": images[f"y_{split}"].astype(np.int64)}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / f"{split}.parquet")

    from_file = script.load_data(str(tmp_path / "digits.npz"))
    from_hub = script.load_data(str(tmp_path / "hub"))

    for left, right in zip(from_file, from_hub, strict=True):
        assert left.dtype == right.dtype
        assert left.equal(right)


@pytest.fixture
def census_file(tmp_path) -> Path:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    rows = 300
    households = rng.integers(100, 1000, rows).astype(float)
    frame = pandas.DataFrame(
        {
            "longitude": rng.uniform(-124, -114, rows),
            "latitude": rng.uniform(32, 42, rows),
            "housing_median_age": rng.integers(1, 52, rows).astype(float),
            "total_rooms": households * rng.uniform(3, 8, rows),
            "total_bedrooms": households * rng.uniform(0.9, 1.2, rows),
            "population": households * rng.uniform(2, 4, rows),
            "households": households,
            "median_income": rng.uniform(1, 10, rows),
            "ocean_proximity": "INLAND",
        }
    )
    frame["median_house_value"] = 40_000 * frame["median_income"]
    frame.loc[7, "total_bedrooms"] = np.nan
    folder = tmp_path / "census"
    folder.mkdir()
    frame.to_csv(folder / "housing.csv", index=False)
    return folder / "housing.csv"


def test_california_housing_prints_a_table(census_file, monkeypatch, capsys):
    script = load_script("california_housing", monkeypatch)
    script.main(["--dataset", str(census_file), "--iterations", "300", "--seeds", "1"])

    output = capsys.readouterr().out
    assert "rows: 299" in output
    assert float(table_row(output, "0")[1]) < 1.0
    assert "published: 0.2846" in output


def test_california_housing_reads_the_layout_of_the_hub(census_file, monkeypatch):
    script = load_script("california_housing", monkeypatch)
    for left, right in zip(script.load_data(str(census_file)), script.load_data(str(census_file.parent)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_california_housing_starts_afresh_when_detect_rejects_a_rate(census_file, monkeypatch):
    script = load_script("california_housing", monkeypatch)
    parts = script.split_data(*script.load_data(str(census_file)))
    # At a hundred times the bound the first steps blow the weights up; no later rate could repair those.
    run = script.train(parts, 100.0, 300, 0)

    assert run.history[0]["decision"] == "decay"
    assert run.test_loss < 1.0


def test_california_housing_takes_the_default_preset(census_file, monkeypatch, capsys):
    # Where Python puts a script's own folder, so that it finds its neighbour.
    monkeypatch.syspath_prepend(FOLDER)
    script = load_script("california_housing_default", monkeypatch)
    script.main(["--dataset", str(census_file), "--iterations", "150", "--seeds", "1"])

    output = capsys.readouterr().out
    row = table_row(output, "0")
    # The target's own variance is far above one; a look of three trials at least has found a rate that learns.
    assert float(row[2]) < 1.0
    assert 1e-3 < float(row[3]) < 1.0
    assert 3 * 14 < int(row[5]) < 100
    assert f"test MSE {float(row[2]):.4f} ± 0.0000 (best hand-tuned: 0.2686)" in output
