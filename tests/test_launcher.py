# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What the launcher reads, refuses and warns of; tests/end_to_end/test_run.py runs it on whole scripts."""

import logging
import math
import sys

import pytest
import torch
from reports import look_alone
from toys import ToyClassifier, assert_same_weights, classification_data, weights
from transformers import Trainer

from hf_exptest import ExpTestCallback, ExpTestTrainingArguments, Report, find_learning_rate, run


@pytest.fixture
def launch(monkeypatch):
    """Runs the launcher without touching transformers' classes, and returns the flags that it took."""

    def main(*arguments, users=()):
        taken = []
        monkeypatch.setattr(sys, "argv", ["hf_exptest.run", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        for name in ("install", "install_finder"):
            monkeypatch.setattr(run, name, lambda flags, *_: taken.append(flags) or list(users))
        run.main()
        (flags,) = taken
        return flags

    return main


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("import sys; print(sys.argv[1:])")
    return path


@pytest.mark.parametrize(
    ("before", "flags"),
    [
        ([], {}),
        (["--exptest"], {"exptest": True}),
        (["--exptest", "--exptest_alpha", "0.01"], {"exptest": True, "exptest_alpha": 0.01}),
        (["--exptest-beta=0.5", "--exptest"], {"exptest": True, "exptest_beta": 0.5}),
        (
            ["--exptest", "--exptest_preset", "paper", "--exptest_learning_rate=3e-4"],
            {"exptest": True, "exptest_preset": "paper", "exptest_learning_rate": 3e-4},
        ),
    ],
)
def test_flags_before_the_script_are_the_launchers_own(launch, script, capsys, before, flags):
    assert launch(*before, script, "train", "--exptest_alpha", "0.1") == flags
    assert capsys.readouterr().out == "['train', '--exptest_alpha', '0.1']\n"


def test_a_module_runs_as_python_would_run_it(launch, script, capsys, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)
    script.write_text("import sys; print(__name__, __spec__.name, sys.argv, sys.modules['__main__'].__file__)")
    assert launch("--exptest", "-m", "script", "-m", "--exptest_alpha", "0.1") == {"exptest": True}
    assert capsys.readouterr().out == f"__main__ script {[str(script), '-m', '--exptest_alpha', '0.1']} {script}\n"


@pytest.mark.parametrize(
    ("arguments", "flags", "left"),
    [
        (["a.json", "--exptest"], {"exptest": True}, ["a.json"]),
        (["--exptest", "a.yaml"], {"exptest": True}, ["a.yaml"]),
        (["a.yml", "--exptest=true", "--exptest_alpha", "0.1"], {"exptest": True, "exptest_alpha": 0.1}, ["a.yml"]),
        (["a.json", "--exptest", "false"], {"exptest": False}, ["a.json"]),
        # A config file that is not alone is not looked for alone.
        (["a.json"], {}, ["a.json"]),
        (["--config", "a.yaml", "--exptest"], {}, ["--config", "a.yaml", "--exptest"]),
        (["--train", "a.json", "--eval", "b.json", "--exptest"], {}, None),
        (["a.json", "b.json", "--exptest"], {}, None),
        (["--exptest"], {}, ["--exptest"]),
        ([], {}, []),
    ],
)
def test_flags_beside_a_config_file_alone_are_taken(arguments, flags, left):
    assert run.take_from_config(arguments) == (flags, arguments if left is None else left)


def test_flags_of_both_places_are_joined(launch, script):
    flags = launch("--exptest", "--exptest_alpha", "0.01", script, "a.json", "--exptest_alpha", "0.1")
    assert flags == {"exptest": True, "exptest_alpha": 0.1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.py"], ["there is no script 'missing.py'", "usage: python -m hf_exptest.run"]),
        (["--exptest"], ["there is no script after '--exptest'", "usage: "]),
        (["-m", "missing.module"], ["there is no module 'missing.module'", "usage: "]),
        (["--exptest", "-m"], ["there is no module ''", "(script.py | -m module)"]),
        (["--output_dir", "out", "SCRIPT"], ["'--output_dir' is not a flag", "--exptest_alpha", "come after it"]),
        (["--exptest", "--verbose", "SCRIPT"], ["'--verbose' is not a flag of the launcher"]),
        (["--exptest_alpha", "0.01", "SCRIPT"], ["'--exptest_alpha' before the script needs --exptest there too"]),
        (["--find"], ["there is no script after '--find'"]),
        (["--find", "--verbose", "SCRIPT"], ["'--verbose' is not a flag", "which has --find, --exptest, "]),
    ],
)
def test_wrong_calls_say_what_would_be_right(launch, script, arguments, words):
    with pytest.raises(SystemExit) as exit_info:
        launch(*(script if argument == "SCRIPT" else argument for argument in arguments))
    assert str(exit_info.value.code).startswith("hf_exptest.run: ")
    assert [word for word in words if word not in exit_info.value.code] == []


@pytest.mark.parametrize("place", ["before", "beside a config"])
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--exptest_alpha=small", "argument --exptest_alpha/--exptest-alpha: invalid float value: 'small'"),
        ("--exptest_alpha=2", "alpha=2.0 is not a significance level in (0, 1), say 0.05."),
        ("--exptest_preset=papers", "'papers'"),
        ("--exptest_learning_rate=-1", "learning_rate=-1.0 is not a positive number"),
        ("--exptest_reuse=nowhere", "'nowhere' has no exptest.json"),
        ("--exptest_search_budget=3", "search_budget=3.0 is not a share of the steps in (0, 1]"),
    ],
)
def test_bad_values_are_quoted_before_the_script_runs(launch, script, capsys, place, flag, message):
    before = place == "before"
    with pytest.raises(SystemExit) as exit_info:
        launch(*(["--exptest", flag, script] if before else [script, "a.json", "--exptest", flag]))
    assert exit_info.value.code == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.startswith("usage: python -m hf_exptest.run")
    assert output.out == ""


