# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""
Read what a training with ExpTest, or its finder, left in its output_dir.

    hf-exptest show OUTPUT_DIR
    hf-exptest plot OUTPUT_DIR --output figure.png
    hf-exptest compare OUTPUT_DIR OUTPUT_DIR ...
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .report import FIGURE_NAME, Report, report_file
from .words import short_source, steps_made

_COLUMNS = (
    "run",
    "steps",
    "search steps",
    "starting rate",
    "rate from",
    "decays",
    "last rate",
    "first loss",
    "last loss",
)


def compare(folders: Sequence[str]) -> str:
    """One line a run; the losses are those of the figure's smoothed curve."""
    rows = [_COLUMNS]
    for folder in folders:
        report = Report.load(folder)
        no_loss = "not trained" if report.is_look_alone else "not logged"
        losses = [f"{loss:.4g}" for loss in report.smoothed_losses] or [no_loss]
        rows.append(
            (
                folder,
                steps_made(report),
                str(sum(search.num_steps for search in report.searches)),
                f"{report.starting_rate:.2g}",
                short_source(report.rate_source),
                str(sum(entry["decision"] == "decay" for entry in report.history)),
                f"{(report.history[-1]['learning_rate'] if report.history else report.starting_rate):.2g}",
                losses[0],
                losses[-1],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `hf-exptest`."""
    parser = argparse.ArgumentParser(
        prog="hf-exptest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print the learning rate, the looks and the decisions")
    show.add_argument("folder", metavar="OUTPUT_DIR")
    plot = commands.add_parser("plot", help="draw the looks, the loss, the learning rate and the decisions")
    plot.add_argument("folder", metavar="OUTPUT_DIR")
    plot.add_argument("--output", help=f"file to write (default: {FIGURE_NAME} in the run's own folder)")
    several = commands.add_parser("compare", help="lay runs side by side")
    several.add_argument("folders", metavar="OUTPUT_DIR", nargs="+")
    options = parser.parse_args(arguments)
    try:
        if options.command == "show":
            print(Report.load(options.folder).summary())
        elif options.command == "plot":
            report = Report.load(options.folder)
            # Only here, since matplotlib is an extra.
            from .figure import draw

            output = options.output or report_file(options.folder).with_name(FIGURE_NAME)
            draw(report, output)
            print(f"Figure: {output}")
        else:
            print(compare(options.folders))
        sys.stdout.flush()
    except BrokenPipeError:
        # What reads the output, `head` for example, has enough; Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"hf-exptest: {error}")


if __name__ == "__main__":
    main()
