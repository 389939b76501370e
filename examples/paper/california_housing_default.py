# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
The California housing experiment of the ExpTest paper with the default preset: no learning rate, no bound given.

    python examples/paper/california_housing_default.py --dataset housing.csv

Network, split and full batches are those of `california_housing.py`; SGD has a momentum of 0.9, as in the paper's
best hand-tuned entry (test MSE 0.2686). The test loss is that of the last weights: the cool-down is there to make them
the best. The loss on the training part cannot tell when a network begins to over-fit, so the length of the run is the
reader's choice, by the validation loss that is printed too. `--learning-rate 0.15` trains without a search.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from california_housing import Network, Part, load_data, make_parser, mean_squared_error, split_data
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from hf_exptest import ExpTestCallback


def train(
    parts: tuple[Part, Part, Part], iterations: int, seed: int, learning_rate: float | None
) -> tuple[list[float], ExpTestCallback]:
    """Train one model; the losses of the training, validation and test part, and the callback."""
    set_seed(seed)
    callback = ExpTestCallback(learning_rate=learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=Network(),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=iterations,
                per_device_train_batch_size=1,
                # The paper does not clip.
                max_grad_norm=0.0,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=seed,
            ),
            # One row, which is the whole training part.
            train_dataset=[{"x": parts[0].x, "labels": parts[0].y}],
            data_collator=lambda rows: rows[0],
            optimizer_cls_and_kwargs=(torch.optim.SGD, {"momentum": 0.9, "lr": 1e-3}),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    with torch.no_grad():
        return [mean_squared_error(trainer.model.layers, part).item() for part in parts], callback


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("The default preset of ExpTest on California housing.", 2000)
    parser.add_argument("--learning-rate", type=float, help="start from it, without a search")
    args = parser.parse_args(argv)
    # A model this small only loses time when threads share it.
    torch.set_num_threads(1)
    logging.set_verbosity_error()

    parts = split_data(*load_data(args.dataset))
    print("| seed | validation MSE | test MSE | learning rate found | decays | search steps |")
    print("|---|---|---|---|---|---|")
    losses = []
    for seed in range(args.seeds):
        (_, val_loss, test_loss), callback = train(parts, args.iterations, seed, args.learning_rate)
        losses.append((val_loss, test_loss))
        report = callback.report()
        decays = sum(entry["decision"] == "decay" for entry in report.history)
        search_steps = 0 if report.search is None else report.search.num_steps
        print(
            f"| {seed} | {val_loss:.4f} | {test_loss:.4f} | {report.starting_rate:.2g} | {decays} | {search_steps} |",
            flush=True,
        )
    # The standard deviation is that of the runs themselves (divisor n), like the published one.
    (val_mean, test_mean), (_, deviation) = np.mean(losses, axis=0), np.std(losses, axis=0)
    print(f"\nvalidation MSE {val_mean:.4f}, test MSE {test_mean:.4f} ± {deviation:.4f} (best hand-tuned: 0.2686)")


if __name__ == "__main__":
    main()
