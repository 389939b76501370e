# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Kills a training again and again, and compares what comes out of it with one that was never killed.

    python tests/end_to_end/killed.py NUM_KILLS

A third of the kills come at any time, a third in the bound or the look, a third while a checkpoint is written. Each
new start resumes from the last whole checkpoint, the one whose last file is there.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", OMP_NUM_THREADS="1", MPLBACKEND="Agg")

import torch
import toys
from transformers import Trainer

import hf_exptest.look
from hf_exptest import ExpTestCallback, Report

# It takes longer than the training.
Report.save_figure = lambda self, folder: None
KINDS = ["any time", "look", "checkpoint"]
MAX_STEPS, LOOK_AT = 60, 6


def whole_checkpoints(folder):
    """Those whose last file is there and can be read, by step."""
    found = {}
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            found[json.loads(path.read_text())["global_step"]] = path.parent
        except ValueError:
            pass
    return found


def train(folder, say):
    """Train to the end from the last whole checkpoint; `say` is called where a search or a checkpoint begins."""

    def announced(function, word):
        def call(*args, **kwargs):
            say(word)
            return function(*args, **kwargs)

        return call

    for name in ("first_update_bound", "look"):
        setattr(hf_exptest.look, name, announced(getattr(hf_exptest.look, name), "l"))
    Trainer._save_checkpoint = announced(Trainer._save_checkpoint, "c")
    Trainer._save_optimizer_and_scheduler = announced(Trainer._save_optimizer_and_scheduler, "o")
    callback = ExpTestCallback(warmup=0.1, cooldown=0.1, window=0.4)
    trainer = toys.make_trainer(folder, [callback], max_steps=MAX_STEPS, save_strategy="steps", save_steps=4)
    # From a checkpoint of the last step, Trainer makes one step too many, with ExpTest or without.
    checkpoints = {step: path for step, path in whole_checkpoints(folder).items() if step < MAX_STEPS}
    trainer.train(resume_from_checkpoint=str(checkpoints[max(checkpoints)]) if checkpoints else None)
    assert [entry["step"] for entry in callback.history if entry["test"] == "look"] == [LOOK_AT]
    torch.save([callback.history, trainer.model.state_dict()], folder / "result.pt")


def in_child(folder, kind):
    """Train in a process that is killed at a moment of `kind`; whether it was, before it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        train(folder, lambda word: os.write(writer, word.encode()))
        os._exit(0)
    os.close(writer)
    if kind is not None:
        # Wait for the word, or not; then a moment longer.
        wanted = {"any time": b"", "look": b"l", "checkpoint": random.choice([b"c", b"o"])}[kind]
        while wanted:
            heard = os.read(reader, 1)
            if heard in (wanted, b""):
                break
        time.sleep(random.uniform(0, {"any time": 1.5, "look": 0.3, "checkpoint": 0.01}[kind]))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reader)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the training failed by itself"
    return False


def is_equal(first, second):
    (history, weights), (other_history, other_weights) = (
        torch.load(folder / "result.pt") for folder in (first, second)
    )
    return history == other_history and all(torch.equal(weights[name], other_weights[name]) for name in weights)


def main(num_kills):
    random.seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        reference = Path(temporary, "never-killed")
        in_child(reference, None)
        kills, finished = dict.fromkeys(KINDS, 0), []
        num_partial = 0
        folder = Path(temporary, "0")
        for i in range(num_kills):
            kind = KINDS[i % 3]
            while True:
                has_looked = max(whole_checkpoints(folder), default=0) >= LOOK_AT
                if (folder / "result.pt").exists() or (kind == "look" and has_looked):
                    folder = Path(temporary, str(int(folder.name) + 1))
                if in_child(folder, kind):
                    break
                finished.append(folder)
            kills[kind] += 1
            num_partial += len(list(folder.glob("checkpoint-*"))) > len(whole_checkpoints(folder))
        for path in sorted(set(Path(temporary).iterdir()) - {reference}):
            if not (path / "result.pt").exists():
                in_child(path, None)
                finished.append(path)
        equal = sum(is_equal(reference, path) for path in finished)
    print(json.dumps({"kills": kills, "partial_checkpoints": num_partial, "finished": len(finished), "equal": equal}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
