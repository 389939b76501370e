# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A script in the style of transformers' run_glue.py, which knows nothing of ExpTest: see test_run.py."""

import os
import sys
from dataclasses import dataclass, field

import torch
from neighbour import rows
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class ModelArguments:
    hidden_size: int = field(default=16, metadata={"help": "Width of the model."})


def main():
    parser = HfArgumentParser((ModelArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, training_args = parser.parse_json_file(sys.argv[1])
    else:
        model_args, training_args = parser.parse_args_into_dataclasses()
    print(f"Training/evaluation parameters {training_args}")
    set_seed(training_args.seed)
    config = BertConfig(
        vocab_size=32,
        hidden_size=model_args.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    trainer = Trainer(model=BertForSequenceClassification(config), args=training_args, train_dataset=rows(torch))
    print("Callbacks:", *(type(callback).__name__ for callback in trainer.callback_handler.callbacks))
    result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_state()
    trainer.create_model_card(model_name="toy")
    if training_args.world_size > 1:
        # As in distributed/train.py: torch may abort while it winds down.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
