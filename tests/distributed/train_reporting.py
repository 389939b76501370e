# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""Trains under torchrun with a folder for each process, and writes what each said and left: see test_reporting.py."""

import json
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toys

from hf_exptest import ExpTestCallback, ExpTestController
from hf_exptest.words import descriptions


class Said(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def main(folder: str) -> None:
    rank = int(os.environ["RANK"])
    said = Said()
    logger = logging.getLogger("hf_exptest")
    logger.setLevel(logging.INFO)
    logger.addHandler(said)
    own = Path(folder, f"folder{rank}")
    # The one window fails whatever its losses.
    ExpTestController._tune = lambda self, losses: (0.5, "decay")
    callback = ExpTestCallback(learning_rate=0.01)
    trainer = toys.make_trainer(
        own, [callback], model=toys.language_model(), data=toys.language_data(512), max_steps=200, disable_tqdm=False
    )
    trainer.train()
    trainer.create_model_card()
    result = {
        "world_size": trainer.args.world_size,
        "decisions": descriptions(callback.history),
        "said": said.lines,
        "files": sorted(path.name for path in own.iterdir()) if own.exists() else [],
    }
    Path(folder, f"rank{rank}.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    sys.stdout.flush()
    # See train.py.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
