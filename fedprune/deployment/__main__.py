"""The commands of a federation of real devices: split data into files, order a run, or do all of it on this machine.

python -m fedprune.deployment split FOLDER OVERRIDES...
python -m fedprune.deployment run OVERRIDES... --data FILE [--superlink NAME]
python -m fedprune.deployment here FOLDER OVERRIDES...

Each takes --config-dir DIR, the folder of options of your own; of `run` it is one on the machine of the SuperLink.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException

from fedprune.command.words import arguments
from fedprune.deployment import here, launch
from fedprune.deployment.local_data import SERVER_FILE, split
from fedprune.deployment.serve import Order, composed, of_the_parties, searched
from fedprune.errors import ConfigError, FedpruneError
from fedprune.experiment.build import build

ABOUT = "Train on real devices, the nodes of a Flower federation; see docs/deployment.md"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fedprune.deployment", description=ABOUT)
    commands = parser.add_subparsers(dest="command", required=True)
    splits = commands.add_parser("split", help="write the data of a simulation as one file for each party")
    runs = commands.add_parser("run", help="do a run on the nodes of a SuperLink")
    heres = commands.add_parser("here", help="do all of it on this machine, with a SuperNode for each client")
    for command in (splits, heres):
        command.add_argument("folder", type=Path, help="the folder of the parties' files")
    for command in (splits, runs, heres):
        command.add_argument("overrides", nargs="*", help="as of python -m fedprune, such as +experiment=lth_fedavg rounds=5")
    runs.add_argument("--data", default=SERVER_FILE, help="the server's file, on the machine of the SuperLink")
    runs.add_argument("--superlink", default="", help="a connection in Flower's config.toml (none: its default)")
    runs.add_argument("--into", default="", help="the folder for outputs/, on the machine of the SuperLink (none: this one)")
    for command in (runs, heres):
        command.add_argument("--patience", type=float, default=120.0, help="seconds for all clients to come at the start")
    return parser


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """Return what was typed, with overrides as `python -m fedprune` takes them. --config-dir may stand anywhere."""
    folders = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    folders.add_argument("--config-dir", "-cd", default="")
    folder, rest = folders.parse_known_args(words)
    typed = _parser().parse_args(rest, folder)
    typed.overrides = arguments(typed.overrides)
    return typed


def _split(folder: Path, overrides: Sequence[str], config_dir: str) -> list[Path]:
    own = [searched(Path(config_dir))] if config_dir else []
    experiment = build(*composed([*own, *(word for word in overrides if not word.startswith("executor")), "executor=serial"]))
    return split(experiment.dataset, experiment.clients, folder)


def _refuse(overrides: Sequence[str]) -> None:
    """Raise ConfigError for overrides about what the parties have already."""
    idle = [override for override in overrides if of_the_parties(override)]
    if idle:
        raise ConfigError([f"the nodes have their data already, each from its file: leave out {' '.join(idle)}"])


def main(words: Sequence[str] | None = None) -> int:
    """Run a command, and return its status."""
    typed = _parsed(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "stop" ends all processes as Ctrl-C does
    try:
        if typed.command == "split":
            print("\n".join(map(str, _split(typed.folder, typed.overrides, typed.config_dir))))
            return 0
        if typed.command == "run":
            _refuse(typed.overrides)
            folder = typed.into or str(Path.cwd())
            order = Order((*typed.overrides,), typed.data, folder, typed.patience, config_dir=typed.config_dir)
            return launch.start(order, typed.superlink)
        server, *clients = _split(typed.folder, typed.overrides, typed.config_dir)
        overrides = tuple(override for override in typed.overrides if not of_the_parties(override))
        own = str(Path(typed.config_dir).absolute()) if typed.config_dir else ""
        order = Order(overrides, str(server.absolute()), str(Path.cwd()), typed.patience, config_dir=own)
        with here.federation(clients, typed.folder / "log") as environment:
            return launch.start(order, "here", environment)
    except (FedpruneError, HydraException) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; all processes of the federation have ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
