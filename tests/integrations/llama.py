# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A Llama of a few thousand parameters with its tokenizer, and data, for frameworks that read them from a folder."""

import json

import torch
from toys import save_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ANIMALS, FOODS = ("cat", "dog", "bird"), ("fish", "meat", "seed")


def save_llama(folder):
    words = [*SPECIAL.values(), "what", "does", "the", "eat", "eats", *ANIMALS, *FOODS]
    save_tokenizer(folder, words, "<unk>", model_max_length=128, **SPECIAL)
    save_model(folder, max_position_embeddings=128, bos_token_id=1)


def save_model(folder, **settings):
    """The model alone."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=2,
        **settings,
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
