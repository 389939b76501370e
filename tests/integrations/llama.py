# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A Llama of a few thousand parameters with its tokenizer, and data, for frameworks that read them from a folder."""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ANIMALS, FOODS = ("cat", "dog", "bird"), ("fish", "meat", "seed")


def save_llama(folder):
    words = [*SPECIAL.values(), "what", "does", "the", "eat", "eats", *ANIMALS, *FOODS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **SPECIAL).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_instructions(path, num_rows=256):
    """Instructions in Alpaca's format, each with its answer."""
    rows = [
        {
            "instruction": f"what does the {ANIMALS[row % 3]} eat",
            "input": "",
            "output": f"the {ANIMALS[row % 3]} eats {FOODS[row % 3]}",
        }
        for row in range(num_rows)
    ]
    path.write_text(json.dumps(rows))
