"""`python -m fedprune.ticket`: what a ticket is, and its network in other formats."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from fedprune.errors import FedpruneError
from fedprune.ticket import show
from fedprune.ticket.read import load_ticket


def main() -> None:
    """`show FILE [--into DIR]`."""
    parser = argparse.ArgumentParser(
        prog="python -m fedprune.ticket", description="Tickets: a mask and the weights to train it from."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show", help="where it comes from, the density of each layer, and a picture of the masks")
    shown.add_argument("file", type=Path, help="a ticket.safetensors, or the folder of its run")
    shown.add_argument("--into", type=Path, help="the folder for the picture (default: beside the ticket)")
    given = parser.parse_args()
    try:
        _show(given)
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")


def _show(given: argparse.Namespace) -> None:
    console = Console(soft_wrap=True, highlight=False)
    ticket = load_ticket(given.file)
    console.print(show.summary(ticket))
    console.print(f"masks: {show.draw(ticket, given.into)}")


if __name__ == "__main__":
    main()
