# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Searches and trains on one engine under torchrun, and writes what each process saw: see test_engines.py."""

import contextlib
import gc
import json
import os
import sys
import zlib
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toys

import hf_exptest.look
from hf_exptest import ExpTestCallback, Report, find_learning_rate

# It takes longer than the training.
Report.save_figure = lambda self, folder: None
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
GLOBAL_BATCH, STEPS, SAVED_AT = 16, 12, 8


def make_args(
    folder, engine, precision="fp32", optimizer="trainer", offload=False, zero=(), accumulation=2, **overrides
):
    values = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": GLOBAL_BATCH // (WORLD * accumulation),
        "max_steps": STEPS,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "bf16": precision.startswith("bf16"),
        "fp16": precision == "fp16",
        **overrides,
    }
    is_fsdp = engine in ("fsdp1", "fsdp2")
    if is_fsdp:
        values["fsdp"] = True
        values["fsdp_config"] = {"version": int(engine[-1]), "transformer_layer_cls_to_wrap": ["GPT2Block"]}
        if engine == "fsdp1":
            # Looks for a GPU.
            values["fsdp_config"]["sync_module_states"] = False
    if engine.startswith("zero"):
        values["deepspeed"] = deepspeed_config(int(engine[-1]), precision, optimizer, offload, dict(zero))
    args = toys.make_args(folder, **values)
    if is_fsdp:
        # Accelerate takes its way to FSDP only where the processes have GPUs; the rest of it runs on a CPU.
        PartialState._shared_state |= {"distributed_type": DistributedType.MULTI_GPU, "device": torch.device("cpu")}
    return args


def deepspeed_config(stage, precision, optimizer, offload, zero):
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, **zero},
    }
    if stage == 3:
        # All parameters are sharded, however small.
        config["zero_optimization"].setdefault("stage3_param_persistence_threshold", 0)
    if offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if precision == "bf16 with fp32 gradients":
        config["bf16"], config["data_types"] = {"enabled": True}, {"grad_accum_dtype": "fp32"}
    if optimizer == "config":
        config["optimizer"] = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}}
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    if precision == "fp16":
        from deepspeed.accelerator import get_accelerator

        # DeepSpeed refuses it on a CPU by name; its code runs there. The scale is so high that steps are skipped.
        get_accelerator().is_fp16_supported = lambda: True
        config["fp16"] = {"enabled": True, "initial_scale_power": 18, "hysteresis": 1}
    return config


def make_model(folder, engine, dropout, num_words, lora=False):
    torch.manual_seed(0)
    sizes = {"vocab_size": num_words, "n_positions": 32, "n_embd": 18, "n_layer": 1, "n_head": 2}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **drops, bos_token_id=0, eos_token_id=0))
    if engine == "native":
        from transformers.distributed import DistributedConfig

        # The main process writes it.
        model.save_pretrained(f"{folder}/model")
        torch.distributed.barrier()
        plan = DistributedConfig(fsdp_size=WORLD)
        model = GPT2LMHeadModel.from_pretrained(f"{folder}/model", distributed_config=plan)
    if lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", lora_dropout=0.1
        )
        model = get_peft_model(model, config)
    return model


def make_trainer(folder, engine, callbacks, dropout=0.1, lora=False, num_words=34, **options):
    args = make_args(folder, engine, **options)
    assert args.world_size == WORLD
    return Recorder(
        model=make_model(folder, engine, dropout, num_words, lora),
        args=args,
        train_dataset=toys.language_data(1024),
        callbacks=callbacks,
    )


class Recorder(toys.InOrder):
    """Notes this process's loss of each micro-batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses = []

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def local(tensor):
    """The part of a tensor that is in this process."""
    tensor = getattr(tensor, "ds_tensor", tensor)
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def digest(value):
    """The same structure of numbers, with checksums in the place of tensors."""
    if isinstance(value, torch.Tensor):
        return zlib.crc32(local(value).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, dict):
        return {str(key): digest(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [digest(item) for item in value]
    if type(value).__name__.endswith("LossScaler"):
        return digest(vars(value))
    return value if isinstance(value, (bool, int, float)) else None


def state(trainer):
    """Everything of this process that one step hands to the next."""
    model, engine = trainer.model_wrapped, getattr(trainer, "deepspeed", None)
    optimizer = trainer.optimizer.optimizer
    numbers = {k: v for k, v in vars(engine or object).items() if isinstance(v, int) and not k.startswith("__")}
    return {
        "parameters": digest(dict(model.named_parameters())),
        "buffers": digest(dict(model.named_buffers())),
        "optimizer": digest(optimizer.state_dict()),
        "counters": numbers,
        "random": zlib.crc32(torch.get_rng_state().numpy().tobytes()),
    }


def trace(trainer, num_steps=STEPS):
    """What a training did, from its first step."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "losses": trainer.losses[-num_steps * trainer.args.gradient_accumulation_steps :],
        "norms": [row["grad_norm"] for row in rows],
        "rates": [row["learning_rate"] for row in rows],
        "state": state(trainer),
    }


