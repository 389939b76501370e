# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Unmodified scripts under `python -m hf_exptest.run`, each in a process of its own.

Of each kind of command, one starts a new interpreter; the others are forks, which import nothing anew.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import toys

from hf_exptest import Report

FOLDER = Path(__file__).parent
FLAGS = ["--max_steps", "30", "--per_device_train_batch_size", "8", "--logging_steps", "1", "--use_cpu", "true"]
FLAGS += ["--report_to", "none", "--save_strategy", "no"]
TRL_FLAGS = ["--bf16", "false", "--gradient_checkpointing", "false"]
LAUNCHER = ["-m", "hf_exptest.run"]


def python(*command):
    """What the command printed; it must end well."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def script(name):
    return str(FOLDER / f"{name}.py")


def read_json(path):
    return json.loads(path.read_text())


def logged(folder, name):
    return [row[name] for row in read_json(folder / "trainer_state.json")["log_history"] if name in row]


def stated_rates(text):
    """Those that the text says are the rate; the look's progress bar says which one it tries."""
    text = re.sub(r"ExpTest look: .*", "", text)
    return [float(rate) for rate in re.findall(r"learning[_ ]rate`?:? (\d(?:[\d.e+-]*\d)?)", text)]


def assert_exptest_set_the_rate(folder, done, state=None):
    """The log follows the rates of the start and the look, and so does every sentence about them."""
    start, look = read_json(folder / "exptest.json")["history"][:2]
    assert (start["test"], look["test"], look["step"]) == ("below_bound", "look", 3)
    low, found = start["learning_rate"], look["learning_rate"]
    # No trace of the default 5e-5, or of TRL's 1e-6 to 2e-5.
    assert found > 2e-4
    # The 3 steps of warm-up, and 5 of the second one.
    rates = logged(state or folder, "learning_rate")
    assert len(rates) == 30
    rise = [low + (found - low) * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert rates[:9] == pytest.approx([low / 3, low * 2 / 3, low, *(rise if found > low else [found] * 5), found])
    card = (folder / "README.md").read_text()
    for text in (card, done.stdout + done.stderr):
        # In two digits, at worst.
        stated = stated_rates(text)
        assert [rate for rate in stated if rate not in (pytest.approx(low, 0.05), pytest.approx(found, 0.05))] == []
        assert stated != []
    # Among the hyper-parameters there is the rate that was found, and no other.
    listed = [float(rate) for rate in re.findall(r"- `?learning_rate`?: (\S+)", card)]
    assert listed == pytest.approx([found] * len(listed), rel=0.05)
    assert all(kind.startswith("ExpTest") for kind in re.findall(r"lr_scheduler_type`?: (.*)", card))
    assert re.findall(r"warmup_(?:steps|ratio)`?: .*|lr_scheduler_(?:kwargs|warmup\w*)`?: .*", card) == []


def test_a_script_that_reads_the_flag(tmp_path):
    done = forks.python(
        *LAUNCHER, script("run_classification"), *FLAGS, "--output_dir", str(tmp_path), "--exptest", "true",
        "--exptest_alpha", "0.01",
    )  # fmt: skip
    assert_exptest_set_the_rate(tmp_path, done)
    assert "- learning_rate: " in (tmp_path / "README.md").read_text()
    assert read_json(tmp_path / "exptest.json")["config"]["alpha"] == 0.01
    assert "exptest_alpha=0.01,\n" in done.stdout
    assert "warning: ExpTest" not in done.stderr


@pytest.mark.parametrize("command", [["{config}", "--exptest", "--exptest_alpha=0.01"], ["{config_with_exptest}"]])
def test_a_script_that_takes_one_config_file(tmp_path, command):
    config = {"output_dir": str(tmp_path), "max_steps": 30, "logging_steps": 1, "use_cpu": True}
    config |= {"report_to": "none", "save_strategy": "no"}
    with_exptest = {**config, "exptest": True, "exptest_alpha": 0.01}
    for name, values in (("config", config), ("config_with_exptest", with_exptest)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    arguments = [part.format(**{path.stem: path for path in tmp_path.glob("*.json")}) for part in command]
    done = forks.python(*LAUNCHER, script("run_classification"), *arguments)
    assert_exptest_set_the_rate(tmp_path, done)
    assert read_json(tmp_path / "exptest.json")["config"]["alpha"] == 0.01


def test_a_script_that_makes_its_arguments_itself(tmp_path):
    done = python(*LAUNCHER, "--exptest", "--exptest_learning_rate=0.02", script("own_arguments"), str(tmp_path))
    assert f"Arguments: {tmp_path}\n" in done.stdout
    assert logged(tmp_path, "learning_rate")[:3] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02])

    done = forks.python(*LAUNCHER, script("own_arguments"), str(tmp_path), "--exptest")
    assert f"Arguments: {tmp_path} --exptest\n" in done.stdout
    assert logged(tmp_path, "learning_rate")[0] == 5e-5
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("hf_exptest.run: ")]
    assert "ExpTest was not turned on" in warning
    assert f"python -m hf_exptest.run --exptest {script('own_arguments')} ..." in warning


