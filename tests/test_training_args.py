# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

from dataclasses import dataclass

import pytest
from transformers import HfArgumentParser
from trl import SFTConfig

from hf_exptest import ExpTestArgumentsMixin, ExpTestCallback, ExpTestConfig, ExpTestTrainingArguments


@dataclass
class SFTArguments(ExpTestArgumentsMixin, SFTConfig):
    """TRL's arguments with ExpTest's flags."""


def parse(arguments, cls=ExpTestTrainingArguments):
    (args,) = HfArgumentParser(cls).parse_args_into_dataclasses(["--output_dir", "out", "--use_cpu", *arguments])
    return args


@pytest.mark.parametrize("cls", [ExpTestTrainingArguments, SFTArguments])
def test_flag_is_off_by_default_and_switches_on(cls):
    extra = ["--bf16", "False"] if cls is SFTArguments else []
    assert parse(extra, cls).exptest is False
    args = parse(["--exptest", *extra], cls)
    assert args.exptest is True
    assert args.exptest_config() == ExpTestConfig()
    assert isinstance(args, cls.__mro__[2])


def test_knobs_reach_the_callback():
    args = parse(["--exptest", "--exptest_alpha", "0.01", "--exptest_beta", "0.5", "--exptest_learning_rate", "3e-4"])
    expected = ExpTestConfig(alpha=0.01, beta=0.5, learning_rate=3e-4)
    assert ExpTestCallback.from_args(args).config == expected


def test_paper_preset():
    args = parse(["--exptest", "--exptest_preset", "paper", "--exptest_beta", "0.1"])
    assert args.exptest_config() == ExpTestConfig.paper(beta=0.1)


@pytest.mark.parametrize(("name", "value"), [("alpha", "2.0"), ("beta", "1.5"), ("learning_rate", "-1.0")])
def test_bad_values_fail_while_parsing(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        parse(["--exptest", f"--exptest_{name}", value])


def test_unknown_preset_is_quoted():
    with pytest.raises(ValueError, match="'papers'"):
        ExpTestTrainingArguments("out", exptest=True, exptest_preset="papers", use_cpu=True)


def test_arguments_are_json():
    assert '"exptest": true' in parse(["--exptest"]).to_json_string()
