# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The search under torch's own engines, and as transformers itself shards; DeepSpeed is in test_deepspeed.py."""

import inspect
from types import SimpleNamespace

import accelerate
import engines
import pytest
import torch
from packaging.version import Version
from transformers import distributed

from hf_exptest.internals import engine_in_the_way
from hf_exptest.stage import _why_not_searchable

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

IS_TORCH_2_6 = torch.__version__.startswith("2.6.")
# Before, a training that goes on had none of the optimizer's state, also without ExpTest.
SAVES_FSDP2 = Version(accelerate.__version__) >= Version("1.13")
CAN_SHARD_ITSELF = "fsdp_size" in inspect.signature(distributed.DistributedConfig).parameters


def test_a_training_is_the_same_after_a_search(tmp_path):
    kinds = {"ddp": ["DistributedDataParallel", "AdamW", ["Tensor"]]}
    if CAN_SHARD_ITSELF:
        kinds["native"] = ["FSDPGPT2LMHeadModel", "AdamW", ["DTensor"]]
    if not IS_TORCH_2_6:
        kinds["fsdp2"] = ["FSDPGPT2LMHeadModel", "AdamW", ["DTensor"]]
    ((one,),) = engines.run(tmp_path / "one", 1, {"scenario": "find", "engine": "single"})
    runs = [{"scenario": "find", "engine": engine} for engine in kinds]
    # With a checkpoint, too, of which transformers' own sharding makes none; test_torchrun.py has those of DDP.
    runs += [{"scenario": "search", "engine": "fsdp2"}] if "fsdp2" in kinds and SAVES_FSDP2 else []
    # test_torchrun.py compares DistributedDataParallel with one process.
    del runs[0]
    results = engines.run(tmp_path / "two", 2, *runs, {"scenario": "refused", "engine": "fsdp1"})
    for rank in results.pop():
        assert (rank["world_size"], rank["kind"][0]) == (2, "FullyShardedDataParallel")
        assert "FSDP1 flattens the parameters" in rank["why"]
        assert (rank["start"]["test"], rank["steps"]) == ("training_arguments", 12)
    for setting, ranks in zip(runs, results, strict=True):
        engines.assert_same_training(ranks, kinds[setting["engine"]])
        engines.assert_same_search(ranks, one if setting["scenario"] == "find" else None)


def test_parallelism_that_was_never_tried_is_refused():
    parallelism = SimpleNamespace(non_data_parallel_size=2)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(parallelism_config=parallelism))
    assert "tensor, context and sequence parallelism" in _why_not_searchable(trainer, None)


@pytest.mark.skipif(not CAN_SHARD_ITSELF, reason="this transformers does not shard a model itself")
def test_an_error_on_one_process_ends_all(tmp_path):
    engines.assert_an_error_of_one_ends_all(tmp_path, "native")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"fsdp_version": 1}, "use fsdp_version: 2"),
        ({"cpu_offload": type("CPUOffloadPolicy", (), {})()}, "fsdp_offload_params: false"),
        ({"non_data_parallel_size": 2}, "use data parallelism alone"),
        ({"dp_replicate_size": 2}, "HSDP"),
        ({"native": 2}, "HSDP"),
    ],
)
def test_the_reason_names_what_was_not_seen_to_be_exact(change, reason):
    """On stand-ins, since a CPU runs few of them."""
    plugin = SimpleNamespace(fsdp_version=change.get("fsdp_version", 2), cpu_offload=change.get("cpu_offload"))
    parallelism = SimpleNamespace(
        non_data_parallel_size=change.get("non_data_parallel_size", 1),
        dp_replicate_size=change.get("dp_replicate_size"),
    )
    config = SimpleNamespace(distributed_config=SimpleNamespace(dp_replicate_size=change.get("native", 1)))
    trainer = SimpleNamespace(
        is_deepspeed_enabled=False,
        is_fsdp_enabled=True,
        model=SimpleNamespace(config=config),
        accelerator=SimpleNamespace(parallelism_config=parallelism, state=SimpleNamespace(fsdp_plugin=plugin)),
    )
    why = engine_in_the_way(trainer)
    assert why is None if reason is None else reason in why
