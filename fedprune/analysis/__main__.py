"""The command `python -m fedprune.analysis FOLDER`: tables and figures of all runs in a folder."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from rich.console import Console

from fedprune.analysis import report, show
from fedprune.errors import FedpruneError
from fedprune.running import loggers
from fedprune.running.loggers import wandb_project


def main() -> None:
    """Run `python -m fedprune.analysis FOLDER [--into DIR] [--against LABEL ...]`: write the report, print table and paths."""
    parser = argparse.ArgumentParser(prog="python -m fedprune.analysis", description="One table and figures over all runs.")
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as outputs/lth_fedavg")
    parser.add_argument("--into", type=Path, help="where the report goes (default: the folder itself)")
    compare = "say in differences.md how much better all others are than this method or line of the figures, by equal seeds"
    parser.add_argument("--against", action="append", default=[], metavar="LABEL", help=f"{compare}; may be repeated")
    log_too = "log the tables and figures to Weights & Biases, too: online if you are logged in, offline otherwise"
    parser.add_argument("--wandb", metavar="[ENTITY/]PROJECT", help=log_too)
    given = parser.parse_args()
    into = given.into or given.folder
    try:
        logger = None if given.wandb is None else wandb_project(given.wandb)
        results = report(given.folder, into, given.against)
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")
    console = Console(soft_wrap=True, highlight=False)
    console.print(show(results, console))
    written = [path for pattern in ("*.csv", "*.md", "*.tex", "figures/*") for path in sorted(into.glob(pattern))]
    for path in written:
        console.print(path)
    if logger is not None:
        loggers.report(logger, f"--wandb {given.wandb}", into, given.folder.resolve().name)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    main()
