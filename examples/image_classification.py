# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Train an image classifier without choosing a learning rate.

    python examples/image_classification.py

trains a small vision transformer from scratch on the 1797 handwritten digits that come with scikit-learn, so nothing
is downloaded. Your own model and data, from the Hub or from a local folder (which has a folder of images a class, or
parquet files with the columns `image` and `label`):

    python examples/image_classification.py --model_name_or_path google/vit-base-patch16-224-in21k \
        --dataset_name AI-Lab-Makerere/beans

Expected at the end of the first command, after about a minute, up to a digit or so:

    Accuracy on 360 held-out images: 10.0% before training, 97.2% after.
    ExpTest found the learning rate 0.0015 while training at step 50.
    At step 50 of 500 it tried rates on the weights of the run (rate until then 0.00017, upper bound 0.005):
    ...
    The look took 119 steps in 17 s, 20 of them for the upper bound; then the model was put back as it was.
    Decisions:
        starts with learning rate 0.00017 (a thirtieth of the upper bound)
        step 50: a look finds a higher rate better (p = 1.4e-07): learning rate 0.00017 -> 0.0015
        step 150: loss still falls (p = 1e-11 over 100 steps): learning rate stays 0.0015
    Model, report and figure: image-classification-output
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from sklearn.datasets import load_digits
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)

from hf_exptest import ExpTestCallback


def load_data(name: str | None) -> DatasetDict:
    """Columns `image` and `label`; `train`, and a fifth held out as `test`."""
    if name is None:
        digits = load_digits()
        pixels = (digits.images * 255 / 16).astype("uint8")
        features = Features({"image": Image(), "label": ClassLabel(names=[str(n) for n in digits.target_names])})
        data = Dataset.from_dict({"image": list(pixels), "label": digits.target}, features=features)
    else:
        data = load_dataset(name, split="train")
        if "labels" in data.column_names:
            data = data.rename_column("labels", "label")
    return data.train_test_split(0.2, seed=0, stratify_by_column="label")


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="on the Hub, or a folder (default: a small ViT, made here)")
    parser.add_argument("--dataset_name", help="on the Hub, or a folder (default: scikit-learn's digits)")
    parser.add_argument("--output_dir", default="image-classification-output", help="default: %(default)s")
    parser.add_argument("--max_steps", type=int, default=500, help="optimizer steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    set_seed(0)

    data = load_data(options.dataset_name)
    names = data["train"].features["label"].names
    if options.model_name_or_path is None:
        config = ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            num_labels=len(names),
        )
        model = ViTForImageClassification(config)
        processor = ViTImageProcessor(size={"height": 32, "width": 32})
    else:
        model = AutoModelForImageClassification.from_pretrained(
            options.model_name_or_path, num_labels=len(names), ignore_mismatched_sizes=True
        )
        processor = AutoImageProcessor.from_pretrained(options.model_name_or_path)

    def preprocess(rows: dict[str, Any]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in rows["image"]]
        return {**processor(images, return_tensors="pt"), "labels": rows["label"]}

    callback = ExpTestCallback()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            # `preprocess` still needs the images, which the model does not take.
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=data["train"].with_transform(preprocess),
        eval_dataset=data["test"].with_transform(preprocess),
        processing_class=processor,
        compute_metrics=compute_accuracy,
        callbacks=[callback],
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()

    print(f"\nAccuracy on {len(data['test'])} held-out images: {before:.1%} before training, {after:.1%} after.")
    print(callback.report().summary())
    print(f"Model, report and figure: {options.output_dir}")


if __name__ == "__main__":
    main()
