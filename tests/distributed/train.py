# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Trains the tiny language model under torchrun, and writes what each process decided: see test_processes.py."""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toys import language_data, language_model, make_args

from hf_exptest import ExpTestCallback


class InOrder(Trainer):
    """Reads the data in their order, so that any number of processes sees the same global batches."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def main(folder: str, global_batch: int, accumulation: int) -> None:
    model = language_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    args = make_args(folder, max_steps=60, gradient_accumulation_steps=accumulation)
    args.per_device_train_batch_size = global_batch // (args.world_size * accumulation)
    callback = ExpTestCallback(window=0.1)
    trainer = InOrder(model=model, args=args, train_dataset=language_data(512), callbacks=[callback])
    trainer.train()
    result = {
        "world_size": args.world_size,
        "history": callback.history,
        "rates": [row["learning_rate"] for row in trainer.state.log_history if "loss" in row],
        "search": callback.search.learning_rate,
    }
    Path(folder, f"rank{args.process_index}.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    # With gloo, torch now and then aborts while the interpreter winds down ("terminate called without an active
    # exception"), also in a training without ExpTest. The work is done and written, so leave without winding down; an
    # error before this line still ends the process with its own exit code.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
