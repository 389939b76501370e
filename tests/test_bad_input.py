# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Wrong calls and flags, with what each says: the value, and what would be right. None reaches the first training step.
"""

import json
import re
import sys

import numpy as np
import pytest
import torch
from toys import ToyClassifier, make_args, make_trainer
from transformers import HfArgumentParser, Trainer
from transformers.optimization import get_linear_schedule_with_warmup

from hf_exptest import (
    ExpTestCallback,
    ExpTestConfig,
    ExpTestController,
    ExpTestScheduler,
    ExpTestTrainingArguments,
    Report,
    exponential_decay_test,
    find_learning_rate,
    learning_rate_upper_bound,
    run,
    slope_test,
)
from hf_exptest.cli import main as cli

NAN, INF = float("nan"), float("inf")
PAPER = ExpTestConfig.paper(window_correction=False)


def parameters():
    return [torch.nn.Parameter(torch.zeros(2))]


def adamw(**settings):
    return torch.optim.AdamW(parameters(), **settings)


def scheduler(**settings):
    return ExpTestScheduler(adamw(), PAPER, **settings)


def trainer(path, callback=None, **settings):
    return make_trainer(path, [ExpTestCallback() if callback is None else callback], **settings)


def with_optimizer(path, make_optimizer, make_scheduler=lambda optimizer: None):
    model = ToyClassifier()
    optimizer = make_optimizer(model.parameters())
    return trainer(path, model=model, trainer_kwargs={"optimizers": (optimizer, make_scheduler(optimizer))})


def parse(*flags):
    HfArgumentParser(ExpTestTrainingArguments).parse_args_into_dataclasses(["--use_cpu", "--exptest", *flags])


def report(path, text):
    (path / "exptest.json").write_text(text)
    return Report.load(path)


def launch(*arguments):
    sys.argv = ["run", *arguments]
    run.main()


class ScheduleFree(torch.optim.SGD):
    """Stands for the classes of the schedulefree package, which are told by their names."""


ScheduleFree.__name__ = "SGDScheduleFree"


class OneShot(torch.utils.data.IterableDataset):
    """Can be read only once."""

    def __init__(self):
        self.rows = iter([])

    def __iter__(self):
        return self.rows


def added_later(path):
    made = make_trainer(path, [])
    made.add_callback(ExpTestCallback())
    return made


# What is tried (given a folder), the error, and what it says.
CALLS = {
    # Settings.
    "alpha in percent": (lambda p: ExpTestCallback(alpha=5), ValueError, r"alpha=5 is not .* in \(0, 1\), say 0\.05"),
    "alpha zero": (lambda p: ExpTestCallback(alpha=0.0), ValueError, r"alpha=0\.0 .*\(0, 1\)"),
    "alpha not a number": (lambda p: ExpTestCallback(alpha=NAN), ValueError, r"alpha=nan .*\(0, 1\)"),
    "alpha as text": (lambda p: ExpTestCallback(alpha="0.05"), ValueError, r"alpha='0\.05' .*\(0, 1\)"),
    "alpha a switch": (lambda p: ExpTestConfig(alpha=True), ValueError, r"alpha=True .*\(0, 1\)"),
    "beta above one": (lambda p: ExpTestCallback(beta=3), ValueError, r"beta=3 is not a decay factor in \(0, 1\)"),
    "beta one": (lambda p: ExpTestCallback(beta=1.0), ValueError, r"beta=1\.0 .*\(0, 1\)"),
    "beta negative": (lambda p: ExpTestCallback(beta=-0.5), ValueError, r"beta=-0\.5 .*\(0, 1\)"),
    "rate zero": (lambda p: ExpTestCallback(learning_rate=0.0), ValueError, r"learning_rate=0\.0 is not a positive"),
    "rate infinite": (lambda p: ExpTestCallback(learning_rate=INF), ValueError, r"learning_rate=inf .*positive"),
    "rate as text": (lambda p: ExpTestCallback(learning_rate="1e-3"), ValueError, r"learning_rate='1e-3' .*positive"),
    "warm-up in steps": (lambda p: ExpTestCallback(warmup=100), ValueError, r"warmup=100 .*share .*\[0, 1\)"),
    "warm-up negative": (lambda p: ExpTestCallback(warmup=-0.1), ValueError, r"warmup=-0\.1 .*share"),
    "cool-down in steps": (lambda p: ExpTestCallback(cooldown=500), ValueError, r"cooldown=500 .*share .*\[0, 1\)"),
    "shares too large": (
        lambda p: ExpTestCallback(warmup=0.5, cooldown=0.6),
        ValueError,
        r"warmup=0\.5 and cooldown=0\.6 add up to more than 1",
    ),
    "window in steps": (lambda p: ExpTestCallback(window=50), ValueError, r"window=50 .*share .*or None"),
    "budget in steps": (lambda p: ExpTestCallback(search_budget=300), ValueError, r"search_budget=300 .*share"),
    "switch as text": (lambda p: ExpTestCallback(search="no"), TypeError, r"search='no' must be True or False"),
    "misspelt setting": (lambda p: ExpTestCallback(alhpa=0.1), ValueError, r"\['alhpa'\]; the settings are .*'alpha'"),
    "rate in the config's place": (lambda p: ExpTestCallback(1e-3), TypeError, r"must be an ExpTestConfig, not float"),
    "dict in the config's place": (lambda p: ExpTestCallback({"alpha": 0.1}), TypeError, r"ExpTestConfig, not dict"),
    "unknown key in JSON": (lambda p: ExpTestConfig.from_json('{"gamma": 1}'), ValueError, r"\['gamma'\]"),
    # Flags.
    "flag alpha": (lambda p: parse("--exptest_alpha", "2"), ValueError, r"alpha=2\.0 .*\(0, 1\)"),
    "flag beta": (lambda p: parse("--exptest_beta", "0"), ValueError, r"beta=0\.0 .*\(0, 1\)"),
    "flag rate": (lambda p: parse("--exptest_learning_rate", "-1"), ValueError, r"learning_rate=-1\.0 .*positive"),
    "flag of words": (lambda p: parse("--exptest_alpha", "low"), SystemExit, r"invalid float value: 'low'"),
    "flag preset": (lambda p: parse("--exptest_preset", "papers"), SystemExit, r"'papers' .*choose from .*paper"),
    "misspelt flag": (lambda p: parse("--exptest_alhpa", "0.1"), ValueError, r"--exptest_alhpa"),
    # The Trainer's set-up.
    "two callbacks": (
        lambda p: make_trainer(p, [ExpTestCallback(), ExpTestCallback()]),
        ValueError,
        r"2 ExpTestCallback; one sets the learning rate",
    ),
    "schedule-free optim": (
        lambda p: trainer(p, optim="schedule_free_adamw"),
        ValueError,
        r"optim='schedule_free_adamw' wants a constant .*'adamw_torch'",
    ),
    "layer-wise optim": (
        lambda p: trainer(p, optim="galore_adamw_layerwise"),
        ValueError,
        r"optim='galore_adamw_layerwise' .*use 'galore_adamw'",
    ),
    "LOMO": (lambda p: trainer(p, optim="lomo"), ValueError, r"optim='lomo' .*use 'adamw_torch'"),
    "a scheduler of one's own": (
        lambda p: with_optimizer(p, torch.optim.AdamW, lambda o: get_linear_schedule_with_warmup(o, 1, 10)),
        ValueError,
        r"has a scheduler, LambdaLR, which sets the learning rate .*; pass optimizers=\(optimizer, None\)",
    ),
    "schedule-free optimizer": (
        lambda p: with_optimizer(p, lambda q: ScheduleFree(q, lr=0.1)),
        ValueError,
        r"SGDScheduleFree .*wants it constant; use its plain counterpart",
    ),
    "optimizer with relative steps": (
        lambda p: with_optimizer(p, lambda q: torch.optim.SGD([{"params": list(q), "relative_step": True}], lr=0.1)),
        ValueError,
        r"relative_step=True sets its own learning rate; pass relative_step=False",
    ),
    "optimizer without a rate": (
        lambda p: with_optimizer(p, lambda q: torch.optim.SGD(q, lr=0.0)),
        ValueError,
        r"lr=0\.0; .*must be positive",
    ),
    "arguments with rate zero": (
        lambda p: trainer(p, learning_rate=0.0),
        ValueError,
        r"learning_rate=0\.0 must be positive: .*Leave it at its default",
    ),
    "no data": (lambda p: trainer(p, data=[]).train(), ValueError, r"empty|num_samples=0"),
    "not connected": (
        lambda p: added_later(p).train(),
        RuntimeError,
        r"not connected to the Trainer.*callback\.set_trainer\(trainer\)",
    ),
    "search of a model": (
        lambda p: find_learning_rate(ToyClassifier()),
        TypeError,
        r"trainer must be a transformers\.Trainer, not ToyClassifier",
    ),
    "search with a dict": (
        lambda p: find_learning_rate(make_trainer(p, []), {"alpha": 0.1}),
        TypeError,
        r"config must be an ExpTestConfig, not dict",
    ),
    "search of data read once": (
        lambda p: find_learning_rate(Trainer(ToyClassifier(), make_args(p), train_dataset=OneShot())),
        ValueError,
        r"OneShot can be read only once",
    ),
    "report before training": (
        lambda p: ExpTestCallback().report(),
        RuntimeError,
        r"nothing to report before training",
    ),
    # The scheduler and the controller.
    "parameters in the optimizer's place": (
        lambda p: ExpTestScheduler(parameters(), PAPER),
        TypeError,
        r"optimizer must be a torch\.optim\.Optimizer, not list",
    ),
    "shares without a length": (
        lambda p: ExpTestScheduler(adamw()),
        ValueError,
        r"num_training_steps=None, but .*or use ExpTestConfig\.paper\(\)",
    ),
    "no steps": (
        lambda p: ExpTestScheduler(adamw(), ExpTestConfig(), 0),
        ValueError,
        r"num_training_steps=0 must be a whole number, at least 1",
    ),
    "half a step": (
        lambda p: ExpTestScheduler(adamw(), ExpTestConfig(), 10.5),
        ValueError,
        r"num_training_steps=10\.5 must be a whole number",
    ),
    "losses of a batch": (
        lambda p: scheduler().observe(torch.zeros(4)),
        ValueError,
        r"observe needs one loss, got a tensor of shape \(4,\)",
    ),
    "loss as text": (lambda p: scheduler().observe("0.3 (mean)"), ValueError, r"0\.3 \(mean\)"),
    "another scheduler's state": (
        lambda p: scheduler().load_state_dict({"best": 1.0}),
        ValueError,
        r"has the keys \['best'\]",
    ),
    "state of two groups": (
        lambda p: scheduler().load_state_dict({"last_epoch": 1, "base_lrs": [0.1, 0.2]}),
        ValueError,
        r"2 parameter groups, the optimizer 1",
    ),
    "negative rate": (
        lambda p: ExpTestController(PAPER, -0.1),
        ValueError,
        r"learning_rate=-0\.1 must be positive and finite",
    ),
    "unknown phase": (
        lambda p: ExpTestController(PAPER, 0.1, phase="search"),
        ValueError,
        r"phase='search' must be 'detect' or 'tune'",
    ),
    # The functions.
    "three losses": (lambda p: exponential_decay_test([3, 2, 1]), ValueError, r"at least 4 losses, but got n = 3"),
    "two losses": (lambda p: slope_test([2, 1]), ValueError, r"at least 3 losses, but got n = 2"),
    "a table of losses": (lambda p: slope_test(np.zeros((4, 2))), ValueError, r"have shape \(4, 2\)"),
    "times that stand still": (
        lambda p: slope_test([3, 2, 1], [0, 1, 1]),
        ValueError,
        r"strictly increasing, but 1\.0 is followed by 1\.0",
    ),
    "bound of one row": (lambda p: learning_rate_upper_bound(np.ones((1, 3))), ValueError, r"at least 2 rows"),
    "bound of constants": (lambda p: learning_rate_upper_bound(np.ones((5, 3))), ValueError, r"constant"),
    "bound of text": (lambda p: learning_rate_upper_bound(["a film"]), TypeError, r"array"),
    "bound of NaN": (
        lambda p: learning_rate_upper_bound(np.full((3, 2), NAN)),
        ValueError,
        r"finite, but contain nan",
    ),
    # Files and commands.
    "no report": (lambda p: Report.load(p), ValueError, r"has no exptest\.json; ExpTest writes it"),
    "report cut short": (lambda p: report(p, '{"version": 2, "con'), ValueError, r"exptest\.json"),
    "report of the future": (
        lambda p: report(p, json.dumps({"version": 99})),
        ValueError,
        r"version 99; this release",
    ),
    "show nothing": (lambda p: cli(["show", str(p)]), SystemExit, r"hf-exptest: .*has no exptest\.json"),
    "unknown command": (lambda p: cli(["draw", str(p)]), SystemExit, r"invalid choice: 'draw'"),
    "no script": (lambda p: launch(), SystemExit, r"python -m hf_exptest\.run their_script\.py"),
    "script that is not there": (
        lambda p: launch(str(p / "train.py")),
        SystemExit,
        r"there is no script .*train\.py.*usage: python -m hf_exptest\.run \[--exptest",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_told_what_is_right(tmp_path, monkeypatch, capsys, name):
    call, error, message = CALLS[name]
    steps = []
    monkeypatch.setattr(Trainer, "training_step", lambda *args, **kwargs: steps.append(1))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(error) as raised:
        call(tmp_path)
    captured = capsys.readouterr()
    said = f"{raised.value}\n{captured.out}\n{captured.err}"
    assert re.search(message, said, re.DOTALL), said
    assert steps == []
