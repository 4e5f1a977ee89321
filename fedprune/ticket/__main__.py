"""The command `python -m fedprune.ticket`: show a ticket, or export its network to another format."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedprune.config import CONF
from fedprune.errors import ConfigError, FedpruneError
from fedprune.ticket import show
from fedprune.ticket.export import Network, export, load_network
from fedprune.ticket.measure import keep_freed_memory, parameters, table
from fedprune.ticket.read import load_ticket


def main() -> None:
    """Run `show FILE [--into DIR]` or `export FILE --to FILE [--compact] [--untimed] [--model NAME ...] [--config-dir DIR]`."""
    parser = _parser()
    given = parser.parse_args()
    try:
        given.do(given)
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedprune.ticket", description="Tickets: a mask and the weights to train it from."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show", help="where it comes from, the density of each layer, and a picture of the masks")
    shown.add_argument("file", type=Path, help="a ticket.safetensors, or the folder of its run")
    shown.add_argument("--into", type=Path, help="the folder for the picture (default: beside the ticket)")
    shown.set_defaults(do=_show)
    exported = commands.add_parser("export", help="the network as ONNX, safetensors or a plain state_dict")
    exported.add_argument(
        "file", type=Path, help="a run folder (its trained network), or a ticket.safetensors (the ticket's weights)"
    )
    exported.add_argument("--to", type=Path, required=True, help="model.onnx, model.safetensors or state_dict.pt")
    exported.add_argument("--compact", action="store_true", help="without its dead filters and neurons")
    exported.add_argument("--untimed", action="store_true", help="do not time the network, dense and small, on one thread")
    exported.add_argument(
        "--round-to", type=int, help="a multiple of so many is left of a layer (default: the run's what.round_to)"
    )
    exported.add_argument(
        "--model", nargs="+", default=[], metavar="MODULE.CLASS", help="a class of your own that the file names"
    )
    exported.add_argument("--config-dir", type=Path, help="where model/*.yaml of your own are")
    exported.set_defaults(do=_export)
    return parser


def _show(given: argparse.Namespace) -> None:
    console = Console(soft_wrap=True, highlight=False)
    ticket = load_ticket(given.file)
    console.print(show.summary(ticket))
    console.print(f"masks: {show.draw(ticket, given.into)}")


def _export(given: argparse.Namespace) -> None:
    if given.round_to is not None and (given.round_to < 1 or not given.compact):
        raise ConfigError([f"--round-to {given.round_to} is of smaller networks, from 1: type --compact --round-to 8"])
    dense = load_network(given.file, [folder for folder in (given.config_dir, CONF) if folder], given.model)
    network = dense.smaller(given.round_to) if given.compact else dense
    export(network, given.to)
    before, left = parameters(dense.net), parameters(network.net)
    of_dense = f" of {before:,}" if given.compact else ""
    none_dead = ": no whole filter, channel or neuron is dead" if given.compact and left == before else ""
    print(f"{given.to}: {left:,} parameters{of_dense}{none_dead}")
    if given.compact:
        print(f"widths: {show.widths(dense.net, network.net)}")
    if network.stays:
        print(f"dead units that stay: {network.stays}")
    print(f"inputs: {'x'.join(map(str, network.example.shape[1:]))}, {_normalised(network)}")
    if not given.untimed:
        keep_freed_memory()
        print(table([dense.net, network.net] if given.compact else [network.net], network.example))


def _normalised(network: Network) -> str:
    """Return how inputs are made of the data."""
    if network.inputs is None:
        return "normalised as in training (its ticket does not say by which mean and scale)"
    if "mean" not in network.inputs:
        return "as the data set gave them: they were not standardised"
    mean, std = (json.loads(network.inputs[key]) for key in ("mean", "std"))
    low, high = json.loads(network.inputs.get("range", "[0, 0]"))
    told = f"(x - mean) / std, mean {_listed(mean)}, std {_listed(std)}"
    if not high:
        return told
    divided = [_listed([value / high for value in values]) for values in (mean, std)]
    return f"{told} of pixels in {low}..{high}; of pixels in 0..1 mean {divided[0]}, std {divided[1]}"


def _listed(values: Sequence[float], most: int = 3) -> str:
    return ", ".join(f"{value:.6g}" for value in values[:most]) + ", ..." * (len(values) > most)


if __name__ == "__main__":
    main()
