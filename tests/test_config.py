# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import pytest

from hf_exptest import ExpTestConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.0),
        ("alpha", 1.0),
        ("alpha", float("nan")),
        ("alpha", "0.05"),
        ("alpha", True),
        ("beta", 0.0),
        ("beta", 1.0),
        ("beta", 3.0),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("inf")),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("cooldown", 1.5),
        ("window", 0.0),
        ("window", 2),
        ("search_budget", 0.0),
    ],
)
def test_bad_value_is_quoted(name, value):
    with pytest.raises(ValueError, match=f"{name}=") as error:
        ExpTestConfig(**{name: value})
    assert repr(value) in str(error.value)


def test_warmup_and_cooldown_share_the_same_steps():
    with pytest.raises(ValueError, match=r"warmup=0.6 and cooldown=0.5"):
        ExpTestConfig(warmup=0.6, cooldown=0.5)


@pytest.mark.parametrize("name", ["search", "window_correction", "autocorrelation"])
def test_switches_are_booleans(name):
    with pytest.raises(TypeError, match=f"{name}='yes'"):
        ExpTestConfig(**{name: "yes"})


def test_paper_preset():
    config = ExpTestConfig.paper(alpha=0.01, beta=0.1, window_correction=False)
    assert config.to_dict() == {
        "alpha": 0.01,
        "beta": 0.1,
        "learning_rate": None,
        "search": False,
        "search_budget": ExpTestConfig().search_budget,
        "warmup": 0.0,
        "cooldown": 0.0,
        "window": None,
        "window_correction": False,
        "autocorrelation": False,
        "reuse": None,
    }
    assert not config.needs_num_training_steps
    assert ExpTestConfig().needs_num_training_steps


def test_json_round_trip():
    config = ExpTestConfig(alpha=0.01, learning_rate=3e-4, window=None, reuse=Path("out", "exptest.json"))
    assert config.reuse == str(Path("out", "exptest.json"))
    assert ExpTestConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("value", ["", 3, True, b"out"])
def test_what_is_reused_has_a_path(value):
    with pytest.raises(TypeError, match=f"reuse={value!r} must be the path"):
        ExpTestConfig(reuse=value)


def test_unknown_setting_is_quoted():
    with pytest.raises(ValueError, match="'gamma'"):
        ExpTestConfig.from_dict({"gamma": 1})
