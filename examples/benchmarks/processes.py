# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A function in a process of its own."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any


def in_new_process(function: Callable[..., Any], arguments: Sequence[Any], timeout: float | None = None) -> Any:
    """
    `function(*arguments)` in a fresh process, since peak memory is a process's own, and never falls.

    Raises:
        `TimeoutError`: after `timeout` seconds, if it is given; the process is stopped.
        `RuntimeError`: with the error of `function`, or if its process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments), daemon=True)
    process.start()
    # So that the other end is closed once the process has ended.
    sender.close()
    try:
        if not receiver.poll(timeout):
            raise TimeoutError
        result, error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise RuntimeError(error)
    return result


def _send(sender: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        sender.send((function(*arguments), None))
    except Exception:
        sender.send((None, traceback.format_exc(limit=-3)))
