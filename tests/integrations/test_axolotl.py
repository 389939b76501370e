# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
The plugin for Axolotl: what needs no Axolotl runs with a stand-in for the one class that the plugin inherits from; its
command is run where it is installed.
"""

import importlib
import importlib.util
import json
import sys
from dataclasses import fields
from pydoc import locate
from types import ModuleType

import pytest
from llama import save_instructions, save_llama
from looks import assert_looked, python, saved_log
from toys import make_trainer

from hf_exptest import ExpTestArgumentsMixin

pydantic = pytest.importorskip("pydantic")

NAME = "hf_exptest.integrations.axolotl"
HAS_AXOLOTL = importlib.util.find_spec("axolotl") is not None


@pytest.fixture
def module(monkeypatch):
    """The module of the plugin."""
    if not HAS_AXOLOTL:
        for name in ("axolotl", "axolotl.integrations", "axolotl.integrations.base"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["axolotl.integrations.base"].BasePlugin = type("BasePlugin", (), {})
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME)


def test_trainer_gets_the_rates_of_exptest(tmp_path, module):
    trainer = make_trainer(tmp_path, [], max_steps=30, learning_rate=1e-5)
    for callback in module.ExpTestPlugin().add_callbacks_post_trainer({}, trainer):
        trainer.add_callback(callback)
    trainer.train()
    assert_looked(tmp_path, trainer.state.log_history)


def test_options_reach_the_callback(tmp_path, module):
    cfg = {"exptest": {"preset": "paper", "alpha": 0.01, "learning_rate": 0.5}}
    (callback,) = module.ExpTestPlugin().add_callbacks_post_trainer(cfg, make_trainer(tmp_path, []))
    assert (callback.config.alpha, callback.config.learning_rate) == (0.01, 0.5)
    assert callback.config.warmup == 0.0


def test_options_are_the_flags_without_their_prefix(module):
    args = locate(module.ExpTestPlugin().get_input_args())
    assert args(exptest=None).exptest is None
    # A number without a point is a text to YAML.
    options = args.model_validate({"exptest": {"alpha": "1e-2"}, "learning_rate": 1e-5}).exptest
    assert options.alpha == 0.01
    flags = {field.name: field.default for field in fields(ExpTestArgumentsMixin)} | {"exptest_alpha": 0.01}
    assert {f"exptest_{name}": value for name, value in options} | {"exptest": False} == flags


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1}, "exptest.gamma\n  Extra inputs are not permitted"),
        ({"alpha": 2}, r"alpha=2.0 is not a significance level in \(0, 1\)"),
        ({"preset": "best"}, "exptest_preset='best' must be 'default' or 'paper'"),
        (True, "exptest\n  Input should be a valid dictionary"),
    ],
)
def test_bad_options_are_refused_with_the_config(module, options, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        module.ExpTestArgs(exptest=options)


def test_what_is_replaced_is_named(tmp_path, module, caplog):
    cfg = {"cosine_min_lr_ratio": 0.1, "cosine_constant_lr_ratio": None, "jagged_restart_steps": 100}
    module.ExpTestPlugin().add_callbacks_post_trainer(cfg, make_trainer(tmp_path, []))
    (record,) = [record for record in caplog.records if record.name == NAME]
    assert "cosine_min_lr_ratio=0.1, jagged_restart_steps=100 will not be used" in record.getMessage()


def test_without_axolotl_an_error_says_what_to_install(monkeypatch):
    for name in ("axolotl", "axolotl.integrations.base"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="pip install axolotl"):
        importlib.import_module(NAME)


def write_config(folder, **more):
    save_llama(folder)
    save_instructions(folder / "data.json")
    values = {
        "base_model": str(folder),
        "datasets": [{"path": str(folder / "data.json"), "ds_type": "json", "type": "alpaca"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "sequence_len": 128,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 30,
        "save_steps": 30,
        "logging_steps": 1,
        "learning_rate": 2e-5,
        "lr_scheduler": "cosine",
        "optimizer": "adamw_torch",
        "bf16": False,
        "plugins": [f"{NAME}.ExpTestPlugin"],
    }
    path = folder / "config.yaml"
    # JSON is YAML.
    path.write_text(json.dumps({**values, **more}))
    return path


@pytest.mark.slow
@pytest.mark.skipif(not HAS_AXOLOTL, reason="Axolotl is not installed")
def test_command(tmp_path, monkeypatch):
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = write_config(tmp_path, cosine_min_lr_ratio=0.1, exptest={"alpha": 0.01})
    output = python("-m", "axolotl.cli.train", config)
    found = assert_looked(tmp_path / "out", saved_log(tmp_path / "out" / "checkpoint-30"))
    assert json.loads((tmp_path / "out" / "exptest.json").read_text())["config"]["alpha"] == 0.01
    assert f"\n- learning_rate: {found}\n" in (tmp_path / "out" / "README.md").read_text()
    assert "cosine_min_lr_ratio=0.1 will not be used" in output
