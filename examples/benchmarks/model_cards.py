# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
A model card for each fine-tuned model: the default preset trains it, and its card, report and figure are written.

    python -m examples.benchmarks.model_cards --data DATA --out model_cards
    python -m examples.benchmarks.model_cards --data DATA --out model_cards --tasks trec --steps 300

The weights are not kept: a training of a few minutes makes them again.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_exptest import ExpTestCallback, Report
from hf_exptest.model_card import add_to_model_card
from hf_exptest.report import FIGURE_NAME, REPORT_NAME

from .tasks import METRICS, NUM_STEPS, make_trainer

BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SEED = 0


@dataclass(frozen=True)
class Model:
    """A fine-tuned model, and the data that it saw."""

    name: str
    method: str
    dataset: str
    dataset_id: str
    licence: str
    library: str = "transformers"


_SST2 = (
    "Whole sentences of film reviews from the Stanford Sentiment Treebank, positive or negative: 6920 to train, 872"
)
_TREC = "Questions of six classes (what kind of answer they want) from TREC: 5452 to train, 500"
_UNKNOWN = "The source of this copy states no licence for it; ask the owners of SST-2 before you use it."
_TREC_LICENCE = "The source of this copy is under the MIT licence, which may not cover the questions themselves."
MODELS = {
    "sst2": Model("minilm-l6-sst2", "All weights", f"{_SST2} held out.", "stanfordnlp/sst2", _UNKNOWN),
    "trec": Model("minilm-l6-trec", "All weights", f"{_TREC} held out.", "CogComp/trec", _TREC_LICENCE),
    "trec lora": Model(
        "minilm-l6-trec-lora",
        "A LoRA adapter of rank 8 on queries and values, and the head",
        f"{_TREC} held out.",
        "CogComp/trec",
        _TREC_LICENCE,
        "peft",
    ),
}


def make_card(task: str, num_steps: int, accuracy: float, num_test: int, report: Report) -> ModelCard:
    """The card, with valid metadata for the Hub."""
    model = MODELS[task]
    metadata = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name=model.library,
        pipeline_tag="text-classification",
        tags=["exptest"],
        base_model=BASE_MODEL,
        datasets=[model.dataset_id],
        metrics=["accuracy"],
        model_name=model.name,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type=model.dataset_id,
                dataset_name=task.split()[0].upper(),
                metric_type="accuracy",
                metric_value=round(accuracy, 4),
            )
        ],
    )
    error = (accuracy * (1 - accuracy) / num_test) ** 0.5
    versions = "\n".join(f"- {name} {version(name)}" for name in ("hf-exptest", "transformers", "torch", "peft"))
    body = f"""# {model.name}

{model.method} of [{BASE_MODEL}](https://huggingface.co/{BASE_MODEL}), fine-tuned with a
learning rate that nobody chose.

## Result

Accuracy {accuracy:.1%} on the {num_test} held-out texts; one standard error is {error:.1%}. One training, seed {SEED}.

## Data

{model.dataset} {model.licence}

## Licence

Apache-2.0, as the base model.

## Training

AdamW, {num_steps} steps of 16 texts, 64 tokens at most, weight decay 0.01, seed {SEED}; its look took
{0 if report.search is None else report.search.num_steps} steps more.

### Framework versions

{versions}

## How to reproduce

`DATA` is a folder with the files that `examples/benchmarks/tasks.py` names.

    python -m examples.benchmarks.model_cards --data DATA --out model_cards --tasks "{task}" --steps {num_steps}
"""
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{add_to_model_card(body, report, has_figure=True)}")


def train(task: str, data: Path, num_steps: int, out: Path) -> None:
    """Train one model, and write its folder."""
    folder = out / MODELS[task].name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as output_dir:
        callback = ExpTestCallback()
        logs: dict[str, Any] = {"logging_strategy": "steps", "logging_steps": max(1, num_steps // 60)}
        trainer = make_trainer(task, data, SEED, num_steps, output_dir, [callback], **logs)
        trainer.train()
        accuracy = trainer.evaluate()[METRICS[task]]
        for name in (REPORT_NAME, FIGURE_NAME):
            shutil.copy(Path(output_dir, name), folder)
    card = make_card(task, num_steps, accuracy, len(trainer.eval_dataset), callback.report())
    card.save(folder / "README.md")
    print(f"{folder}: accuracy {accuracy:.1%}, learning rate {callback.report().starting_rate:.2g}", flush=True)


def main() -> None:
    """Train the models, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see tasks.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cards")
    parser.add_argument("--tasks", nargs="+", default=list(MODELS), choices=list(MODELS), help="(default: all)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: those of the task)")
    options = parser.parse_args()
    for task in options.tasks:
        train(task, options.data, options.steps or NUM_STEPS[task], options.out)


if __name__ == "__main__":
    main()
