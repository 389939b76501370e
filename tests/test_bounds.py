# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from hf_exptest import bounds
from hf_exptest.bounds import learning_rate_upper_bound

DATA = Path(os.environ.get("EXPTEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(params=["matrix", "lanczos"])
def method(request, monkeypatch):
    if request.param == "lanczos":
        monkeypatch.setattr(bounds, "_MOST_FEATURES_FOR_A_MATRIX", 0)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((60, 8)) @ rng.standard_normal((8, 8)) + 5.0


def slow_upper_bound(inputs):
    """The paper's formula, from the sample covariance of the standardised inputs."""
    n = len(inputs)
    covariance = np.cov(StandardScaler().fit_transform(inputs), rowvar=False)
    return 2 * n / ((n - 1) * np.linalg.eigvalsh(covariance)[-1])


def data_file(*parts):
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not there")
    return path


# --- Known values ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("method")
def test_digits():
    assert learning_rate_upper_bound(load_digits().data) == pytest.approx(0.272454, abs=5e-7)


def test_mnist():
    with np.load(data_file("mnist", "mnist.npz")) as arrays:
        assert learning_rate_upper_bound(arrays["x_train"]) == pytest.approx(0.049397, rel=1e-4)


@pytest.mark.usefixtures("method")
def test_california_housing():
    with open(data_file("california_housing", "housing.csv"), newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["total_bedrooms"]]
    column = {
        name: np.array([float(row[name]) for row in rows])
        for name in rows[0]
        if name not in ("ocean_proximity", "median_house_value")
    }
    inputs = np.column_stack(
        [
            column["median_income"],
            column["housing_median_age"],
            column["total_rooms"] / column["households"],
            column["total_bedrooms"] / column["households"],
            column["population"],
            column["population"] / column["households"],
            column["latitude"],
            column["longitude"],
        ]
    )
    assert learning_rate_upper_bound(inputs) == pytest.approx(0.98651, abs=5e-6)


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("shape", [(60, 8), (5, 40), (300, 3)])
def test_equals_slow_reference(shape):
    inputs = np.random.default_rng(1).gamma(1.0, 3.0, shape)
    assert learning_rate_upper_bound(inputs) == pytest.approx(slow_upper_bound(inputs), rel=1e-9)


def test_more_features_than_a_matrix_is_formed_for(monkeypatch):
    monkeypatch.setattr(bounds, "_largest_eigenvalue_of_matrix", None)
    inputs = np.random.default_rng(2).standard_normal((50, 1500))
    gram = StandardScaler().fit_transform(inputs)
    expected = 2 * 50 / np.linalg.eigvalsh(gram @ gram.T)[-1]
    assert learning_rate_upper_bound(inputs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("factor", "converges"), [(0.99, True), (1.01, False)])
def test_gradient_descent_converges_just_below_and_diverges_just_above(inputs, factor, converges):
    x = StandardScaler().fit_transform(inputs)
    rng = np.random.default_rng(3)
    targets = x @ rng.standard_normal(8)
    weights = rng.standard_normal(8)
    start = np.mean((x @ weights - targets) ** 2)
    rate = factor * learning_rate_upper_bound(inputs)
    for _ in range(1000):
        weights -= rate * x.T @ (x @ weights - targets) / len(x)
    end = np.mean((x @ weights - targets) ** 2)
    assert (end < start / 10) if converges else (end > 1e3 * start)


# --- Kinds of input ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize(
    "convert",
    [
        torch.tensor,
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: x.reshape(60, 2, 2, 2),
        lambda x: [x[:1], x[1:1], x[1:50], x[50:]],
        lambda x: [torch.tensor(x[:20]).reshape(20, 2, 4), torch.tensor(x[20:]).reshape(40, 2, 4)],
        lambda x: DataLoader(torch.tensor(x), batch_size=7, shuffle=True),
        lambda x: (x[i : i + 1] for i in range(60)),
        lambda x: iter([x]),
        np.asfortranarray,
    ],
    ids=["tensor", "gradient", "4d", "list", "tensors", "loader", "generator", "iterator", "fortran"],
)
def test_kinds_of_input(inputs, convert):
    assert learning_rate_upper_bound(convert(inputs)) == pytest.approx(slow_upper_bound(inputs), rel=1e-9)


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("convert", [lambda x: x, torch.tensor, lambda x: torch.tensor(x).to(torch.bfloat16)])
def test_integers_and_half_precision(convert):
    whole = np.random.default_rng(4).integers(0, 255, (50, 6)).astype(np.uint8)
    assert learning_rate_upper_bound(convert(whole)) == pytest.approx(slow_upper_bound(whole), rel=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensor_on_a_gpu(inputs):
    assert learning_rate_upper_bound(torch.tensor(inputs).cuda()) == pytest.approx(slow_upper_bound(inputs), rel=1e-9)


@pytest.mark.usefixtures("method")
def test_large_arrays_are_read_in_pieces(inputs, monkeypatch):
    monkeypatch.setattr(bounds, "_NUMBERS_AT_ONCE", 40)
    assert learning_rate_upper_bound(inputs) == pytest.approx(slow_upper_bound(inputs), rel=1e-9)


@pytest.mark.usefixtures("method")
def test_offset_and_scale_of_columns_do_not_matter(inputs):
    moved = inputs * np.logspace(-6, 6, 8) + np.logspace(-2, 8, 8)
    assert learning_rate_upper_bound(moved) == pytest.approx(slow_upper_bound(inputs), rel=1e-6)


@pytest.mark.usefixtures("method")
def test_constant_columns_do_not_count(inputs):
    constant = np.broadcast_to([0.0, 0.1, 1e6 / 3], (60, 3))
    assert learning_rate_upper_bound(np.hstack([constant, inputs])) == pytest.approx(
        slow_upper_bound(inputs), rel=1e-9
    )


@pytest.mark.usefixtures("method")
def test_same_inputs_give_the_same_bound_and_a_plain_float(inputs):
    first, second = learning_rate_upper_bound(inputs), learning_rate_upper_bound(inputs)
    assert first == second
    assert type(first) is float


# --- Wrong inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((0, 3)), "at least 2 rows .* but have 0"),
        ([], "at least 2 rows .* but have 0"),
        (np.ones((1, 3)), "at least 2 rows .* but have 1"),
        (np.ones(5), r"\(rows, features\), but an array has shape \(5,\)"),
        (np.array([[1.0, 2.0], [np.nan, 3.0]]), "finite, but contain nan"),
        ([np.ones((2, 2)), np.full((2, 2), -np.inf)], "finite, but contain -inf"),
        (np.full((4, 3), 0.1), "all 3 columns of the 4 rows are constant"),
        ([np.ones((2, 3)), np.ones((2, 4))], "3 features like the first, got 4"),
    ],
)
def test_wrong_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        learning_rate_upper_bound(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(3.0, "are a float"), ([(np.ones((2, 2)), np.ones(2))], "is a tuple"), ({"x": np.ones((2, 2))}, "is a str")],
)
def test_wrong_types(wrong, message):
    with pytest.raises(TypeError, match=message):
        learning_rate_upper_bound(wrong)