def test_a_callback_of_the_script_is_the_only_one(tmp_path):
    done = forks.python(*LAUNCHER, "--exptest", script("own_arguments"), str(tmp_path), "own-callback")
    (callbacks,) = [line for line in done.stdout.splitlines() if line.startswith("Callbacks: ")]
    assert callbacks.count("ExpTestCallback") == 1
    assert max(logged(tmp_path, "learning_rate")) == 0.01


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A language model with its tokenizer, and a folder of preferences."""
    folder = tmp_path_factory.mktemp("tiny")
    # With weights as small as usual, the first steps of DPO already bring its loss to zero.
    toys.language_model(initializer_range=0.1).save_pretrained(folder)
    toys.save_numbered_tokenizer(folder)
    rows = [toys.preference(row) for row in range(128)]
    (folder / "preferences").mkdir()
    (folder / "preferences" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_the_scripts_of_trl(tmp_path, tiny, name):
    done = forks.python(
        *[*LAUNCHER, "--exptest", "-m", f"trl.scripts.{name}", *FLAGS, *TRL_FLAGS],
        *["--model_name_or_path", str(tiny), "--dataset_name", str(tiny / "preferences")],
        # TRL writes its card beside each checkpoint.
        *["--save_strategy", "steps", "--save_steps", "30", "--output_dir", str(tmp_path)],
    )
    assert_exptest_set_the_rate(tmp_path, done, state=tmp_path / "checkpoint-30")


def test_a_script_in_the_style_of_trl(tmp_path):
    done = forks.python(*LAUNCHER, script("run_sft"), *FLAGS, *TRL_FLAGS, "--output_dir", str(tmp_path), "--exptest")
    assert_exptest_set_the_rate(tmp_path, done)


def test_without_the_flag_the_script_runs_as_ever(tmp_path):
    folders = [tmp_path / "launched", tmp_path / "plain"]
    for folder, start, launcher in zip(folders, (python, forks.python), (LAUNCHER, []), strict=True):
        done = start(*launcher, script("run_classification"), *FLAGS, "--output_dir", str(folder))
        lines = done.stdout.replace(str(folder), "").splitlines()
        # Without times of the day, and how long it took.
        lines = [line for line in lines if not re.search(r"\d\d:\d\d:\d\d|runtime|per_second", line)]
        (folder / "stdout").write_text("\n".join(lines))
    launched, plain = ({path.name: path for path in folder.iterdir()} for folder in folders)
    assert launched.keys() == plain.keys()
    assert launched.keys() >= {"README.md", "training_args.bin", "trainer_state.json", "model.safetensors"}
    for name in ("README.md", "stdout"):
        assert launched[name].read_text() == plain[name].read_text()
    assert "learning_rate=5e-05,\n" in plain["stdout"].read_text()
    assert "Callbacks: DefaultFlowCallback " in plain["stdout"].read_text()
    assert launched["model.safetensors"].read_bytes() == plain["model.safetensors"].read_bytes()
    assert logged(folders[0], "loss") == logged(folders[1], "loss")
    assert len(logged(folders[0], "loss")) == 30


def test_the_finder_ends_a_script_before_it_trains_and_a_training_starts_from_its_rate(tmp_path):
    found, trained = tmp_path / "found", tmp_path / "trained"
    done = python(*LAUNCHER, "--find", script("run_classification"), *FLAGS, "--output_dir", str(found))
    assert {path.name for path in found.iterdir()} == {"exptest.json", "exptest.png"}
    report = Report.load(found)
    assert (report.is_look_alone, report.searches[0].step) == (True, 3)
    assert f"\n{report.summary()}\n" in done.stdout
    words = [*LAUNCHER, "--exptest", "--exptest_reuse", found, script("run_classification"), *FLAGS]
    command = shlex.join(["python", *map(str, words), "--output_dir", str(found)])
    assert done.stdout.endswith(f"To train with it: {command}\n")
    assert "train_loss" not in done.stdout

    done = forks.python(
        *LAUNCHER, script("run_classification"), *FLAGS, "--output_dir", str(trained), "--exptest",
        "--exptest_reuse", str(found),
    )  # fmt: skip
    rate = report.starting_rate
    assert logged(trained, "learning_rate")[:4] == pytest.approx([rate / 3, rate * 2 / 3, rate, rate], rel=1e-12)
    (first, *_) = read_json(trained / "exptest.json")["history"]
    assert (first["test"], first["learning_rate"]) == ("reused", rate)
    assert read_json(trained / "exptest.json")["searches"] == []
    assert "reuses the learning rate" not in done.stderr
    assert "ExpTest look" not in done.stderr
    card = (trained / "README.md").read_text()
    assert f"from the learning rate of an earlier run ({found}), {rate:.3g}" in card
    assert f"- learning_rate: {rate}\n" in card


def test_saved_arguments_can_be_read_without_hf_exptest(tmp_path):
    forks.python(*LAUNCHER, script("save_arguments"), "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false")
    done = python(
        "-c",
        "import sys, torch; sys.modules['hf_exptest'] = None\n"
        "for path in sys.argv[1:]:\n"
        "    args = torch.load(path, weights_only=False)\n"
        "    print(type(args).__module__, type(args).__name__, args.output_dir, args.exptest, args.exptest_alpha)",
        *(str(path) for path in sorted(tmp_path.iterdir())),
    )
    values = f"{tmp_path} False 0.05"
    assert done.stdout.splitlines() == [
        f"trl.trainer.sft_config SFTConfig {values}",
        f"transformers.training_args_seq2seq Seq2SeqTrainingArguments {values}",
        f"transformers.training_args TrainingArguments {values}",
    ]


@pytest.mark.distributed
def test_under_torchrun(tmp_path):
    done = python(
        *["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"],
        *["--rdzv_endpoint", "localhost:0", *LAUNCHER, script("run_classification"), *FLAGS],
        *["--output_dir", str(tmp_path), "--exptest", "true", "--disable_tqdm", "false"],
    )
    # Two processes share 256 rows in batches of 16: 30 steps are 30/16 epochs.
    assert read_json(tmp_path / "trainer_state.json")["epoch"] == pytest.approx(30 / 16)
    assert_exptest_set_the_rate(tmp_path, done)
    assert (done.stdout + done.stderr).count("starts with learning rate") == 1


def test_under_accelerate_launch(tmp_path):
    done = python(
        *["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *LAUNCHER],
        *["--exptest", "--exptest_learning_rate", "0.02", script("own_arguments"), str(tmp_path)],
    )
    assert f"Arguments: {tmp_path}\n" in done.stdout
    assert max(logged(tmp_path, "learning_rate")) == 0.02
