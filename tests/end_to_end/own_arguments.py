# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A script that makes its arguments itself, as a notebook does, in the folder that it is told: see test_run.py."""

import sys

import torch
from neighbour import rows
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

if __name__ == "__main__":
    print("Arguments:", *sys.argv[1:])
    args = TrainingArguments(
        sys.argv[1], max_steps=30, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True
    )
    set_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    callbacks = []
    if "own-callback" in sys.argv:
        from hf_exptest import ExpTestCallback

        callbacks = [ExpTestCallback(learning_rate=0.01)]
    model = BertForSequenceClassification(config)
    trainer = Trainer(model=model, args=args, train_dataset=rows(torch), callbacks=callbacks)
    print("Callbacks:", *(type(callback).__name__ for callback in trainer.callback_handler.callbacks))
    trainer.train()
    trainer.save_state()
