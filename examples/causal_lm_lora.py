# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Fine-tune a language model with LoRA and TRL, without choosing a learning rate.

    python examples/causal_lm_lora.py

trains a tiny Llama, made on the spot, on the bytes of Python's own reference manual, so nothing is downloaded. Your
own model and data, from the Hub or from a local folder (with a column `text` or `messages`, or what else TRL reads):

    python examples/causal_lm_lora.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/Capybara

Expected at the end of the first command, after about a minute, up to a digit or so:

    Loss on 261 held-out texts: 5.594 before training, 1.918 after.
    ExpTest found the learning rate 0.012 while training at step 30.
    At step 30 of 300 it tried rates on the weights of the run (rate until then 0.0017, upper bound 0.05):
    ...
    The look took 119 steps in 12 s, 20 of them for the upper bound; then the model was put back as it was.
    Decisions:
        starts with learning rate 0.0017 (a thirtieth of the upper bound)
        step 30: a look finds a higher rate better (p = 1.8e-09): learning rate 0.0017 -> 0.012
        step 90: loss still falls (p = 1.9e-07 over 60 steps): learning rate stays 0.012
    Adapter, report and figure: causal-lm-lora-output
"""

import argparse
from collections.abc import Sequence
from pydoc_data.topics import topics

import torch
from datasets import Dataset, DatasetDict, disable_progress_bars, load_dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from hf_exptest import ExpTestCallback


def make_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Llama of two layers and 64 dimensions with random weights, and a tokenizer that gives bytes."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def load_data(name: str | None) -> DatasetDict:
    """`train`, and a tenth held out as `test`."""
    if name is None:
        data = Dataset.from_dict({"text": [part for text in topics.values() for part in text.split("\n\n")]})
    else:
        data = load_dataset(name, split="train")
    return data.train_test_split(0.1, seed=0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="on the Hub, or a folder (default: a tiny Llama, made here)")
    parser.add_argument("--dataset_name", help="on the Hub, or a folder (default: Python's reference manual)")
    parser.add_argument("--output_dir", default="causal-lm-lora-output", help="default: %(default)s")
    parser.add_argument("--max_steps", type=int, default=300, help="optimizer steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    set_seed(0)
    disable_progress_bars()

    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    if options.model_name_or_path is None:
        model, tokenizer = make_model()
        # Random embeddings know nothing, so they are trained whole, beside the adapter.
        lora.modules_to_save = ["embed_tokens", "lm_head"]
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model_name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    data = load_data(options.dataset_name)

    callback = ExpTestCallback()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            max_length=128,
            per_device_train_batch_size=8,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[callback],
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    trainer.save_model()

    print(f"\nLoss on {len(data['test'])} held-out texts: {before:.3f} before training, {after:.3f} after.")
    print(callback.report().summary())
    print(f"Adapter, report and figure: {options.output_dir}")


if __name__ == "__main__":
    main()
