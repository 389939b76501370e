# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
What people do without a method: take a learning rate that others have used, or train several times.

Each is made of runs at single rates, which warm up over 10 % of the steps and decay linearly, as those of the grid.
"""

from __future__ import annotations

from .methods import grid_rates, single_rate, third_of_budget
from .tasks import LORA_VARIANTS

# Trainings that are alike enough to share a learning rate, as documentation has it.
ENCODER, LANGUAGE, IMAGES = "fine-tuning an encoder", "fine-tuning a language model", "fine-tuning on images"
LORA, PREFERENCES, SCRATCH, SGD = "LoRA", "preferences with LoRA", "AdamW from scratch", "SGD"
KINDS = {
    "characters": SCRATCH,
    "characters 3000": SCRATCH,
    "characters large": SCRATCH,
    "sst2": ENCODER,
    "trec": ENCODER,
    "trec lora": LORA,
    **dict.fromkeys(LORA_VARIANTS, LORA),
    "smollm2 lora": LORA,
    "smollm2 full": LANGUAGE,
    "dpo": PREFERENCES,
    "reward": PREFERENCES,
    "pairs": ENCODER,
    "vit": SCRATCH,
    "resnet sgd": SGD,
    "resnet20 sgd": SGD,
    "efficientnet": IMAGES,
    "efficientnet sgd": SGD,
    "digits": SCRATCH,
    "mnist softmax": SGD,
    "california": SGD,
}
# The lowest and the highest that is customary, and three rates of the grid about them.
# BERT's authors and Sentence Transformers against the Trainer's default.
DOCUMENTED = {ENCODER: (2e-5, 5e-5), IMAGES: (5e-5, 5e-5)}
TRIED = {ENCODER: (1e-5, 3e-5, 1e-4), IMAGES: (3e-5, 1e-4, 3e-4)}
# TRL's own, and Axolotl's examples.
DOCUMENTED[LANGUAGE], TRIED[LANGUAGE] = (2e-5, 2e-5), (1e-5, 3e-5, 1e-4)
# Examples of TRL, Unsloth and Axolotl.
DOCUMENTED[LORA], TRIED[LORA] = (2e-4, 2e-4), (1e-4, 3e-4, 1e-3)
# TRL's script for DPO with LoRA, and its default for reward models.
DOCUMENTED[PREFERENCES], TRIED[PREFERENCES] = (5e-6, 1e-4), (1e-5, 3e-5, 1e-4)
# Small language models.
DOCUMENTED[SCRATCH], TRIED[SCRATCH] = (3e-4, 1e-3), (3e-4, 1e-3, 3e-3)
# The ResNet paper.
DOCUMENTED[SGD], TRIED[SGD] = (0.1, 0.1), (0.03, 0.1, 0.3)

LOW, HIGH = "constant documented low", "constant documented high"
# The rate of the grid with the least mean regret on the other tasks of the same kind.
CALIBRATED = "constant calibrated"
# The best of three rates, seen afterwards: each trained for a third of the budget, or each for all of it.
THREE, THREE_IN_FULL = "three trainings", "three trainings in full"
CONSTANTS = [LOW, HIGH, CALIBRATED, THREE, THREE_IN_FULL]


def runs_of(method: str, task: str) -> list[str]:
    """The runs that `method` is made of; it is its own, unless it is one of `CONSTANTS`."""
    kind = KINDS[task]
    if method in (LOW, HIGH):
        return [single_rate(DOCUMENTED[kind][method == HIGH])]
    if method == CALIBRATED:
        return [single_rate(rate) for rate in grid_rates(task)]
    if method == THREE:
        return [third_of_budget(rate) for rate in TRIED[kind]]
    if method == THREE_IN_FULL:
        return [single_rate(rate) for rate in TRIED[kind]]
    return [method]
