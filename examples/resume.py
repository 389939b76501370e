# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Interrupt a training at a checkpoint and resume it: the rate that was found and the decisions are kept.

    python examples/resume.py

trains a tiny Llama, made on the spot, on the bytes of Python's own reference manual, so nothing is downloaded: once
without a break, and once with a crash in the middle of a test's window. Your own model and data, from the Hub or from
a local folder (with a column `text`, as text files have):

    python examples/resume.py --model_name_or_path distilgpt2 --dataset_name my-texts

Expected at the end of the first command, after about a minute, up to a digit or so:

    Without a break, last loss 2.161. ExpTest found the learning rate 0.0039 while training at step 20.
    At step 20 of 200 it tried rates on the weights of the run (rate until then 0.00017, upper bound 0.005):
    ...
    The look took 80 steps in 4 s, 20 of them for the upper bound; then the model was put back as it was.
    Decisions:
        starts with learning rate 0.00017 (a thirtieth of the upper bound)
        step 20: a look finds a higher rate better (p = 6.6e-11): learning rate 0.00017 -> 0.0039
        step 60: too few or too noisy losses to tell whether the loss falls (p = 0.057 over 40 steps): ...

    Resumed, last loss 2.161. ExpTest found the learning rate 0.0039 while training at step 20.
    ...

    The same decisions: True
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

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
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_exptest import ExpTestCallback


class Crash(TrainerCallback):
    """Ends the training right after its first checkpoint, as a lost machine would."""

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


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


def train(
    options: argparse.Namespace, run: str, callbacks: list[TrainerCallback], checkpoint: Path | None = None
) -> None:
    """The same training every time, but for its folder, its callbacks, and where it begins."""
    set_seed(0)
    model, tokenizer = load_model(options.model_name_or_path)
    data = load_data(options.dataset_name).map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=64), batched=True, remove_columns="text"
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(Path(options.output_dir, run)),
            max_steps=options.max_steps,
            per_device_train_batch_size=16,
            logging_steps=10,
            save_steps=options.max_steps // 5,
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="on the Hub, or a folder (default: a tiny Llama, made here)")
    parser.add_argument("--dataset_name", help="on the Hub, or a folder (default: Python's reference manual)")
    parser.add_argument("--output_dir", default="resume-output", help="default: %(default)s")
    parser.add_argument("--max_steps", type=int, default=200, help="optimizer steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    disable_progress_bars()

    # In the middle of the window of losses that a test waits for.
    checkpoint = Path(options.output_dir, "parts", f"checkpoint-{options.max_steps // 5}")
    whole, broken, resumed = ExpTestCallback(), ExpTestCallback(), ExpTestCallback()
    train(options, "whole", [whole])
    try:
        train(options, "parts", [broken, Crash()])
    except KeyboardInterrupt:
        print(f"\nCrashed after {checkpoint}, with the rate {broken.learning_rate:.2g} and no decision yet.")
    train(options, "parts", [resumed], checkpoint)

    for name, callback in [("Without a break", whole), ("Resumed", resumed)]:
        print(f"\n{name}, last loss {callback.report().losses[-1]:.3f}. {callback.report().summary()}")
    print(f"\nThe same decisions: {resumed.history == whole.history}")


if __name__ == "__main__":
    main()