def warnings(capsys, words="ExpTest was not turned on"):
    return [line for line in capsys.readouterr().err.splitlines() if words in line]


def test_a_flag_that_turned_nothing_on_is_told(launch, script, capsys, monkeypatch):
    launch(script, "--exptest")
    (warning,) = warnings(capsys)
    assert f"{str(script)!r} gave no Trainer the flag" in warning
    assert f"python -m hf_exptest.run --exptest {script} ..." in warning
    launch("--exptest", script)
    (warning,) = warnings(capsys)
    assert f"{str(script)!r} made no Trainer in this process" in warning
    assert "accelerate launch -m hf_exptest.run --exptest" in warning
    for arguments, users in (([script, "--exptest"], [object]), ([script, "--output_dir", "out"], [])):
        launch(*arguments, users=users)
        assert warnings(capsys) == []
    # Of several processes, the first says it.
    for rank, count in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        launch(script, "--exptest")
        assert len(warnings(capsys)) == count


@pytest.mark.parametrize(
    ("ending", "error", "count"), [("sys.exit(3)", SystemExit, 1), ("raise KeyError('lost')", KeyError, 0)]
)
def test_how_the_script_ended_passes_through(launch, script, capsys, ending, error, count):
    script.write_text(f"import sys; {ending}")
    with pytest.raises(error) as error_info:
        launch(script, "--exptest")
    assert error_info.value.args == ((3,) if error is SystemExit else ("lost",))
    assert len(warnings(capsys)) == count


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["-h"], 0), (["--help"], 0), (["--exptest", "--help"], 0)])
def test_help(launch, capsys, arguments, code):
    with pytest.raises(SystemExit) as exit_info:
        launch(*arguments)
    assert exit_info.value.code == code
    assert "accelerate launch -m hf_exptest.run --exptest" in capsys.readouterr().out


def test_a_callback_of_the_script_that_overrules_the_flags_is_told(tmp_path, capsys):
    args = ExpTestTrainingArguments(output_dir=str(tmp_path), exptest=True, exptest_alpha=0.01)
    flags = {"exptest": True, "exptest_alpha": 0.01}
    run.warn_if_overruled(ExpTestCallback.from_args(args), args, flags)
    run.warn_if_overruled(ExpTestCallback(alpha=0.2), args, {"exptest": True})
    assert capsys.readouterr().err == ""
    run.warn_if_overruled(ExpTestCallback(alpha=0.2), args, flags)
    assert "warning: --exptest_alpha not used: the script has an ExpTestCallback of its own" in capsys.readouterr().err


