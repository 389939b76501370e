# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The learning rate of an earlier run or finder, for another run with the same set-up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from transformers import Trainer

from .config import ExpTestConfig
from .report import Report
from .words import source_in_words

# Looked for, or chosen by somebody; the others are what a run makes do with.
_REUSABLE = ("search", "given", "reused")


def setup_of(trainer: Trainer, optimizer: Optimizer) -> dict[str, Any]:
    """What the best learning rate depends on beside the data and the number of steps, in values that JSON has."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    # FSDP2 gives a model a class of its own, above the one that it had.
    cls = next(base for base in type(model).__mro__ if not base.__name__.startswith("FSDP"))
    inner: Any = optimizer
    # Accelerate and DeepSpeed wrap it.
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {
        "model": cls.__name__,
        "name_or_path": str(getattr(getattr(model, "config", None), "name_or_path", "")),
        # Under DeepSpeed ZeRO-3 a parameter is empty, but knows the size of the whole.
        "trainable_parameters": sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained),
        "optimizer": type(inner).__name__,
        "weight_decay": max(float(group.get("weight_decay", 0)) for group in optimizer.param_groups),
        "total_batch_size": trainer.get_total_train_batch_size(trainer.args),
    }


def load_reusable(path: str | Path) -> Report:
    """
    The report of an earlier run or finder, whose `starting_rate` another run can start from.

    Args:
        path (`str` or `Path`): of `exptest.json`, or of the folder that holds it.

    Raises:
        `ValueError`: naming the file, if it cannot be read, or no look found a rate there and nobody gave one.
    """
    report = Report.load(path)
    # A look alone that found nothing has NaN.
    if report.rate_source not in _REUSABLE or not report.starting_rate > 0:
        raise ValueError(
            f"{str(path)!r} has no learning rate to reuse: it tells of {source_in_words(report)},"
            f" {report.starting_rate:.3g}, not of one that was found."
        )
    return report


def with_reused_rate(config: ExpTestConfig) -> ExpTestConfig:
    """
    The same settings, where the rate that `config.reuse` holds is the given one.

    Raises:
        `ValueError`: as [`load_reusable`], and if `config.learning_rate` is another rate.
    """
    if config.reuse is None:
        return config
    rate = load_reusable(config.reuse).starting_rate
    if config.learning_rate not in (None, rate):
        raise ValueError(
            f"learning_rate={config.learning_rate!r} and reuse={config.reuse!r}, which holds {rate!r}, are two"
            " starting rates; give one of them."
        )
    return dataclasses.replace(config, learning_rate=rate)


def doubts(earlier: Report, present: Report) -> str | None:
    """What of the set-up is not as it was for the rate that is reused; `None` where nothing is known to differ."""
    then, now = (
        {**report.setup, "num_training_steps": report.num_training_steps} if report.setup else {}
        for report in (earlier, present)
    )
    if not then:
        return "of an earlier release, whose file does not say what set-up it is for"
    changed = [name for name in now if then.get(name) != now[name]]
    changes = [f"{name} {then.get(name)!r} then, {now[name]!r} now" for name in changed]
    return f"of another set-up ({'; '.join(changes)})" if changes else None
