# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The files in examples/accelerate are what `accelerate launch --config_file` understands."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).parents[1] / "examples" / "accelerate"
# Kind, processes in all, machines.
EXPECTED = {
    "one_node": (DistributedType.MULTI_GPU, 8, 1),
    "several_nodes": (DistributedType.MULTI_GPU, 16, 2),
    "fsdp2": (DistributedType.FSDP, 8, 1),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 8, 1),
    "deepspeed_zero3": (DistributedType.DEEPSPEED, 8, 1),
}


def load(name):
    return load_config_from_file(str(FOLDER / f"{name}.yaml"))


def test_every_file_is_expected():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_file_loads_and_is_in_the_readme(name):
    config = load(name)
    assert (config.distributed_type, config.num_processes, config.num_machines) == EXPECTED[name]
    assert config.mixed_precision == "bf16"
    assert not config.use_cpu
    assert f"--config_file examples/accelerate/{name}.yaml" in (FOLDER / "README.md").read_text()


def test_fsdp_is_version_2():
    assert load("fsdp2").fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_has_its_stage_and_leaves_the_learning_rate_to_exptest(stage):
    config = load(f"deepspeed_zero{stage}").deepspeed_config
    assert config["zero_stage"] == stage
    # Another file could bring a scheduler in.
    assert not {"scheduler", "deepspeed_config_file"} & config.keys()
    # Left to TrainingArguments, which would have to repeat any other value.
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & config.keys()
