# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import logging
from dataclasses import dataclass

import forks
import pytest
from reports import GIVEN, make_report
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
    flags = {"alpha": "0.01", "beta": "0.5", "learning_rate": "3e-4", "search_budget": "0.05"}
    args = parse(["--exptest", *(word for name, value in flags.items() for word in (f"--exptest_{name}", value))])
    expected = ExpTestConfig(alpha=0.01, beta=0.5, learning_rate=3e-4, search_budget=0.05)
    assert ExpTestCallback.from_args(args).config == expected


def test_paper_preset():
    args = parse(["--exptest", "--exptest_preset", "paper", "--exptest_beta", "0.1"])
    assert args.exptest_config() == ExpTestConfig.paper(beta=0.1)
    # There are no looks to spend it on.
    config = parse(["--exptest", "--exptest_preset", "paper", "--exptest_search_budget", "0.3"]).exptest_config()
    assert config == dataclasses.replace(ExpTestConfig.paper(), search_budget=0.3)
    assert config.search is False


@pytest.mark.parametrize("cls", [ExpTestTrainingArguments, SFTArguments])
def test_flags_without_the_switch_are_named_once(caplog, cls):
    logging.Logger.warning_once.cache_clear()
    extra = ["--bf16", "False"] if cls is SFTArguments else []
    for _ in range(2):
        parse(["--exptest_alpha", "0.1", "--exptest_search_budget", "0.3", *extra], cls)
    parse(["--exptest", "--exptest_beta", "0.5", *extra], cls)
    parse(extra, cls)
    assert [message for message in caplog.messages if "ExpTest" in message] == [
        "ExpTest is off: --exptest_alpha, --exptest_search_budget without --exptest is of no effect."
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", "2.0"), ("beta", "1.5"), ("learning_rate", "-1.0"), ("search_budget", "0.0")]
)
def test_bad_values_fail_while_parsing(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        parse(["--exptest", f"--exptest_{name}", value])


def test_the_rate_of_an_earlier_run(tmp_path):
    make_report([], config=GIVEN).save(tmp_path)
    args = parse(["--exptest", "--exptest_reuse", str(tmp_path), "--exptest_alpha", "0.01"])
    expected = ExpTestConfig(alpha=0.01, learning_rate=0.7, reuse=str(tmp_path))
    assert args.exptest_config() == ExpTestCallback.from_args(args).config == expected
    args = parse(["--exptest", "--exptest_reuse", str(tmp_path), "--exptest_preset", "paper"])
    assert args.exptest_config() == ExpTestConfig.paper(learning_rate=0.7, reuse=str(tmp_path))
    with pytest.raises(ValueError, match=rf"learning_rate=0\.1 and reuse='{tmp_path}', which holds 0\.7"):
        parse(["--exptest", "--exptest_reuse", str(tmp_path), "--exptest_learning_rate", "0.1"])


def test_an_earlier_run_that_left_nothing_fails_while_parsing(tmp_path):
    with pytest.raises(ValueError, match=rf"'{tmp_path}/nowhere' has no exptest\.json"):
        parse(["--exptest", "--exptest_reuse", f"{tmp_path}/nowhere"])
    # Nothing is read for a script that does not use it.
    assert parse(["--exptest_reuse", f"{tmp_path}/nowhere"]).exptest is False


def test_unknown_preset_is_quoted():
    with pytest.raises(ValueError, match="'papers'"):
        ExpTestTrainingArguments("out", exptest=True, exptest_preset="papers", use_cpu=True)


def test_arguments_are_json():
    assert '"exptest": true' in parse(["--exptest"]).to_json_string()


IN_PLACE = """
import dataclasses
import transformers
from transformers import HfArgumentParser, TrainingArguments
from hf_exptest.training_args import add_flags_in_place

@dataclasses.dataclass
class Before(TrainingArguments):
    extra: int = 1

{statement}
assert transformers.TrainingArguments is transformers.training_args.TrainingArguments is TrainingArguments

@dataclasses.dataclass
class After(TrainingArguments):
    extra: int = 1

for cls in (TrainingArguments, transformers.Seq2SeqTrainingArguments, Before, After):
    args = cls("out", use_cpu=True)
    names = "exptest_beta" in args.to_dict(), "exptest_beta" in str(args)
    takes = "exptest_beta" in HfArgumentParser(cls).format_help()
    print(cls.__name__, type(args).__name__, args.exptest, args.exptest_config().beta, *names, takes)
print(TrainingArguments("out", exptest_beta=0.25, use_cpu=True) == TrainingArguments("out", use_cpu=True))
"""


@pytest.mark.parametrize("given", [{}, {"exptest": True, "exptest_beta": 0.5}])
def test_the_flags_in_transformers_own_classes(tmp_path, given):
    script = tmp_path / "script.py"
    script.write_text(IN_PLACE.replace("{statement}", f"add_flags_in_place({given})"))
    done = forks.python(script)
    is_on, beta = bool(given), given.get("exptest_beta", 1 / 3)
    # What reports the arguments says nothing of flags that are off; a class made before does not take them, but has
    # their values.
    assert done.stdout.splitlines()[-5:] == [
        f"TrainingArguments TrainingArguments {is_on} {beta} {is_on} {is_on} True",
        f"Seq2SeqTrainingArguments Seq2SeqTrainingArguments {is_on} {beta} {is_on} {is_on} True",
        f"Before Before {is_on} {beta} False False False",
        f"After After {is_on} {beta} {is_on} {is_on} True",
        # Different values make different arguments, unless the given ones replace both.
        f"{is_on}",
    ]
