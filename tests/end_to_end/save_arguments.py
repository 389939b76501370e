# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A script that reads arguments of several classes, and saves each as Trainer does: see test_run.py."""

from pathlib import Path

import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from trl import SFTConfig

if __name__ == "__main__":
    for cls in (TrainingArguments, Seq2SeqTrainingArguments, SFTConfig):
        (args,) = HfArgumentParser(cls).parse_args_into_dataclasses()
        Path(args.output_dir).mkdir(exist_ok=True)
        torch.save(args, Path(args.output_dir, f"{cls.__name__}.bin"))
