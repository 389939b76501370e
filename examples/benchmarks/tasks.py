# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
The benchmark tasks: model, data and metric of each, as a Trainer that lacks only its callbacks.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from . import image_tasks, preference_tasks, smollm2, text_tasks


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
        task (`str`): a key of `METRICS`.
        data (`Path`): folder with `tinyshakespeare/input.txt`, `sst2/{train,dev}.tsv`, `trec/TREC.*.all`,
            `california_housing/housing.csv` (the census columns), and `mnist/mnist.npz` and `cifar10/cifar10.npz`
            (arrays `x_train`, `y_train`, `x_test` and `y_test`). `digits`, `pairs`, `dpo` and `reward` need no file of
            it; `smollm2.py` says where the last two have their model from.
        seed (`int`): of the weights, the data order and dropout.
        num_steps (`int`): optimizer steps.
        output_dir (`str`): where the Trainer may write.
        callbacks (`list`): what sets the learning rate.
        **arguments: further `TrainingArguments`, the learning rate of a baseline for example.
    """
    set_seed(seed)
    usual = {
        "output_dir": output_dir,
        "max_steps": num_steps,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "weight_decay": 0.01,
        "seed": seed,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    trainer = _TASKS[task](data, TrainingArguments(**usual | arguments), callbacks)
    # Without a progress bar the Trainer prints its log, which would stand between the tables.
    trainer.remove_callback(PrinterCallback)
    return trainer


def california(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """
    California housing with the ExpTest paper's network, split and full batches, and the optimizer of its best
    hand-tuned entry, SGD with a momentum of 0.9; no weight decay, no clipping; metric: test MSE of the last weights.
    """
    # Here, since other tasks need no pandas.
    from ..paper.california_housing import Network, load_data, split_data

    args.per_device_train_batch_size, args.weight_decay, args.max_grad_norm = 1, 0.0, 0.0
    train_part, _, test_part = split_data(*load_data(str(data / "california_housing" / "housing.csv")))
    return Trainer(
        model=Network(),
        args=args,
        # One row, which is the whole part.
        train_dataset=[{"x": train_part.x, "labels": train_part.y}],
        eval_dataset=[{"x": test_part.x, "labels": test_part.y}],
        data_collator=lambda rows: rows[0],
        callbacks=callbacks,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"momentum": 0.9, "lr": args.learning_rate}),
    )


_TASKS = {
    "characters": text_tasks.characters,
    "characters 3000": text_tasks.characters,
    "characters large": text_tasks.characters_large,
    "sst2": text_tasks.sst2,
    "trec": text_tasks.trec,
    "trec lora": text_tasks.trec_lora,
    "trec dora": functools.partial(text_tasks.trec_lora, use_dora=True),
    "trec lora rank 4": functools.partial(text_tasks.trec_lora, r=4),
    "trec lora rank 64": functools.partial(text_tasks.trec_lora, r=64),
    "trec rslora rank 64": functools.partial(text_tasks.trec_lora, r=64, use_rslora=True),
    "smollm2 lora": smollm2.lora,
    "smollm2 full": smollm2.full,
    "dpo": preference_tasks.dpo,
    "reward": preference_tasks.reward,
    "pairs": text_tasks.pairs,
    "vit": image_tasks.vit,
    "resnet sgd": image_tasks.resnet_sgd,
    "resnet20 sgd": image_tasks.resnet20,
    "efficientnet": image_tasks.efficientnet,
    "efficientnet sgd": image_tasks.efficientnet_sgd,
    "digits": image_tasks.digits,
    "mnist softmax": image_tasks.mnist_softmax,
    "california": california,
}
# A run of one of them takes hours on a CPU, so it is made where it is asked for.
GPU_TASKS = ["characters large", "smollm2 lora", "smollm2 full", "dpo", "reward"]
_LOSSES = ["characters", "characters 3000", *GPU_TASKS, "pairs", "california"]
METRICS = {task: "eval_loss" if task in _LOSSES else "eval_accuracy" for task in _TASKS}
CPU_TASKS = [task for task in _TASKS if task not in GPU_TASKS]
# Other settings of LoRA on the task that is run with the usual ones.
LORA_VARIANTS = ["trec dora", "trec lora rank 4", "trec lora rank 64", "trec rslora rank 64"]
# Optimizer steps of the ablation and of the model cards.
NUM_STEPS = {
    "characters": 1000,
    "sst2": 300,
    "trec": 300,
    "trec lora": 300,
    **dict.fromkeys(LORA_VARIANTS, 300),
    "vit": 1000,
    "resnet sgd": 500,
    "digits": 300,
    "mnist softmax": 9375,
}
IS_HIGHER_BETTER = {task: metric == "eval_accuracy" for task, metric in METRICS.items()}
# By a factor of three, as far as the best rate of the grid has a worse one on either side.
GRIDS = {
    "characters": [1e-3, 3e-3, 1e-2, 3e-2],
    "characters 3000": [1e-3, 3e-3, 1e-2, 3e-2],
    "characters large": [3e-4, 1e-3, 3e-3],
    "sst2": [3e-5, 1e-4, 3e-4],
    "trec": [3e-5, 1e-4, 3e-4],
    "trec lora": [1e-3, 3e-3, 1e-2],
    "trec dora": [1e-3, 3e-3, 1e-2],
    "trec lora rank 4": [1e-3, 3e-3, 1e-2],
    "trec lora rank 64": [1e-3, 3e-3, 1e-2],
    "trec rslora rank 64": [3e-4, 1e-3, 3e-3],
    "smollm2 lora": [1e-4, 3e-4, 1e-3],
    "smollm2 full": [3e-5, 1e-4, 3e-4],
    "dpo": [3e-5, 1e-4, 3e-4],
    "reward": [3e-5, 1e-4, 3e-4],
    "pairs": [3e-5, 1e-4, 3e-4],
    "vit": [3e-4, 1e-3, 3e-3, 1e-2],
    "resnet sgd": [0.01, 0.03, 0.1, 0.3],
    "resnet20 sgd": [0.03, 0.1, 0.3],
    "efficientnet": [3e-4, 1e-3, 3e-3],
    "efficientnet sgd": [0.01, 0.03, 0.1],
    "digits": [0.01, 0.03, 0.1],
    "mnist softmax": [0.03, 0.1, 0.3],
    "california": [0.03, 0.1, 0.3],
}
