# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Find a learning rate for a Trainer, without training.

    python examples/find_learning_rate.py

searches for a tiny Llama, made on the spot, on the bytes of Python's own reference manual, so nothing is downloaded.
Your own model and data, from the Hub or from a local folder (with a column `text`, as text files have):

    python examples/find_learning_rate.py --model_name_or_path distilgpt2 --dataset_name my-texts

Expected from the first command, after half a minute, up to a digit or so:

    upper bound along the first update: 0.005
    learning rate   steps   loss on held-out batches
    0.0015             33   3.434
    0.0046             33   3.338
    0.014              33   3.333
    found for 300 steps: 0.0067 (took 118 steps)
    Figure: learning-rate.png
"""

import argparse
from collections.abc import Sequence
from pydoc_data.topics import topics

import torch
from datasets import Dataset, disable_progress_bars, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_exptest import find_learning_rate


def load_model(name: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if name is not None:
        tokenizer = AutoTokenizer.from_pretrained(name)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return AutoModelForCausalLM.from_pretrained(name), tokenizer
    tokenizer = ByT5Tokenizer(extra_ids=0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def load_data(name: str | None) -> Dataset:
    if name is not None:
        return load_dataset(name, split="train").select_columns("text")
    return Dataset.from_dict({"text": [part for text in topics.values() for part in text.split("\n\n")]})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="on the Hub, or a folder (default: a tiny Llama, made here)")
    parser.add_argument("--dataset_name", help="on the Hub, or a folder (default: Python's reference manual)")
    parser.add_argument("--max_steps", type=int, default=300, help="length of the run to come (default: %(default)s)")
    parser.add_argument("--figure", default="learning-rate.png", help="file for the figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    set_seed(0)
    disable_progress_bars()

    model, tokenizer = load_model(options.model_name_or_path)
    data = load_data(options.dataset_name).map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=64), batched=True, remove_columns="text"
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="find-learning-rate-output",
            max_steps=options.max_steps,
            per_device_train_batch_size=16,
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )

    search = find_learning_rate(trainer)

    print(f"upper bound along the first update: {search.upper_bound:.2g}")
    print("learning rate   steps   loss on held-out batches")
    for trial in sorted(search.trials, key=lambda trial: (trial.num_steps, trial.learning_rate)):
        print(f"{trial.learning_rate:<13.2g}   {trial.num_steps:>5}   {trial.end_loss:.3f}")
    print(f"found for {search.num_training_steps} steps: {search.learning_rate:.2g} (took {search.num_steps} steps)")
    search.plot().figure.savefig(options.figure, dpi=150)
    print(f"Figure: {options.figure}")


if __name__ == "__main__":
    main()
