# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Tiny models, data and Trainers that several test files share."""

import copy
import json
import os
import random
import subprocess
import sys

import forks
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class ToyClassifier(nn.Module):
    """A classifier with everything a search must put back: dropout draws and batch-norm buffers."""

    def __init__(self, dropout=0.1, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
        )

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def classification_data(n=512, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    scores = x @ torch.randn(8, 3, generator=generator) + 0.5 * torch.randn(n, 3, generator=generator)
    return [{"x": row, "labels": label} for row, label in zip(x, scores.argmax(-1), strict=True)]


def language_model(seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 32, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **settings))


def language_data(n=128, seed=1):
    """Sequences whose numbers of predicted tokens differ widely, so that a mean of means is a wrong loss."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for _ in range(n):
        # Low tokens are more frequent, so that there is something to learn in a few steps.
        tokens = torch.randint(32, (16,), generator=generator).square() // 32
        labels = tokens.clone()
        # Position 0 is never predicted; some releases count it all the same.
        labels[0] = -100
        labels[int(torch.randint(3, 16, (), generator=generator)) :] = -100
        data.append({"input_ids": tokens, "labels": labels})
    return data


def make_args(path, **overrides):
    values = {
        "output_dir": str(path),
        "max_steps": 40,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    return TrainingArguments(**{**values, **overrides})


def make_trainer(path, callbacks, model=None, data=None, trainer_kwargs=None, **overrides):
    return Trainer(
        model=ToyClassifier() if model is None else model,
        args=make_args(path, **overrides),
        train_dataset=classification_data() if data is None else data,
        callbacks=callbacks,
        **(trainer_kwargs or {}),
    )


def make_sft_trainer(path, callbacks, num_rows=256, **overrides):
    """TRL's SFTTrainer with a LoRA adapter on the tiny language model."""
    # Here, so that the scripts that want nothing of it do not wait for the import.
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer

    vocabulary = {f"t{i}": i for i in range(32)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t1")), pad_token="t0", eos_token="t2"
    )
    args = SFTConfig(
        output_dir=str(path),
        max_steps=30,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **overrides,
    )
    rows = [{"input_ids": row["input_ids"].tolist()} for row in language_data(num_rows)]
    return SFTTrainer(
        model=language_model(),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        # With the last norm, since the tokens differ in their frequency alone.
        peft_config=LoraConfig(
            r=2, target_modules=["c_attn"], modules_to_save=["ln_f"], fan_in_fan_out=True, task_type="CAUSAL_LM"
        ),
        callbacks=callbacks,
    )


class InOrder(Trainer):
    """Reads the data in their order, so that a hand-written loop, or any number of processes, can read the same."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class GivenRates(TrainerCallback):
    """Gives each optimizer step of a plain Trainer its rate, whatever its schedule says."""

    def __init__(self, rates):
        self.rates = rates

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = self.rates[state.global_step]


class StopAt(TrainerCallback):
    """Ends the training after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def torchrun(num_processes):
    """Beginning of a command that starts a script in `num_processes` processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
    return [*command, "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]


def run_processes(num_processes, command, folder, timeout=300, environment=None, is_forked=True):
    """
    What each process wrote to `folder` as `rank0.json` and so on, `world_size` checked; and what all printed.

    The processes are forks, or else torchrun's own.
    """
    folder.mkdir(exist_ok=True)
    # With fewer GPUs than processes, the barrier of processes on the CPU looks for a GPU that is not there.
    environment = {**(environment or {}), "CUDA_VISIBLE_DEVICES": ""}
    if is_forked:
        done = forks.torchrun(num_processes, command, timeout, environment)
    else:
        environment = {**os.environ, **environment}
        command = [*torchrun(num_processes), *map(str, command)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_processes)]
    assert [result.pop("world_size") for result in results] == [num_processes] * num_processes
    return results, done


def weights(model):
    """A copy of parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def logged(trainer, key):
    """What the log says of each step."""
    return [row[key] for row in trainer.state.log_history if "loss" in row]


def outcome(trainer):
    """All that a training has led to, just after it: losses, weights, the optimizer's state, random states."""
    return {
        "losses": logged(trainer, "loss"),
        "weights": weights(trainer.model),
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()["state"]),
        "Python": random.getstate(),
        "NumPy": np.random.get_state()[1:],
        "torch": torch.get_rng_state(),
    }


def assert_same(first, second, name="it"):
    """That two structures of plain values and tensors are equal in every bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_same(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), name
        for i, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{name}.{i}")
    elif isinstance(first, (torch.Tensor, np.ndarray)):
        assert np.array_equal(np.asarray(first), np.asarray(second)), name
    else:
        assert first == second, name


def decisions(callback):
    """Each decision with its step and test."""
    return [(entry["step"], entry["test"], entry["decision"]) for entry in callback.history]


class FakeAccelerator:
    """Several processes that all have what this one has."""

    device = torch.device("cpu")

    def __init__(self, num_processes):
        self.num_processes = num_processes

    def reduce(self, tensor, reduction):
        assert reduction == "mean"
        return tensor

    def gather(self, tensor):
        return tensor.repeat(self.num_processes)


def save_tokenizer(folder, words, unknown, **settings):
    """A tokenizer of whole words, each with its place among `words` as its id."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def save_numbered_tokenizer(folder):
    """The one whose words are t0 to t31, for `numbered_words`."""
    words = [f"t{i}" for i in range(32)]
    save_tokenizer(folder, words, "t1", pad_token="t0", eos_token="t2", model_max_length=32)


def numbered_words(row, first):
    return " ".join(f"t{first + row * i % 8}" for i in range(1, 6))


def preference(row):
    """A row of data for DPO and rewards."""
    chosen, rejected = f" {numbered_words(row, 11)}", f" {numbered_words(row, 19)}"
    return {"prompt": numbered_words(row, 3), "chosen": chosen, "rejected": rejected}
