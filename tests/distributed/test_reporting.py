# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import json
import subprocess
from pathlib import Path

import pytest
import toys

pytestmark = pytest.mark.distributed


def test_the_main_process_alone_speaks_and_writes(tmp_path):
    script = Path(__file__).with_name("train_reporting.py")
    done = subprocess.run([*toys.torchrun(2), str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    main, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert main["world_size"] == other["world_size"] == 2
    assert main["decisions"] == other["decisions"]
    assert len(main["decisions"]) == 1
    assert main["said"] == [f"ExpTest: {line}" for line in main["decisions"]]
    assert main["files"] == ["README.md", "exptest.json", "exptest.png"]
    assert other["said"] == other["files"] == []
    printed = [line for line in done.stdout.splitlines() if "ExpTest" in line]
    assert printed == main["said"]
