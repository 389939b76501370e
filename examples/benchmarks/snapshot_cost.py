# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
What it costs the search to put everything back: time over that of an optimizer step, and host memory.

    python -m examples.benchmarks.snapshot_cost --cpu

For each model, fully fine-tuned and with LoRA, in one training: the time to take a snapshot, of one `reset()` after a
step (the search makes one before each trial) and of leaving it, over the median step of the Trainer; and the bytes of
the copies over those of the model. Nothing but the ratios is printed, since the machine's speed is not what is asked.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch._subclasses.fake_tensor import FakeTensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from hf_exptest.internals import find_trainer
from hf_exptest.snapshot import Snapshot

from .overhead import Clock, bert_config
from .tables import markdown

# BERT with random weights: two layers, and MiniLM-L6.
MODELS = {
    "bert-tiny": {"vocab_size": 30522, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "minilm": {"vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
}
METHODS = ["full", "lora"]
BATCH_SIZE = 8


class SnapshotClock(TrainerCallback):
    """Takes snapshots at the beginning of a training, as the search does, and notes what they cost."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self.seconds: dict[str, list[float]] = {"take": [], "reset": [], "leave": []}
        self.copied_bytes = self.model_bytes = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        trainer = find_trainer(self)
        # The Trainer sets it with its first batch, which is still to come.
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer.data_collator(trainer.train_dataset[:BATCH_SIZE])
        self.model_bytes = sum(parameter.nbytes for parameter in trainer.model_wrapped.parameters())
        for _ in range(self._num_rounds):
            self._round(trainer, dict(batch))

    def _round(self, trainer: Trainer, batch: dict[str, Any]) -> None:
        before = host_bytes()
        # Not this one, whose notes would be put back, too.
        others = [callback for callback in trainer.callback_handler.callbacks if callback is not self]
        snapshot = self._time("take", lambda: Snapshot(trainer, others).__enter__())
        self.copied_bytes = host_bytes() - before
        # As after a trial: weights have moved, and the optimizer has a state.
        trainer.training_step(trainer.model_wrapped, batch)
        trainer.optimizer.step()
        self._time("reset", snapshot.reset)
        self._time("leave", lambda: snapshot.__exit__(None, None, None))

    def _time(self, what: str, function: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[what].append(time.perf_counter() - began)
        return result


def host_bytes() -> int:
    """Bytes of all tensors in host memory."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    # `torch.compile` leaves some that have a shape and no data.
    tensors = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.is_cpu}
    return sum(storages.values())


def measure(config: BertConfig, method: str, num_steps: int, num_rounds: int, cpu: bool) -> list[float]:
    """Ratios to the median step: taking a snapshot, one reset, leaving it; and the copies over the model's bytes."""
    torch.manual_seed(0)
    model: Any = BertForSequenceClassification(config)
    if method == "lora":
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
        model = get_peft_model(model, lora)
    rows = [
        {"input_ids": torch.randint(config.vocab_size, (32,)), "labels": torch.tensor(i % 2)}
        for i in range(BATCH_SIZE * num_steps)
    ]
    steps, snapshots = Clock(), SnapshotClock(num_rounds)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=num_steps,
            per_device_train_batch_size=BATCH_SIZE,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=cpu,
        )
        trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[snapshots, steps])
        # It would print the log before the table.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    step = median(steps.seconds())
    return [median(seconds) / step for seconds in snapshots.seconds.values()] + [
        snapshots.copied_bytes / snapshots.model_bytes
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="(default: all)")
    parser.add_argument("--steps", type=int, default=30, help="of each training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="snapshots in each training (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="stay off the GPU")
    options = parser.parse_args()
    logging.set_verbosity_error()
    lines = []
    for name in options.models:
        config = bert_config(MODELS[name])
        for method in METHODS:
            *ratios, share = measure(config, method, options.steps, options.rounds, options.cpu)
            lines.append([name, method, *(f"{ratio:.2f}" for ratio in ratios), f"{share:.0%}"])
    header = ["model", "training", "take / step", "reset / step", "leave / step", "copies / model"]
    print(markdown(header, lines))


if __name__ == "__main__":
    main()
