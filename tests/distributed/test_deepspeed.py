# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""DeepSpeed on two processes of a CPU. Its first run builds an op for a minute or two, with a C++ compiler."""

from pathlib import Path
from types import SimpleNamespace

import engines
import pytest
import toys

pytest.importorskip("deepspeed")

from hf_exptest.internals import engine_in_the_way

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

OPTIMIZERS = {1: "DeepSpeedZeroOptimizer", 2: "DeepSpeedZeroOptimizer", 3: "DeepSpeedZeroOptimizer_Stage3"}
BF16, CONFIG, OFFLOAD = {"precision": "bf16"}, {"optimizer": "config"}, {"offload": True}


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (1, [{}, BF16]),
        (2, [{}, BF16 | CONFIG, OFFLOAD, {"precision": "fp16"}]),
        (3, [{}, BF16 | OFFLOAD, CONFIG, {"lora": True}]),
    ],
)
def test_a_training_is_the_same_after_a_search(tmp_path, stage, settings):
    engine = {"engine": f"zero{stage}"}
    ((one,),) = engines.run(tmp_path / "one", 1, {"scenario": "find", "engine": "single"})
    runs = [{"scenario": "find", **engine}, *({"scenario": "search", **engine, **setting} for setting in settings)]
    results = engines.run(tmp_path / "two", 2, *runs, timeout=900)
    for setting, ranks in zip(runs, results, strict=True):
        engines.assert_same_training(ranks, ["DeepSpeedEngine", OPTIMIZERS[stage]])
        engines.assert_same_search(ranks, one if setting["scenario"] == "find" else None)


@pytest.mark.parametrize(("stage", "optimizer"), [(2, "trainer"), (3, "trainer"), (2, "config")])
def test_every_step_uses_the_rate_of_the_scheduler(tmp_path, stage, optimizer):
    script = Path(__file__).with_name("train_deepspeed.py")
    command = [script, tmp_path, stage, optimizer]
    results, _ = toys.run_processes(2, command, tmp_path, 900, engines.ENVIRONMENT)
    assert [result["stage"] for result in results] == [stage, stage]
    first, *decisions = results[0]["history"]
    assert (first["decision"], first["test"]) == ("start", "first_update_bound")
    assert decisions
    assert results[1]["history"] == results[0]["history"]
    assert [result["steps"] for result in results] == [60, 60]
    for result in results:
        assert result["optimizer_rates"] == result["scheduler_rates"] == results[0]["logged_rates"]
    assert len(results[0]["logged_rates"]) == 60


@pytest.mark.parametrize("stage", [2, 3])
def test_an_error_on_one_process_ends_all(tmp_path, stage):
    engines.assert_an_error_of_one_ends_all(tmp_path, f"zero{stage}")


def test_what_cannot_be_put_back_is_refused_and_trained(tmp_path):
    offload_param = {"offload_param": {"device": "cpu", "pin_memory": False}}
    runs = [
        {"engine": "zero0"},
        {"engine": "zero1", "precision": "bf16 with fp32 gradients"},
        {"engine": "zero3", "offload": True, "zero": offload_param},
    ]
    results = engines.run(tmp_path, 2, *({"scenario": "refused", **run} for run in runs), timeout=900)
    reasons = "leads to AdamW, which", "leads to BF16_Optimizer, which", "DeepSpeed with offload_param cannot"
    for ranks, reason in zip(results, reasons, strict=True):
        for rank in ranks:
            assert rank["world_size"] == 2
            assert reason in rank["why"]
            assert (rank["start"]["test"], rank["start"]["learning_rate"]) == ("training_arguments", 0.01)
            assert rank["steps"] == 12


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"offload_optimizer": {"device": "cpu"}}, None),
        ({"offload_optimizer": {"device": "nvme", "nvme_path": "/"}}, "offload_optimizer to NVMe"),
        ({"offload_param": {"device": "nvme", "nvme_path": "/"}}, "offload_param"),
        ({"zero_hpz_partition_size": 2}, "zero_hpz_partition_size"),
        ({"zero_quantized_weights": True}, "zero_quantized_weights"),
        ({"zero_quantized_gradients": True}, "zero_quantized_gradients"),
        ({"elastic_checkpoint": True}, "elastic_checkpoint"),
        ({"optimizer": "ZenFlowZeroOptimizer"}, "ZenFlowZeroOptimizer"),
        ({"engine": "PipelineEngine"}, "pipeline"),
        ({"has_moe_layers": True}, "expert"),
        ({"autotp_size": 2}, "tensor"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"torch_autocast_enabled": True}, "torch_autocast"),
        ({"is_deepcompile_enabled": True}, "deepcompile"),
    ],
)
def test_the_reason_names_the_setting(change, reason):
    """Of settings that most machines cannot run, on a stand-in for the engine."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    settings = {
        "engine": "DeepSpeedEngine",
        "optimizer": OPTIMIZERS[3],
        "has_moe_layers": False,
        "autotp_size": 1,
        "auto_find_batch_size": False,
        "torch_autocast_enabled": False,
        "is_deepcompile_enabled": False,
        **change,
    }
    zero = {key: value for key, value in change.items() if key in DeepSpeedZeroConfig.model_fields}
    engine = type(settings["engine"], (), {})()
    engine.optimizer = type(settings["optimizer"], (), {})()
    engine.has_moe_layers = settings["has_moe_layers"]
    for name in ("autotp_size", "torch_autocast_enabled", "is_deepcompile_enabled"):
        setattr(engine, name, lambda name=name: settings[name])
    engine._config = SimpleNamespace(zero_config=DeepSpeedZeroConfig(stage=3, **zero))
    args = SimpleNamespace(auto_find_batch_size=settings["auto_find_batch_size"])
    trainer = SimpleNamespace(
        model_wrapped=engine, args=args, accelerator=SimpleNamespace(), is_deepspeed_enabled=True
    )
    why = engine_in_the_way(trainer)
    assert why is None if reason is None else reason in why