def numbers(search):
    trials = [
        {
            "learning_rate": trial.learning_rate,
            "num_steps": trial.num_steps,
            "first_loss": trial.curve[0],
            "end_loss": trial.end_loss,
        }
        for trial in search.trials
    ]
    return {"rate": search.learning_rate, "bound": search.upper_bound, "trials": trials}


def kind(trainer):
    """What trains, so that a test knows that it is what it asked for."""
    tensors = {type(getattr(p, "data", p)).__name__ for p in trainer.model_wrapped.parameters()}
    shards = sum(local(p).numel() for p in trainer.model_wrapped.parameters())
    optimizer = trainer.optimizer.optimizer
    return [type(trainer.model_wrapped).__name__, type(optimizer).__name__, sorted(tensors), shards]


def close(trainer):
    if hasattr(trainer.model_wrapped, "destroy"):
        trainer.model_wrapped.destroy()


def train(folder, engine, callback, **options):
    trainer = make_trainer(folder, engine, [callback], **options)
    trainer.train()
    return trainer


@contextlib.contextmanager
def told(search):
    """In place of a bound and a look, what they have found."""
    names = "first_update_bound", "look"
    before = [getattr(hf_exptest.look, name) for name in names]
    found = lambda trainer: (search.upper_bound, 0), lambda *args, **kwargs: search
    for name, function in zip(names, found, strict=True):
        setattr(hf_exptest.look, name, function)
    try:
        yield
    finally:
        for name, function in zip(names, before, strict=True):
            setattr(hf_exptest.look, name, function)


def search(folder, engine, **options):
    """A training with its look, one that is told what the look finds, and one resumed."""
    # As transformers itself shards, it does not train all of a parameter whose shards differ, and saves no optimizer.
    is_native = engine == "native"
    options["num_words"] = 34 if is_native else 33
    saved = {} if is_native else {"save_strategy": "steps", "save_steps": SAVED_AT}
    callback = ExpTestCallback()
    trainer = train(folder, engine, callback, **options, **saved)
    result = {"search": numbers(callback.search), "after": trace(trainer)}
    # DeepSpeed has it in a wrapper.
    scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    # That the biases of a new model are all zero can be seen in shards, too.
    assert scheduler.bound["from_scratch"] is True
    close(trainer)
    with told(callback.search):
        trainer = train(folder, engine, ExpTestCallback(), **options)
    result["given"] = trace(trainer)
    if not is_native:
        close(trainer)
        callback = ExpTestCallback()
        trainer = make_trainer(folder, engine, [callback], **options)
        trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-{SAVED_AT}")
        result["resumed"] = trace(trainer, STEPS - SAVED_AT)
        result["starts"] = callback.history[:2]
    return trainer, result


def find(folder, engine, **options):
    """The search alone, before a training; without dropout, so that any number of processes sees the same."""
    trainer = make_trainer(folder, engine, [], dropout=0.0, **options)
    search = find_learning_rate(trainer)
    trainer.train()
    result = {"search": numbers(search), "after": trace(trainer)}
    close(trainer)
    trainer = make_trainer(folder, engine, [], dropout=0.0, **options)
    trainer.train()
    return trainer, {**result, "given": trace(trainer)}


def fail(folder, engine, **options):
    """In the look, one process alone meets an error."""
    trainer = make_trainer(folder, engine, [ExpTestCallback()], **options)
    compute_loss, calls = trainer.compute_loss, []

    def compute(*args, **kwargs):
        calls.append(1)
        if RANK == 1 and len(calls) == 200:
            raise ArithmeticError(f"on process 1 of {WORLD}")
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = compute
    trainer.train()
    return trainer, {}


def refused(folder, engine, **options):
    """A search that cannot be made, and the training that needs none."""
    trainer = make_trainer(folder, engine, [], **options)
    try:
        find_learning_rate(trainer)
    except ValueError as error:
        why = str(error)
    close(trainer)
    callback = ExpTestCallback()
    trainer = train(folder, engine, callback, **options)
    return trainer, {"why": why, "start": callback.history[0], "steps": trainer.state.global_step}


SCENARIOS = {f.__name__: f for f in (search, find, fail, refused)}


def main(folder, *runs):
    results = []
    for number, run in enumerate(map(json.loads, runs)):
        own = f"{folder}/{number}"
        trainer, result = SCENARIOS[run.pop("scenario")](own, **run)
        results.append({"world_size": trainer.args.world_size, "kind": kind(trainer), **result})
        close(trainer)
        gc.collect()
    Path(folder, f"rank{RANK}.json").write_text(json.dumps({"world_size": WORLD, "runs": results}))
    trainer.accelerator.wait_for_everyone()
    # As in train.py: torch may abort while it winds down.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
