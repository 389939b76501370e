# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Upper bounds on the learning rate."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

# Up to here a features x features matrix is small (8 MB) and quicker than several passes over the data.
_MOST_FEATURES_FOR_A_MATRIX = 1024
# Rows of an array are converted to float64 in pieces of this many numbers (32 MB), not all at once.
_NUMBERS_AT_ONCE = 2**22
# Ends that differ by less than this share of what the best one gains are equal: DPO losses of 1e-9 and 1e-30 were told
# apart without it, and followed up to a rate of 0.8 (tests/test_search.py).
TIE = 1e-3


def learning_rate_upper_bound(inputs: Any) -> float:
    """
    Largest learning rate at which gradient descent on a linear model of these inputs does not diverge.

    For least squares, with the loss `mean(residual ** 2) / 2`, gradient descent converges if and only if the learning
    rate is below `2 / lambda_max(X' X / n)`, with `X` the inputs standardised to mean 0 and variance 1 column by
    column (columns that never change become 0). This equals `2 * n / ((n - 1) * lambda_max(Sigma))` with `Sigma` the
    sample covariance of `X`; ExpTest (Chaudhry & Mizuno, 2024, arXiv 2411.16975) starts training there.

    With many features no matrix of features x features is formed: the Lanczos method needs only products with `X`,
    which go batch by batch. It reads the inputs a few dozen times, so they must be the same each time (no random
    augmentation). Up to 1024 features take two passes.

    Args:
        inputs (array or tensor of shape `(n, ...)`, or iterable of batches of shape `(rows, ...)`):
            Rows are samples; further dimensions are flattened to features. Any real type, on any device. An iterable
            (a list, a `DataLoader` that yields tensors) is read more than once; an iterator is first collected into
            a list.

    Returns:
        `float`: The bound, the same for the same inputs.

    Raises:
        `ValueError`: If there are fewer than two rows, a value is not finite, every column is constant, or batches
            differ in their number of features.
        `TypeError`: If the inputs or a batch are neither an array nor a tensor.

    Example:

        >>> import numpy as np
        >>> from hf_exptest import learning_rate_upper_bound
        >>> inputs = np.random.default_rng(0).normal(size=(1000, 8))
        >>> rate = learning_rate_upper_bound(inputs)
        >>> batches = [inputs[:500], inputs[500:]]
        >>> print(f"{rate:.3f} {learning_rate_upper_bound(batches):.3f}")
        1.802 1.802
    """
    if not _is_array(inputs):
        if not isinstance(inputs, Iterable):
            raise TypeError(
                f"inputs must be an array, a tensor or an iterable of them, but are a {type(inputs).__name__}"
            )
        if isinstance(inputs, Iterator):
            inputs = list(inputs)
    mean, inverse_deviation, rows = _standardization(inputs)
    if len(mean) <= _MOST_FEATURES_FOR_A_MATRIX:
        largest = _largest_eigenvalue_of_matrix(inputs, mean, inverse_deviation, rows)
    else:
        largest = _largest_eigenvalue_by_lanczos(inputs, mean, inverse_deviation, rows)
    return 2.0 / largest


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__")


def _matrices(inputs: Any) -> Iterator[Matrix]:
    """The inputs as float64 matrices of shape `(rows, features)`, a piece at a time."""
    for batch in [inputs] if _is_array(inputs) else inputs:
        if not _is_array(batch):
            raise TypeError(
                f"a batch must be an array or a tensor of inputs, but is a {type(batch).__name__}; for a loader of "
                "(inputs, labels) pairs pass [inputs for inputs, labels in loader]"
            )
        shape = tuple(batch.shape)
        if len(shape) < 2:
            raise ValueError(f"inputs must have shape (rows, features), but an array has shape {shape}")
        features = int(np.prod(shape[1:]))
        step = max(1, _NUMBERS_AT_ONCE // max(features, 1))
        for start in range(0, shape[0], step):
            yield _to_float64(batch[start : start + step]).reshape(-1, features)


def _to_float64(values: Any) -> Matrix:
    # A tensor may be on a GPU, require a gradient, or have a type that NumPy lacks. First to the CPU: some devices
    # have no float64.
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _standardization(inputs: Any) -> tuple[Vector, Vector, int]:
    """Mean and inverse standard deviation of each column (0 for a constant column), and the number of rows."""
    rows = 0
    origin = mean = squares = np.zeros(0)
    for matrix in _matrices(inputs):
        if rows == 0:
            # Counted from the first row, a constant column is exactly zero and a large common offset does no harm.
            origin = matrix[0].copy()
            mean, squares = np.zeros_like(origin), np.zeros_like(origin)
        if matrix.shape[1] != len(origin):
            raise ValueError(f"all batches must have {len(origin)} features like the first, got {matrix.shape[1]}")
        if not np.isfinite(matrix).all():
            raise ValueError(f"inputs must be finite, but contain {matrix[~np.isfinite(matrix)][0]}")
        # Chan, Golub & LeVeque (1983): merge the sums of squares about the two means.
        centred = matrix - origin
        count, batch_mean = len(matrix), centred.mean(axis=0)
        centred -= batch_mean
        step = batch_mean - mean
        squares += np.einsum("ij,ij->j", centred, centred) + step**2 * (rows * count / (rows + count))
        mean += step * (count / (rows + count))
        rows += count
    if rows < 2:
        raise ValueError(f"inputs must have at least 2 rows to have a variance, but have {rows}")
    mean = mean + origin
    variance = squares / rows
    # Rounding alone gives a constant column a variance up to this (the rule of scikit-learn's StandardScaler).
    epsilon = rows * np.finfo(np.float64).eps
    varies = variance > epsilon * variance + (epsilon * mean) ** 2
    if not varies.any():
        raise ValueError(
            f"all {len(mean)} columns of the {rows} rows are constant; at least one must vary to give a bound"
        )
    return mean, np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0), rows


