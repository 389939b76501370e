# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import pytest
import toys

pytestmark = pytest.mark.distributed


def test_the_main_process_alone_speaks_and_writes(tmp_path):
    script = Path(__file__).with_name("train_reporting.py")
    (main, other), done = toys.run_processes(2, [script, tmp_path], tmp_path)
    assert main["decisions"] == other["decisions"]
    assert len(main["decisions"]) == 1
    assert main["said"] == [f"ExpTest: {line}" for line in main["decisions"]]
    assert main["files"] == ["README.md", "exptest.json", "exptest.png"]
    assert other["said"] == other["files"] == []
    printed = [line for line in done.stdout.splitlines() if "ExpTest" in line]
    assert printed == main["said"]
