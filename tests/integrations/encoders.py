# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The three kinds of model that Sentence Transformers trains, tiny. As a script it trains one of each, and knows
nothing of ExpTest: see test_sentence_transformers.py."""

import sys
from pathlib import Path

import sentence_transformers as st
import torch
from datasets import Dataset
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sparse_encoder.losses import SparseCosineSimilarityLoss, SpladeLoss
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

TOPICS = ("red green blue black white", "one two three four five")


def splade_loss(model):
    return SpladeLoss(model, SparseCosineSimilarityLoss(model), document_regularizer_weight=3e-5)


# The model that it starts from, the model, its arguments, its Trainer and a loss.
KINDS = {
    "SentenceTransformer": (
        BertModel,
        st.SentenceTransformer,
        st.SentenceTransformerTrainingArguments,
        st.SentenceTransformerTrainer,
        CosineSimilarityLoss,
    ),
    "CrossEncoder": (
        BertForSequenceClassification,
        st.CrossEncoder,
        st.CrossEncoderTrainingArguments,
        st.CrossEncoderTrainer,
        BinaryCrossEntropyLoss,
    ),
    "SparseEncoder": (
        BertForMaskedLM,
        st.SparseEncoder,
        st.SparseEncoderTrainingArguments,
        st.SparseEncoderTrainer,
        splade_loss,
    ),
}


def save_base_model(folder, base):
    words = ["[PAD]", "[UNK]", "[MASK]", *" ".join(TOPICS).split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=1,
    )
    base(config).save_pretrained(folder)


def pairs(num_rows=256):
    """Pairs of a sentence of the first topic with any other; 1 where that is of the first topic, too."""
    generator = torch.Generator().manual_seed(0)

    def sentence(topic):
        return " ".join(TOPICS[topic].split()[i] for i in torch.randint(5, (5,), generator=generator))

    topics = torch.randint(2, (num_rows,), generator=generator).tolist()
    rows = [{"sentence1": sentence(0), "sentence2": sentence(topic), "score": float(topic == 0)} for topic in topics]
    return Dataset.from_list(rows)


def make_trainer(kind, folder, callbacks=None, **overrides):
    base, model_type, args_type, trainer_type, loss_type = KINDS[kind]
    save_base_model(folder / "base", base)
    model = model_type(str(folder / "base"), device="cpu")
    values = {
        "output_dir": str(folder),
        "max_steps": 30,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-5,
        "warmup_steps": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    return trainer_type(
        model=model,
        args=args_type(**{**values, **overrides}),
        train_dataset=pairs(),
        loss=loss_type(model),
        callbacks=callbacks,
    )


if __name__ == "__main__":
    for name in KINDS:
        trainer = make_trainer(name, Path(sys.argv[1]) / name)
        trainer.train()
        trainer.save_state()
        trainer.model.save_pretrained(str(Path(sys.argv[1]) / name / "final"))