def _largest_eigenvalue_of_matrix(inputs: Any, mean: Vector, inverse_deviation: Vector, rows: int) -> float:
    features = len(mean)
    product = np.zeros((features, features))
    for matrix in _matrices(inputs):
        standardized = (matrix - mean) * inverse_deviation
        product += standardized.T @ standardized
    return float(eigh(product / rows, eigvals_only=True, subset_by_index=(features - 1, features - 1))[0])


def _largest_eigenvalue_by_lanczos(inputs: Any, mean: Vector, inverse_deviation: Vector, rows: int) -> float:
    def multiply(vector: Vector) -> Vector:
        result = np.zeros(len(mean))
        for matrix in _matrices(inputs):
            standardized = (matrix - mean) * inverse_deviation
            result += standardized.T @ (standardized @ vector.ravel())
        return result / rows

    features = len(mean)
    operator = LinearOperator((features, features), matvec=multiply, dtype=np.float64)
    # A fixed start makes the bound reproducible; a random one is not orthogonal to the eigenvector sought. The error
    # of an eigenvalue is of the order of the tolerance squared.
    start = np.random.default_rng(0).standard_normal(features)
    return float(eigsh(operator, k=1, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)[0])


def ray_bound(loss_along: Callable[[float], float]) -> float:
    """
    Distance along a ray at which the loss is lowest: the upper bound of the learning rate along an update direction.

    With `d` the update at learning rate 1, the linearized loss is `L(theta + s*d) ~ L + s*g'd + s^2/2 * d'Hd`, lowest
    at `s = -g'd / d'Hd`. For least squares with gradient descent along the steepest direction, twice that is section
    1's bound `2 / lambda_max`.

    Args:
        loss_along (`Callable[[float], float]`):
            Loss after moving by a distance along the ray; the same for the same distance. Non-finite counts as high.

    Returns:
        `float`: the best distance, to a factor of two, between 1e-30 and 1e3; the shortest of those where the loss
        falls as far but for a thousandth. Where noise hides the valley and the loss falls nowhere, the largest
        distance that raises it by no more than one percent.

    Raises:
        `ValueError`: if the loss rises by more at every distance, or is not finite at none.
    """

    def loss(distance: float) -> float:
        value = loss_along(distance)
        return value if math.isfinite(value) else math.inf

    start = loss(0.0)
    if not math.isfinite(start):
        raise ValueError("The loss is not finite before any step.")
    # The weights of half-precision models make losses rise and fall by rounding alone: less than this is no rise.
    ceiling = start + 0.01 * abs(start)
    tried: dict[float, float] = {}
    for exponent in range(-8, 4):
        tried[10.0**exponent] = loss(10.0**exponent)
        # Not yet where it has risen by one percent: a DPO loss in bfloat16 did by rounding, a thousand times below its
        # valley.
        if tried[10.0**exponent] > start + 0.5 * abs(start):
            break
    for exponent in range(-9, -31, -1):
        # Inputs that are not scaled may want rates far below those of any network: on, while the lowest is best.
        best = min(tried, key=lambda distance: (tried[distance], distance))
        if best > min(tried) or start <= tried[best] <= ceiling:
            break
        tried[10.0**exponent] = loss(10.0**exponent)
    coarse = min(tried, key=tried.__getitem__)
    if not tried[coarse] < start:
        harmless = [distance for distance, value in tried.items() if value <= ceiling]
        if not harmless:
            raise ValueError(f"The loss, {start!r}, only rises along the ray; the lowest seen is {tried[coarse]!r}.")
        return max(harmless)
    for factor in (0.2, 0.5, 2.0, 5.0):
        tried[coarse * factor] = loss(coarse * factor)
    # A loss that is all but zero from some distance on, as of DPO, goes on falling for long.
    levels = dict(zip(tried, levelled(list(tried.values()), start), strict=True))
    return min(levels, key=lambda distance: (levels[distance], distance))


def levelled(losses: Sequence[float], untouched: float) -> list[float]:
    """The same losses, but those that differ from the lowest by next to nothing of what it gains are equal to it."""
    lowest = min(losses)
    margin = TIE * (untouched - lowest) if lowest < untouched else 0.0
    return [lowest if loss <= lowest + margin else loss for loss in losses]
