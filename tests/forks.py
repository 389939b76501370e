# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Runs scripts in new processes that are forks of one that has imported hf_exptest already.

A new interpreter imports for ten seconds, and then trains for one. It is for the tests of what begins there: the
launcher, torchrun, and how their processes end.
"""

import gc
import itertools
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing import connection
from pathlib import Path
from subprocess import CompletedProcess

from torch.distributed import TCPStore

TESTS = Path(__file__).parent
_CONTEXT = multiprocessing.get_context("forkserver")
# With all that it imports itself, and nothing else: the launcher changes classes before the imports of a script.
_CONTEXT.set_forkserver_preload(["hf_exptest"])


def _begin(command, environment, outputs):
    """In the new process: as a new interpreter with this command."""
    # As in conftest.py.
    gc.freeze()
    os.environ.update(environment)
    for stream, path in zip((sys.stdout, sys.stderr), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY), stream.fileno())
        # A script may end without winding down.
        stream.reconfigure(line_buffering=True)
    # What pytest has added is not for the script.
    sys.path[:] = [path for path in sys.path if not Path(path or ".").resolve().is_relative_to(TESTS)]
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")


def _run(command, environments, timeout):
    """One process for each of `environments`: the first exit code that is not 0, if any, and what they printed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [[Path(folder, f"{name}{i}") for name in ("out", "err")] for i in range(len(environments))]
        processes = [
            _CONTEXT.Process(target=_begin, args=(list(map(str, command)), environment, paths))
            for environment, paths in zip(environments, outputs, strict=True)
        ]
        for path in itertools.chain(*outputs):
            path.touch()
        for process in processes:
            process.start()
        code, running = 0, {process.sentinel: process for process in processes}
        while running and code == 0:
            ended = connection.wait(list(running), timeout)
            for sentinel in ended:
                process = running.pop(sentinel)
                process.join()
                code = code or process.exitcode
            if not ended:
                code = "timeout"
        # They would wait for the one that has ended with an error.
        for process in running.values():
            process.kill()
            process.join()
        stdout, stderr = ("".join(path.read_text() for path in paths) for paths in zip(*outputs, strict=True))
    return CompletedProcess(command, code, stdout, stderr)


def python(*command, timeout=300, environment=None):
    """What `python *command` printed; it must end well."""
    done = _run(command, [environment or {}], timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def torchrun(num_processes, command, timeout=300, environment=None):
    """What `torchrun --nproc_per_node NUM_PROCESSES *command` does."""
    # As torchrun does, this process has the store, so nobody has to look for a free port.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    everywhere = {
        **(environment or {}),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    return _run(command, [{**everywhere, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(num_processes)], timeout)
