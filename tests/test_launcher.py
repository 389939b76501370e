# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What the launcher reads, refuses and warns of; tests/end_to_end/test_run.py runs it on whole scripts."""

import sys

import pytest

from hf_exptest import run


@pytest.fixture
def launch(monkeypatch):
    """Runs the launcher without touching transformers' classes, and returns the flags that it took."""

    def main(*arguments, users=()):
        taken = []
        monkeypatch.setattr(sys, "argv", ["hf_exptest.run", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(run, "install", lambda flags: taken.append(flags) or list(users))
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
        (["--output_dir", "out", "SCRIPT"], ["'--output_dir' is not a flag", "--exptest_alpha", "come after it"]),
        (["--exptest", "--verbose", "SCRIPT"], ["'--verbose' is not a flag of the launcher"]),
        (["--exptest_alpha", "0.01", "SCRIPT"], ["'--exptest_alpha' before the script needs --exptest there too"]),
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


def warnings(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "ExpTest was not turned on" in line]


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