def test_a_trainer_whose_arguments_lack_the_switch_names_the_flags(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(run, "add_flags_in_place", lambda flags: None)
    monkeypatch.setattr(Trainer, "__init__", Trainer.__init__)
    logging.Logger.warning_once.cache_clear()
    args = {is_on: ExpTestTrainingArguments(str(tmp_path), exptest=is_on, use_cpu=True) for is_on in (True, False)}
    # As a config file may set it, for arguments whose class is transformers' own.
    for value in args.values():
        value.exptest_alpha = 0.1
    users = run.install({})
    for value in args.values():
        Trainer(ToyClassifier(), value)
    assert users == [Trainer]
    assert caplog.messages == ["ExpTest is off: --exptest_alpha without --exptest is of no effect."]


def test_flags_of_the_finder(launch, script):
    users = [Trainer]
    assert launch("--find", script, users=users) == {}
    assert launch("--exptest_alpha", "0.01", "--find", script, users=users) == {"exptest_alpha": 0.01}


def test_the_arguments_know_that_a_finder_uses_the_flags(monkeypatch):
    given = []
    monkeypatch.setattr(Trainer, "train", Trainer.train)
    monkeypatch.setattr(run, "add_flags_in_place", given.append)
    run.install_finder({"exptest_alpha": 0.01}, str)
    assert given == [{"exptest": True, "exptest_alpha": 0.01}]


@pytest.mark.parametrize("place", ["before", "beside a config"])
@pytest.mark.parametrize("flag", ["--exptest_learning_rate=0.1", "--exptest_reuse=FOUND"])
def test_the_finder_takes_no_rate(launch, script, capsys, tmp_path, place, flag):
    look_alone().save(tmp_path)
    flag = flag.replace("FOUND", str(tmp_path))
    with pytest.raises(SystemExit) as exit_info:
        launch("--find", *([flag, script] if place == "before" else [script, "a.json", flag]))
    assert exit_info.value.code == (
        f"hf_exptest.run: --find looks for a learning rate, and {flag.split('=')[0]} gives one; leave one of them out."
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("own", "arguments", "command"),
    [
        (["--find"], ["s.py", "--output_dir", "my out"], "--exptest --exptest_reuse out s.py --output_dir 'my out'"),
        (
            ["--exptest", "--exptest_alpha", "0.01", "--find"],
            ["-m", "package.train", "a.json"],
            "--exptest --exptest_reuse out --exptest_alpha 0.01 -m package.train a.json",
        ),
    ],
)
def test_what_trains_with_the_rate_that_was_found(own, arguments, command):
    assert run.command_to_reuse(own, arguments, "out") == f"python -m hf_exptest.run {command}"


def test_find_after_the_script_is_told_where_it_stands(launch, script, capsys):
    names = "HfArgumentParser, TrainingArguments"
    parse = "HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()"
    script.write_text(f"from transformers import {names}; {parse}")
    with pytest.raises(SystemExit) as exit_info:
        launch(script, "--find")
    assert exit_info.value.code.startswith(
        f"hf_exptest.run: {str(script)!r} has no flag --find; before the script, it"
    )
    # Of other flags, and of a flag of its own, the launcher knows nothing.
    with pytest.raises(ValueError, match="not used by the HfArgumentParser"):
        launch(script, "--fined")
    script.write_text("import sys; print(sys.argv[1:])")
    launch(script, "--find")
    assert capsys.readouterr().out == "['--find']\n"


@pytest.mark.parametrize(("ending", "code"), [("", 1), ("sys.exit()", 1), ("sys.exit(0)", 1), ("sys.exit(3)", 3)])
def test_a_finder_that_looked_at_nothing_says_so(launch, script, capsys, ending, code):
    script.write_text(f"import sys; {ending}")
    with pytest.raises(SystemExit) as exit_info:
        launch("--find", script)
    assert exit_info.value.code == code
    (warning,) = warnings(capsys, "no learning rate was looked for")
    assert f"{str(script)!r} trained no Trainer in this process" in warning
    assert "accelerate launch -m hf_exptest.run --find" in warning


@pytest.mark.parametrize("code", [0, 1])
def test_the_finder_gives_the_exit_code(launch, script, capsys, code):
    # As the finder ends the script.
    script.write_text(f"import sys; sys.exit({code})")
    with pytest.raises(SystemExit) as exit_info:
        launch("--find", script, users=[Trainer])
    assert exit_info.value.code == code
    assert warnings(capsys, "warning") == []


@pytest.fixture
def finder(monkeypatch):
    """Puts the finder in the place of the training of every Trainer, for the length of a test."""
    monkeypatch.setattr(Trainer, "train", Trainer.train)
    monkeypatch.setattr(run, "add_flags_in_place", lambda flags: None)
    return lambda: run.install_finder({}, "train with {}".format)


class Flagged(Trainer):
    """A Trainer of a script, with the arguments that the launcher gives it."""

    def train(self, *args, **kwargs):
        return super().train(*args, **kwargs)


def flagged(path, data=None, **overrides):
    values = {"max_steps": 40, "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 7, "logging_steps": 1}
    args = ExpTestTrainingArguments(str(path), **{**values, **overrides})
    return Flagged(model=ToyClassifier(), args=args, train_dataset=data or classification_data())


def ends(trainer):
    """The exit code with which its training ends the process."""
    with pytest.raises(SystemExit) as exit_info:
        trainer.train()
    return exit_info.value.code


@pytest.mark.figures
def test_the_finder_finds_what_the_function_finds_and_trains_nothing(tmp_path, finder, capsys):
    found = find_learning_rate(flagged(tmp_path))
    users = finder()
    trainer = flagged(tmp_path / "out")
    before, state = weights(trainer.model), torch.get_rng_state()
    capsys.readouterr()
    assert ends(trainer) == 0
    assert users == [Flagged]
    assert_same_weights(weights(trainer.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"exptest.json", "exptest.png"}
    report = Report.load(tmp_path / "out")
    assert report.is_look_alone
    assert report.starting_rate == found.learning_rate
    assert report.searches[0].trials == found.trials
    assert report.setup["total_batch_size"] == 8
    summary, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    assert summary == report.summary()
    assert last == f"To train with it: train with {tmp_path / 'out'}"


def test_the_finder_takes_the_settings_of_the_arguments(tmp_path, finder):
    finder()
    assert ends(flagged(tmp_path, exptest_alpha=0.2, exptest_learning_rate=0.5)) == 0
    config = Report.load(tmp_path).config
    assert (config.alpha, config.learning_rate) == (0.2, None)


def test_a_finder_that_found_nothing_ends_with_an_error(tmp_path, finder, capsys):
    finder()
    # Labels that have nothing to do with the inputs, and a model that knows nothing.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 8, generator=generator), torch.randint(3, (2000,), generator=generator)
    trainer = flagged(tmp_path, [{"x": x, "labels": labels} for x, labels in zip(*rows, strict=True)], max_steps=60)
    trainer.model.net = torch.nn.Linear(8, 3)
    for parameter in trainer.model.parameters():
        torch.nn.init.zeros_(parameter)
    assert ends(trainer) == 1
    report = Report.load(tmp_path)
    assert (math.isnan(report.starting_rate), report.searches[0].is_conclusive) == (True, False)
    captured = capsys.readouterr()
    # The table of trials, and no word of how to use it.
    assert captured.out.rstrip().endswith(report.summary())
    assert captured.err.splitlines()[-1] == "hf_exptest.run: no learning rate was found."


def test_a_finder_that_cannot_look_says_why(tmp_path, finder, capsys):
    finder()

    class OneShot(torch.utils.data.IterableDataset):
        def __init__(self):
            self.rows = iter(classification_data())

        def __iter__(self):
            return self.rows

    trainer = flagged(tmp_path, OneShot())
    assert ends(trainer) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("hf_exptest.run: ExpTest cannot look for a learning rate here: ")
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_in_the_script_is_not_hidden(tmp_path, finder):
    finder()
    trainer = flagged(tmp_path)
    trainer.compute_loss = lambda model, inputs, **kwargs: {}["loss"]
    with pytest.raises(KeyError, match="loss"):
        trainer.train()
