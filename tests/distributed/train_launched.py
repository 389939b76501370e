# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A script as `accelerate launch` starts it, with all settings of the engine from its file: see test_launched.py."""

import json
import os
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toys

from hf_exptest import ExpTestCallback


def main(folder: str) -> None:
    # DeepSpeed wants it said here too.
    args = toys.make_args(folder, max_steps=20, bf16=True)
    if "ACCELERATE_USE_FSDP" in os.environ:
        # See train_engine.py.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    callback = ExpTestCallback()
    trainer = Trainer(
        model=toys.language_model(), args=args, train_dataset=toys.language_data(512), callbacks=[callback]
    )
    trainer.train()
    search = callback.search
    result = {
        "world_size": args.world_size,
        "engine": type(trainer.model_wrapped).__name__,
        "stage": trainer.deepspeed.zero_optimization_stage() if trainer.is_deepspeed_enabled else None,
        "precision": trainer.accelerator.mixed_precision,
        "history": callback.history,
        "rate": search.learning_rate,
        "first_losses": [trial.curve[0] for trial in search.trials],
        "gains": [max(search.untouched_losses) - trial.end_loss for trial in search.trials],
        "steps": trainer.state.global_step,
    }
    Path(folder, f"rank{args.process_index}.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    # As in train.py: torch may abort while it winds down.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
