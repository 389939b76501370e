# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
ExpTest in a training loop of one's own, with Accelerate and without Trainer.

    python examples/accelerate_loop.py
    torchrun --nproc_per_node 2 examples/accelerate_loop.py --cpu

trains a small network on scikit-learn's digits, in a few seconds. Expected, up to a digit or so:

    1 process(es), starting rate 0.018
    step 100: loss 0.048, learning rate 1.7e-02
    step 200: loss 0.042, learning rate 8.7e-03
    step 300: loss 0.029, learning rate 8.6e-05
    Accuracy on 360 held-out digits: 97.2%
"""

import argparse
import copy

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hf_exptest import ExpTestConfig, ExpTestScheduler, find_learning_rate

GLOBAL_BATCH = 32


class Digits(nn.Module):
    """Logits of an 8 x 8 image, and their loss, in the form that Trainer wants."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def load_data() -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Digits for training and for the accuracy, one dict each."""
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
    rows = [{"pixels": x, "labels": torch.tensor(y)} for x, y in zip(pixels, digits.target, strict=True)]
    train, test = train_test_split(rows, test_size=0.2, random_state=0, stratify=digits.target)
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=300, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="stay off the GPU; needed for several processes on a CPU")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=options.cpu)
    set_seed(0)
    train, test = load_data()
    model = Digits()
    batch_size = GLOBAL_BATCH // accelerator.num_processes

    # The search runs inside a Trainer; a copy of the model keeps that Trainer's wrappers away from this loop.
    args = TrainingArguments(
        output_dir="accelerate-loop-output",
        max_steps=options.max_steps,
        per_device_train_batch_size=batch_size,
        use_cpu=options.cpu,
        report_to="none",
    )
    rate = find_learning_rate(Trainer(model=copy.deepcopy(model), args=args, train_dataset=train)).learning_rate
    accelerator.print(f"{accelerator.num_processes} process(es), starting rate {rate:.2g}")

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    loader = DataLoader(train, batch_size=batch_size, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # Not prepared: accelerator.prepare would call step() once per process.
    scheduler = ExpTestScheduler(
        optimizer, ExpTestConfig(learning_rate=rate), options.max_steps, accelerator=accelerator
    )
    step = 0
    while step < options.max_steps:
        for batch in loader:
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 100 == 0:
                rate_now = scheduler.get_last_lr()[0]
                accelerator.print(f"step {step}: loss {loss.item():.3f}, learning rate {rate_now:.1e}")
            if not accelerator.optimizer_step_was_skipped:
                scheduler.observe(loss)
                scheduler.step()
            if step == options.max_steps:
                break

    model.eval()
    with torch.no_grad():
        batch = next(iter(DataLoader(test, batch_size=len(test))))
        logits = model(**{name: x.to(accelerator.device) for name, x in batch.items()})["logits"]
    accuracy = (logits.argmax(-1).cpu() == batch["labels"]).float().mean().item()
    accelerator.print(f"Accuracy on {len(test)} held-out digits: {accuracy:.1%}")
    # The model must not outlive its process group: torch would now and then wait for itself for ever.
    model, optimizer, loader = accelerator.free_memory(model, optimizer, loader)
    accelerator.end_training()


if __name__ == "__main__":
    main()
