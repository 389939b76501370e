# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import re
import subprocess
from pathlib import Path

import pytest
import toys

SCRIPT = Path(__file__).parents[2] / "examples" / "accelerate_loop.py"


@pytest.mark.distributed
@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_example_trains(tmp_path, num_processes):
    done = subprocess.run(
        [*toys.torchrun(num_processes), str(SCRIPT), "--cpu", "--max_steps", "200"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=True,
    )
    rate = float(re.search(rf"^{num_processes} process\(es\), starting rate (\S+)$", done.stdout, re.M)[1])
    # Another number of processes reads other batches; all these rates train the network.
    assert 0.003 < rate < 0.3
    used = [float(rate) for rate in re.findall(r"learning rate (\S+)$", done.stdout, re.M)]
    # A decay on the way, if there was one, divides both by three; the cool-down of 140 steps has 101 and 1 left.
    # They are printed with two digits.
    assert used[0] / used[1] == pytest.approx(101, rel=0.1)
    assert used[0] in (pytest.approx(rate * 101 / 140, rel=0.1), pytest.approx(rate * 101 / 420, rel=0.1))
    assert float(re.search(r"held-out digits: (\S+)%", done.stdout)[1]) > 93
