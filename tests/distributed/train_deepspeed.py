# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Trains with DeepSpeed on CPU under torchrun, and writes what each process decided: see test_deepspeed.py."""

import json
import os
import sys
from pathlib import Path

from transformers import Trainer, TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toys

from hf_exptest import ExpTestCallback


class Rates(TrainerCallback):
    """Notes, before each step, the scheduler's rate and the one that the optimizer will use."""

    def __init__(self):
        self.scheduler, self.optimizer = [], []

    def on_step_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        self.scheduler.append(lr_scheduler.get_last_lr()[0])
        self.optimizer.append(optimizer.param_groups[0]["lr"])


def main(folder: str, stage: str, optimizer: str) -> None:
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": int(stage)},
    }
    if optimizer == "config":
        config["optimizer"] = {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}
    args = toys.make_args(folder, max_steps=60, gradient_accumulation_steps=2, deepspeed=config)
    callback, rates = ExpTestCallback(search=False, window=0.2), Rates()
    trainer = Trainer(
        model=toys.language_model(),
        args=args,
        train_dataset=toys.language_data(512),
        callbacks=[callback, rates],
    )
    trainer.train()
    result = {
        "world_size": args.world_size,
        "stage": trainer.deepspeed.zero_optimization_stage(),
        "steps": callback._scheduler.last_epoch,
        "history": callback.history,
        "logged_rates": [row["learning_rate"] for row in trainer.state.log_history if "loss" in row],
        "scheduler_rates": rates.scheduler,
        "optimizer_rates": rates.optimizer,
    }
    Path(folder, f"rank{args.process_index}.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    # As in train.py: torch may abort while it winds down.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
