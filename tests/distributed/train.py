# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Trains under torchrun, and writes what each process decided: see test_torchrun.py."""

import json
import os
import sys
import zlib
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toys

from hf_exptest import ExpTestCallback, Report, find_learning_rate
from hf_exptest.loss_signal import LossSignal

# It takes longer than the training.
Report.save_figure = lambda self, folder: None

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "gather", "barrier")


def count_collectives():
    """Counts, from now on, the collectives that hf_exptest calls itself."""
    counts = dict.fromkeys(COLLECTIVES, 0)

    def counted(name, collective):
        def call(*args, **kwargs):
            frame, names = sys._getframe(1), []
            while frame is not None:
                names.append(frame.f_globals.get("__name__", ""))
                frame = frame.f_back
            counts[name] += any(module.startswith("hf_exptest.processes") for module in names)
            return collective(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(torch.distributed, name, counted(name, getattr(torch.distributed, name)))
    return counts


def make_language_trainer(folder, global_batch, accumulation, callbacks, num_rows=512, **overrides):
    model = toys.language_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    args = toys.make_args(folder, gradient_accumulation_steps=accumulation, **overrides)
    args.per_device_train_batch_size = global_batch // (args.world_size * accumulation)
    return toys.InOrder(model=model, args=args, train_dataset=toys.language_data(num_rows), callbacks=callbacks)


def decide(folder, accumulation, **overrides):
    """A whole run; what was decided, and which rates were used."""
    callback = ExpTestCallback(window=0.15, cooldown=0.4)
    trainer = make_language_trainer(folder, 16, accumulation, [callback], **{"max_steps": 200, **overrides})
    trainer.train()
    return trainer, {
        "history": callback.history,
        "rates": [row["learning_rate"] for row in trainer.state.log_history if "loss" in row],
        "search": callback.search.learning_rate,
        "steps": trainer.state.global_step,
    }


def collectives(folder):
    """How many collectives the steps of a default run take, beside those of the search."""
    callback = ExpTestCallback(learning_rate=0.01)
    trainer = make_language_trainer(folder, 16, 1, [callback], max_steps=200, logging_strategy="no")
    counts = count_collectives()
    trainer.train()
    return trainer, {"counts": counts, "steps": trainer.state.global_step, "history": callback.history}


def disagree(folder):
    """Every process brings settings of its own."""
    rank = int(os.environ["RANK"])
    trainer = make_language_trainer(folder, 16, 1, [ExpTestCallback(learning_rate=0.01 * (rank + 1))])
    try:
        trainer.train()
    except RuntimeError as error:
        return trainer, {"error": str(error)}
    return trainer, {"error": None}


def diverge(folder):
    """In the search, one process alone meets NaN at the highest rates."""
    trainer = make_language_trainer(folder, 16, 1, [])
    compute_loss = trainer.compute_loss

    def compute(model, inputs, *args, **kwargs):
        loss = compute_loss(model, inputs, *args, **kwargs)
        is_far = max(p.detach().abs().max() for p in model.parameters()) > 1.25
        return loss * float("nan") if is_far and int(os.environ["RANK"]) == 1 else loss

    trainer.compute_loss = compute
    search = find_learning_rate(trainer)
    trials = [(trial.learning_rate, len(trial.curve), trial.end_loss) for trial in search.trials]
    return trainer, {"search": search.learning_rate, "trials": trials}


def sft_lora(folder):
    """TRL's SFTTrainer with a LoRA adapter."""
    callback = ExpTestCallback()
    trainer = toys.make_sft_trainer(folder, [callback], num_rows=256)
    trainer.train()
    return trainer, {"history": callback.history, "search": callback.search.learning_rate}


def resume(folder, steps):
    """A run that never stops, and for each of `steps` one that stops there and is resumed; weights as their bytes."""

    def train(callbacks, save_steps=80, **kwargs):
        saved = {"save_strategy": "steps", "save_steps": save_steps}
        trainer = make_language_trainer(f"{folder}/run", 16, 2, callbacks, max_steps=80, **saved)
        trainer.train(**kwargs)
        weights = b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())
        return trainer, [callbacks[0].history, zlib.crc32(weights)]

    def callback():
        return ExpTestCallback(learning_rate=0.01, warmup=0.1, cooldown=0.15, window=0.375)

    trainer, whole = train([callback()])
    resumed = []
    for step in steps:
        train([callback(), toys.StopAt(step)], save_steps=step)
        trainer, result = train([callback()], resume_from_checkpoint=f"{folder}/run/checkpoint-{step}")
        resumed.append(result)
    return trainer, {"whole": whole, "resumed": resumed}


def fault(folder, kind):
    """One process alone observes losses that are no numbers: a single one, or all from step 50 on."""
    callback = ExpTestCallback(learning_rate=0.01, warmup=0.1, cooldown=0.15, window=0.375)
    trainer = make_language_trainer(folder, 16, 1, [callback], max_steps=80)
    take, taken = LossSignal.take, []

    def faulty(self):
        loss = take(self)
        taken.append(1)
        is_bad = len(taken) == 20 if kind == "single" else len(taken) >= 50
        return loss * float("nan") if is_bad and int(os.environ["RANK"]) == 1 else loss

    LossSignal.take = faulty
    trainer.train()
    return trainer, {"history": callback.history, "steps": len(taken)}


SCENARIOS = {f.__name__: f for f in (decide, collectives, disagree, diverge, sft_lora, resume, fault)}


def main(scenario: str, folder: str, options: str) -> None:
    trainer, result = SCENARIOS[scenario](folder, **json.loads(options))
    rank = trainer.args.process_index
    Path(folder, f"rank{rank}.json").write_text(json.dumps({"world_size": trainer.args.world_size, **result}))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    # With gloo, torch now and then aborts while the interpreter winds down ("terminate called without an active
    # exception"), also in a training without ExpTest. The work is done and written, so leave without winding down; an
    # error before this line still ends the process with its own exit code.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
