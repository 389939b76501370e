# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
What several processes share: the mean of their losses, and one decision. Every function here is collective, but for
`own_part`, which tells what is not shared.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, without its history: all of it, or its shard of a `DTensor`."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def mean_over_processes(values: torch.Tensor, accelerator: Accelerator | None) -> torch.Tensor:
    """All-reduce of a tensor, one collective; the tensor itself where there is one process."""
    if accelerator is None or accelerator.num_processes == 1:
        return values
    mean: torch.Tensor = accelerator.reduce(values.to(accelerator.device), reduction="mean")
    return mean


def fewest_over_processes(count: int, accelerator: Accelerator) -> int:
    """The smallest `count` of any process."""
    if accelerator.num_processes == 1:
        return count
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).min())


def same_on_all(value: Any, accelerator: Accelerator) -> Any:
    """The main process's `value`, which it may have from a file that is on its machine alone."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def check_agreement(state: Any, accelerator: Accelerator | None, when: str) -> None:
    """
    Compare a digest of `state` over all processes: on a cluster, one that decides alone would hang all others later.

    Args:
        state: plain values.
        accelerator ([`~accelerate.Accelerator`], *optional*): `None` for one process.
        when (`str`): for the message.

    Raises:
        `RuntimeError`: on every process alike, naming those that differ from most.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return
    digest = zlib.crc32(json.dumps(state, sort_keys=True).encode())
    digests = accelerator.gather(torch.tensor([digest], device=accelerator.device)).tolist()
    usual = max(digests, key=digests.count)
    others = [rank for rank, value in enumerate(digests) if value != usual]
    if others:
        raise RuntimeError(
            f"ExpTest's decisions differ between processes {when}: of {len(digests)} processes, rank"
            f" {', '.join(map(str, others))} differ{'s' if len(others) == 1 else ''} from the rest. This process has"
            f" {state}. All need the same settings, number of steps and resumed state."
        )
