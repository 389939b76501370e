# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Takes one protection out of the package at a time, and asks whether a test notices.

    python tests/mutations.py

works on a copy; ends with an error if a mutant survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What is lost, the file, the code, what takes its place, and the tests that should fail.
MUTANTS = [
    (
        "spikes are left out of a test",
        "statistics.py",
        "values[1:-1] - np.maximum(values[:-2], values[2:]) > 2 * (rest.max() - rest.min())",
        "False",
        "tests/test_faults.py -k one_bad_loss",
    ),
    (
        "one loss that is not finite is no divergence",
        "controller.py",
        "_DIVERGED_AFTER = 2",
        "_DIVERGED_AFTER = 1",
        "tests/test_faults.py -k one_bad_loss",
    ),
    (
        "the rate stays positive however often it is lowered",
        "controller.py",
        "max(self.config.beta * self.learning_rate, _LOWEST_RATE)",
        "self.config.beta * self.learning_rate",
        "tests/test_properties.py -k never_rises",
    ),
    (
        "a resumed run does not search again",
        "callback.py",
        "self._scheduler.last_epoch == 0 and self.config.learning_rate is None",
        "self.config.learning_rate is None",
        "tests/test_resume.py -k not_searched",
    ),
    (
        "losses not yet reduced are in the checkpoint",
        "scheduler.py",
        '"buffer": _stack(self._buffer).tolist() if self._buffer else []',
        '"buffer": []',
        "tests/test_scheduler.py -k resume",
    ),
    (
        "an error in the search restores the model",
        "snapshot.py",
        "        self.reset_training()\n        if self._scaler_state",
        "        if exc is None:\n            self.reset_training()\n        if self._scaler_state",
        "tests/test_faults.py -k restores_the_model",
    ),
    (
        "data that can be read only once is not searched on",
        "search.py",
        "return is_stream and iter(dataset) is iter(dataset)",
        "return False",
        "tests/test_search.py -k one_shot",
    ),
    (
        "processes that disagree say so",
        "processes.py",
        "    if others:\n",
        "    if False:\n",
        "tests/test_processes.py",
    ),
]


def survives(file: str, code: str, instead: str, tests: str) -> bool:
    """Whether the tests pass without the protection."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("hf_exptest", "tests", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        path = Path(folder, "hf_exptest", file)
        text = path.read_text()
        assert text.count(code) == 1, f"{file} has changed: {code!r} is not in it once"
        path.write_text(text.replace(code, instead))
        # The copy comes before the installed package.
        environment = {**os.environ, "PYTHONPATH": folder}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        # 1: tests failed. Anything but that and 0 means that they did not run.
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode == 0


def main() -> None:
    survivors = []
    for name, *mutant in MUTANTS:
        is_alive = survives(*mutant)
        print(f"{'SURVIVED' if is_alive else 'noticed'}: without '{name}'", flush=True)
        survivors += [name] * is_alive
    if survivors:
        sys.exit(f"{len(survivors)} of {len(MUTANTS)} protections can be taken out unnoticed.")


if __name__ == "__main__":
    main()
