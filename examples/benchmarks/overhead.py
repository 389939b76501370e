# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Time of an optimizer step with ExpTest over the same without, on any number of processes.

    torchrun --nproc_per_node 2 -m examples.benchmarks.overhead --model toy --cpu
    torchrun --nproc_per_node 2 -m examples.benchmarks.overhead --model minilm --cpu --steps 40

The two alternate in one run, since a machine's speed drifts. The search is left out: it is counted in steps elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from statistics import mean, median

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from hf_exptest import ExpTestCallback

# MiniLM-L6 with random weights, and a model of one layer whose step is all overhead.
MODELS = {
    "toy": {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "minilm": {"vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
}
# Steps at the start of a training that are not counted.
NUM_WARM = 5


def bert_config(size: dict[str, int]) -> BertConfig:
    """Of a size that is one of `MODELS`, with the usual ratio of its layers."""
    return BertConfig(**size, intermediate_size=4 * size["hidden_size"])


class Clock(TrainerCallback):
    """Seconds from the beginning of each step to the beginning of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of every step but the first few and the last."""
        return [after - before for before, after in itertools.pairwise(self.times[NUM_WARM:])]


def measure(
    config: BertConfig, num_steps: int, cpu: bool, bf16: bool, callbacks: list[TrainerCallback]
) -> list[float]:
    """Seconds of each step of one training."""
    torch.manual_seed(0)
    rows = [
        {"input_ids": torch.randint(config.vocab_size, (32,)), "labels": torch.tensor(i % 2)}
        for i in range(8 * num_steps)
    ]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=num_steps,
            per_device_train_batch_size=8,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=cpu,
            bf16=bf16,
        )
        model = BertForSequenceClassification(config)
        trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[*callbacks, clock])
        # Without a progress bar the Trainer prints its log, which would stand between the results.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds()


def alternate(model: str, num_steps: int, num_rounds: int, cpu: bool, bf16: bool) -> tuple[list[float], list[float]]:
    """Seconds of each step without ExpTest and with it, of trainings that take turns."""
    config = bert_config(MODELS[model])
    plain: list[float] = []
    tested: list[float] = []
    for _ in range(num_rounds):
        plain += measure(config, num_steps, cpu, bf16, [])
        tested += measure(config, num_steps, cpu, bf16, [ExpTestCallback(learning_rate=1e-4)])
    return plain, tested


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="toy", help="size of the BERT (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of each training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="trainings of each kind (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="stay off the GPU")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    options = parser.parse_args()
    logging.set_verbosity_error()
    plain, tested = alternate(options.model, options.steps, options.rounds, options.cpu, options.bf16)
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if world == 1 or torch.distributed.get_rank() == 0:
        print(
            f"{options.model}, {world} process(es): median {1000 * median(plain):.2f} ms a step without ExpTest,"
            f" {1000 * median(tested):.2f} ms with it; ratio of medians {median(tested) / median(plain):.4f},"
            f" of means {mean(tested) / mean(plain):.4f}"
        )
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
