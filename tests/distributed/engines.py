# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What test_engines.py and test_deepspeed.py ask of every engine; train_engine.py does the work."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import toys

SCRIPT = Path(__file__).with_name("train_engine.py")
# Without it DeepSpeed looks for a GPU.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu"}


def run(folder, num_processes, *runs, timeout=300):
    """For each of `runs`, what each process saw."""
    arguments = [str(folder), *map(json.dumps, runs)]
    results, _ = toys.run_processes(num_processes, [SCRIPT, *arguments], folder, timeout, ENVIRONMENT)
    return list(zip(*(result["runs"] for result in results), strict=True))


def assert_same_training(ranks, kind):
    """That a training after a search is the one that it would have been, in every number of every process."""
    for rank in ranks:
        assert rank["world_size"] == len(ranks) > 1
        assert rank["kind"][: len(kind)] == kind
        assert len(rank["given"]["losses"]) == 24
        assert len({norm for norm in rank["given"]["norms"] if norm > 0}) == 12
        assert rank["after"] == rank["given"]
        if "resumed" in rank:
            assert [entry["test"] for entry in rank["starts"]] == ["below_bound", "look"]
            assert rank["starts"][1]["learning_rate"] == rank["search"]["rate"]
            assert rank["resumed"] == {
                "losses": rank["given"]["losses"][16:],
                "norms": rank["given"]["norms"],
                "rates": rank["given"]["rates"],
                # DeepSpeed counts micro-batches anew.
                "state": {**rank["given"]["state"], "counters": rank["resumed"]["state"]["counters"]},
            }


def assert_same_search(ranks, one=None):
    """That all processes saw the same search; and, without dropout, the one that a single process sees."""
    for rank in ranks:
        assert rank["search"] == ranks[0]["search"]
        # The first loss of a trial is that of the untouched weights, so another one would tell of stale shards.
        assert len({trial["first_loss"] for trial in rank["search"]["trials"]}) == 1
    assert {trial["num_steps"] for trial in ranks[0]["search"]["trials"]} == {14}
    assert len(ranks[0]["search"]["trials"]) >= 3
    if one is not None:
        found, expected = ranks[0]["search"], one["search"]
        assert found["rate"] == expected["rate"]
        assert found["bound"] == pytest.approx(expected["bound"], rel=1e-4)
        for name in ("learning_rate", "end_loss"):
            ends = [[trial[name] for trial in search["trials"]] for search in (found, expected)]
            assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def assert_an_error_of_one_ends_all(folder, engine):
    """That an error in the look on one process alone is what the user sees, and nobody waits for ever."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [*toys.torchrun(2), str(SCRIPT), str(folder), json.dumps({"scenario": "fail", "engine": engine})],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1
    assert "[rank1]: ArithmeticError: on process 1 of 2" in done.stderr
