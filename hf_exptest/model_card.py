# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What ExpTest adds to a model card: the rate that was used among the hyper-parameters, and a section."""

from __future__ import annotations

import re
from pathlib import Path

from .config import ExpTestConfig
from .report import FIGURE_NAME, Report
from .words import descriptions, result_sentences, start_sentence, trial_rows, trials_sentence


def card_schedule(config: ExpTestConfig) -> str:
    """What a model card says in the place of `lr_scheduler_type`."""
    return f"ExpTest, warm-up {config.warmup:.0%}, cool-down {config.cooldown:.0%} of the steps"


def add_to_model_card(card: str, report: Report, has_figure: bool) -> str:
    """
    The text of a model card, with ExpTest's section and with what it used among the hyper-parameters. A card that has
    the section stays as it is.

    Args:
        card (`str`): as `Trainer.create_model_card` wrote it, or that of Sentence Transformers, whose hyper-parameters
            are in backticks; TRL's has none.
        report ([`Report`]): what the section tells.
        has_figure (`bool`): whether `exptest.png` lies beside the card.
    """
    section = _card_section(report, has_figure)
    if section in card:
        return card
    for name, value in (("learning_rate", report.starting_rate), ("lr_scheduler_type", card_schedule(report.config))):
        card = re.sub(rf"^- (`?){name}\1: .*$", rf"- \1{name}\1: {value}", card, flags=re.MULTILINE)
    # These belong to the scheduler that ExpTest replaces.
    replaced = r"(lr_scheduler_)?warmup_(steps|ratio)|lr_scheduler_kwargs"
    card = re.sub(rf"^- (`?)({replaced})\1: .*\n", "", card, flags=re.MULTILINE)
    heading = re.search(r"^### Framework versions$", card, flags=re.MULTILINE | re.IGNORECASE)
    place = len(card) if heading is None else heading.start()
    return f"{card[:place].rstrip()}\n\n{section}\n\n{card[place:]}"


def add_to_card_file(report: Report, folder: Path) -> None:
    """Add to the model card in `folder`, if there is one. As text, so that its metadata stay as they are."""
    card = folder / "README.md"
    if card.is_file():
        text = add_to_model_card(card.read_text(encoding="utf-8"), report, (folder / FIGURE_NAME).is_file())
        card.write_text(text, encoding="utf-8")


def _card_section(report: Report, has_figure: bool) -> str:
    parts = [
        "### Learning rate",
        f"Set by [ExpTest](https://arxiv.org/abs/2411.16975). {start_sentence(report)}",
    ]
    for search in report.searches:
        table = [("learning rate", "steps", "loss on held-out batches"), ("---:",) * 3, *trial_rows(search)]
        parts += [
            trials_sentence(search),
            "\n".join(f"| {' | '.join(row)} |" for row in table),
            " ".join(result_sentences(search)),
        ]
    if report.history:
        parts.append("\n".join(f"- {line}" for line in descriptions(report.history)))
    if has_figure:
        parts.append(f"![Trials, loss, learning rate and decisions]({FIGURE_NAME})")
    return "\n\n".join(parts)
