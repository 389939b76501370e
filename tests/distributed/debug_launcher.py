# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A loop without Trainer on two processes of `accelerate.debug_launcher`: see test_torchrun.py."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, debug_launcher

from hf_exptest import ExpTestConfig, ExpTestScheduler


def train(folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    torch.manual_seed(rank)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    config = ExpTestConfig(learning_rate=0.1, warmup=0.0, cooldown=0.1, window=0.3)
    scheduler = ExpTestScheduler(optimizer, config, num_training_steps=100, accelerator=accelerator)
    for step in range(100):
        # Alone, rank 0 would see no progress at first and rank 1 much; their mean falls until step 60.
        progress = max(0, 60 - step) / 60
        scheduler.observe(torch.tensor(1.0 if rank == 0 else 1.0 + 2 * progress) + 0.01 * torch.randn(()))
        scheduler.step()
    scheduler.flush()
    result = {"world_size": accelerator.num_processes, "history": scheduler.history}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(result))
    accelerator.end_training()


if __name__ == "__main__":
    debug_launcher(train, args=(sys.argv[1],), num_processes=2)
