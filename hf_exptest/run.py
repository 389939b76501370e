# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Run a training script as it is, with ExpTest's flags added to its own.

    python -m hf_exptest.run their_script.py --exptest ...
    accelerate launch -m hf_exptest.run their_script.py --exptest ...
    torchrun --nproc_per_node 2 -m hf_exptest.run their_script.py --exptest ...

For scripts that read `TrainingArguments` (or a subclass, such as TRL's `SFTConfig`) with `HfArgumentParser` and make a
`Trainer` from them. `--exptest` turns ExpTest on; without it the script runs as ever. `--exptest_alpha`,
`--exptest_beta`, `--exptest_learning_rate` and `--exptest_preset` are described by the script's own `--help`.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .callback import ExpTestCallback
from .internals import find_trainer
from .training_args import ExpTestSeq2SeqTrainingArguments, ExpTestTrainingArguments


class FlagCallback(TrainerCallback):
    """Gives a new Trainer its [`ExpTestCallback`], if its arguments ask for one and the script has not."""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = find_trainer(self)
        if trainer is None or not getattr(args, "exptest", False):
            return
        if any(isinstance(callback, ExpTestCallback) for callback in trainer.callback_handler.callbacks):
            return
        callback = ExpTestCallback.from_args(args)  # type: ignore[arg-type]
        trainer.add_callback(callback)
        callback.set_trainer(trainer)


def install() -> None:
    """Replace transformers' argument classes by those with the flags, and add `FlagCallback` to every new Trainer."""
    for module in (transformers, transformers.training_args):
        vars(module)["TrainingArguments"] = ExpTestTrainingArguments
    for module in (transformers, transformers.training_args_seq2seq):
        vars(module)["Seq2SeqTrainingArguments"] = ExpTestSeq2SeqTrainingArguments
    defaults: list[Any] = transformers.trainer.DEFAULT_CALLBACKS
    if FlagCallback not in defaults:
        defaults.append(FlagCallback)


def main() -> None:
    """Run the script in `sys.argv[1]` with the arguments after it."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if arguments else 2)
    script = Path(arguments[0])
    if not script.is_file():
        sys.exit(f"hf_exptest.run: there is no script {str(script)!r}; usage: python -m hf_exptest.run script.py ...")
    install()
    sys.argv = arguments
    # As `python script.py` would: the script may import its neighbours.
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
