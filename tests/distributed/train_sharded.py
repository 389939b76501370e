# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Trains a model under torch's `fully_shard`, with path correction: see test_torchrun.py."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_exptest import ExpTestConfig, ExpTestScheduler
from hf_exptest.controller import paper_window


def main(folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(0)
    # Odd sizes, so that the shards differ.
    model = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.Tanh(), torch.nn.Linear(13, 1))
    if world > 1:
        model = fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    parameters = list(model.parameters())
    shards = world if all(isinstance(p, DTensor) for p in parameters) else 1
    optimizer = torch.optim.SGD(parameters, lr=0.3)
    scheduler = ExpTestScheduler(optimizer, ExpTestConfig.paper(), accelerator=accelerator)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        x = torch.randn(8, 7, generator=generator)
        y = x[:, :1] + 0.5 * torch.randn(8, 1, generator=generator)
        part = slice(rank * 8 // world, (rank + 1) * 8 // world)
        loss = (model(x[part]) - y[part]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.observe(loss)
        scheduler.step()
    scheduler.flush()
    # Every process resumes from what the main one saved.
    (state,) = broadcast_object_list([scheduler.state_dict()])
    resumed = ExpTestScheduler(optimizer, ExpTestConfig.paper(), accelerator=accelerator)
    resumed.load_state_dict(state)
    initial_loss = scheduler._controller.state_dict()["initial_loss"]
    result = {
        "world_size": world,
        "shards": shards,
        "history": scheduler.history,
        "resumed": resumed.history,
        "is_path_saved": state["path"] is not None,
        "ratios": [scheduler._meter.ratio(), resumed._meter.ratio()],
        "shortest_window": paper_window(initial_loss, 0.3),
    }
    Path(folder, f"rank{rank}.json").write_text(json.dumps(result))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    # As in train.py: torch may abort while it winds down.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
