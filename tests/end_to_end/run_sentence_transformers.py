# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A script in the style of sentence-transformers' examples, which make their arguments themselves: see test_run.py."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

TOPICS = ("red green blue black white", "one two three four five")


def save_base_model(folder):
    words = ["[PAD]", "[UNK]", *" ".join(TOPICS).split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)


def pairs():
    """Pairs of sentences, alike where their topic is the same."""
    generator = torch.Generator().manual_seed(0)

    def sentence(topic):
        return " ".join(TOPICS[topic].split()[i] for i in torch.randint(5, (5,), generator=generator))

    topics = torch.randint(2, (256, 2), generator=generator).tolist()
    rows = [{"sentence1": sentence(a), "sentence2": sentence(b), "score": float(a == b)} for a, b in topics]
    return Dataset.from_list(rows)


if __name__ == "__main__":
    output_dir = Path(sys.argv[1])
    save_base_model(output_dir / "base")
    model = SentenceTransformer(modules=[Transformer(str(output_dir / "base")), Pooling(16)], device="cpu")
    args = SentenceTransformerTrainingArguments(
        output_dir=str(output_dir),
        max_steps=30,
        per_device_train_batch_size=8,
        learning_rate=2e-5,
        warmup_steps=3,
        logging_steps=1,
        save_steps=30,
        report_to="none",
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=args, train_dataset=pairs(), loss=CosineSimilarityLoss(model)
    )
    trainer.train()
    trainer.save_state()
    model.save_pretrained(str(output_dir))
