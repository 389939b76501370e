# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A script that knows nothing of ExpTest, under torchrun: see test_found.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toys


def main(folder: str, optim: str = "adamw_torch") -> None:
    args = toys.make_args(Path(folder, "out"), optim=optim)
    trainer = toys.InOrder(model=toys.language_model(), args=args, train_dataset=toys.language_data(512))
    Path(folder, f"rank{args.process_index}.json").write_text(json.dumps({"world_size": args.world_size}))
    trainer.train()
    Path(folder, f"trained{args.process_index}").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
