# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
The MNIST experiment of the ExpTest paper: softmax regression with plain SGD at three batch sizes.

    python examples/paper/mnist.py
    python examples/paper/mnist.py --dataset mnist.npz --figure mnist.png
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor, nn

from hf_exptest import ExpTestConfig, ExpTestScheduler, learning_rate_upper_bound

# Test accuracy in percent by batch size: mean and standard deviation over five runs.
PUBLISHED = {32: (92.30, 0.07), 512: (91.63, 0.14), 2048: (90.58, 0.08)}


class Data(NamedTuple):
    """Images as rows of pixels, and their digits."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


class Run(NamedTuple):
    """What one training run gave: its accuracy in percent, and by step its losses and learning rates."""

    accuracy: float
    losses: list[float]
    learning_rates: list[float]
    decisions: Counter[str]


def load_data(dataset: str) -> Data:
    """MNIST from an .npz file with arrays named like the fields of `Data`, or from the Hub."""
    if dataset.endswith(".npz"):
        with np.load(dataset) as file:
            arrays = [file[name] for name in Data._fields]
    else:
        splits = load_dataset(dataset).with_format("numpy")
        arrays = [splits[split][column][:] for split in ("train", "test") for column in ("image", "label")]
    x_train, y_train, x_test, y_test = (torch.as_tensor(np.asarray(array)) for array in arrays)
    return Data(x_train.flatten(1).float(), y_train.long(), x_test.flatten(1).float(), y_test.long())


def normalized(data: Data) -> Data:
    """One mean and one deviation for all pixels, as in the paper's training; its bound has one per pixel."""
    mean, deviation = data.x_train.mean(), data.x_train.std()
    return data._replace(x_train=(data.x_train - mean) / deviation, x_test=(data.x_test - mean) / deviation)


def train(data: Data, learning_rate: float, batch_size: int, epochs: int, seed: int) -> Run:
    """Train one model from scratch, with the rules and the settings of the paper."""
    torch.manual_seed(seed)
    model = nn.Linear(data.x_train.shape[1], 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    scheduler = ExpTestScheduler(optimizer, ExpTestConfig.paper(beta=0.33))
    losses, learning_rates = [], []
    for _ in range(epochs):
        for batch in torch.randperm(len(data.x_train)).split(batch_size):
            loss = nn.functional.cross_entropy(model(data.x_train[batch]), data.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            learning_rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.observe(loss)
            scheduler.step()
            losses.append(loss.item())
    with torch.no_grad():
        is_right = model(data.x_test).argmax(1) == data.y_test
    decisions = Counter(entry["decision"] for entry in scheduler.history)
    return Run(100 * is_right.double().mean().item(), losses, learning_rates, decisions)


def save_figure(path: str, runs: dict[int, Run], epochs: int) -> None:
    """Loss (averaged over half an epoch) and learning rate of one run per batch size."""
    from matplotlib.figure import Figure

    figure = Figure()
    loss_axes, rate_axes = figure.subplots(2, sharex=True)
    for batch_size, run in runs.items():
        epoch = np.linspace(0, epochs, len(run.losses), endpoint=False)
        length = max(1, len(run.losses) // (2 * epochs))
        smooth = np.convolve(run.losses, np.full(length, 1 / length), mode="valid")
        loss_axes.plot(epoch[length - 1 :], smooth, label=f"batch size {batch_size}")
        rate_axes.step(epoch, run.learning_rates, where="post")
    loss_axes.set(ylabel="training loss", yscale="log")
    loss_axes.legend()
    rate_axes.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="ExpTest on MNIST, as in the paper.")
    parser.add_argument("--dataset", default="ylecun/mnist", help="Hub name, or a local .npz file")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=list(PUBLISHED), metavar="N", help="one row each"
    )
    parser.add_argument("--epochs", type=int, default=5, help="passes over the data (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="number of runs per batch size")
    parser.add_argument("--figure", help="file for a figure of the first run of each batch size")
    args = parser.parse_args(argv)
    # A model this small only loses time when threads share it.
    torch.set_num_threads(1)

    data = load_data(args.dataset)
    bound = learning_rate_upper_bound(data.x_train)
    print(f"upper bound, and starting rate: {bound:.6f}\n")
    data = normalized(data)

    print("| batch size | test accuracy, % | published | final learning rate | detected, continue, decay |")
    print("|---|---|---|---|---|")
    first_runs = {}
    for batch_size in args.batch_sizes:
        runs = [train(data, bound, batch_size, args.epochs, seed) for seed in range(args.seeds)]
        first_runs[batch_size] = runs[0]
        # The standard deviation is that of the runs themselves (divisor n), like the published one.
        accuracies = np.array([run.accuracy for run in runs])
        published = "{:.2f} ± {:.2f}".format(*PUBLISHED[batch_size]) if batch_size in PUBLISHED else ""
        rates = sorted(run.learning_rates[-1] for run in runs)
        decisions = sum((run.decisions for run in runs), Counter())
        print(
            f"| {batch_size} | {accuracies.mean():.2f} ± {accuracies.std():.2f} | {published}"
            f" | {rates[0]:.2g} to {rates[-1]:.2g}"
            f" | {', '.join(str(decisions[name]) for name in ('detected', 'continue', 'decay'))} |",
            flush=True,
        )
    if args.figure:
        save_figure(args.figure, first_runs, args.epochs)


if __name__ == "__main__":
    main()
