"""One run in Flower's ServerApp: wait for the clients, then do what `python -m fedprune` does, with the nodes as executor."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from fedprune import __main__ as command
from fedprune import run_id
from fedprune.config import CONF, schema
from fedprune.deployment.local_data import read
from fedprune.deployment.nodes import OFFICE, Nodes
from fedprune.deployment.post import Post
from fedprune.errors import ConfigError, FedpruneError

CONF_HERE = Path(__file__).parent / "conf"
"""The folder of the data set and the partition of a run on nodes, which no other run searches."""

OURS = ("executor=flower", "data=federation", "partition=federation")
"""The overrides that make a run one on nodes."""


@dataclass(frozen=True)
class Order:
    """A run that is ordered. overrides: of the command line. data: the server's own file. folder: where results go, on the
    machine of the SuperLink. patience: seconds for all clients to come at the start. ttl: seconds after which Flower forgets a
    letter. config_dir: the folder of options of the user's own, on the machine of the SuperLink."""

    overrides: tuple[str, ...]
    data: str
    folder: str
    patience: float = 60.0
    ttl: float = 3600.0
    config_dir: str = ""

    @classmethod
    def of(cls, run_config: Mapping[str, object]) -> Order:
        """Return the order in the run's configuration, as Flower hands it over."""
        content = json.loads(str(run_config["order"]))
        return cls(**content | {"overrides": tuple(content["overrides"])})

    def text(self) -> str:
        """Return the order as a text for the run's configuration."""
        return json.dumps(asdict(self))


def of_the_parties(override: str) -> bool:
    """Return whether an override is about what the parties of a federation have already: their data, and who runs clients."""
    key = override.lstrip("+~").partition("=")[0]
    return key in ("data", "partition", "executor") or key.startswith(("data.", "partition."))


def serve(order: Order, post: Post) -> None:
    """Do the run. Raises SystemExit with status 1 for what the user can mend, after saying it."""
    os.chdir(order.folder)
    try:
        overrides = _with_clients(order, post)
    except (FedpruneError, HydraException) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
    sys.argv = ["fedprune", *overrides]
    command.main()


def _with_clients(order: Order, post: Post) -> list[str]:
    """Wait for all clients. Return the overrides, with what they say of themselves."""
    local = str(Path(order.data).absolute())
    folders = [Path(order.config_dir)] if order.config_dir else []
    overrides = [searched(CONF_HERE, *folders), *order.overrides, *OURS, f"data.local={json.dumps(local)}"]
    config, OFFICE.names = composed(overrides)
    OFFICE.nodes = Nodes(post, config.federated.clients, read(Path(local)).agreed, order.patience)
    sizes = [list(sizes) for sizes in OFFICE.nodes.gather()]
    return [*overrides, f"partition.sizes={json.dumps(sizes, separators=(',', ':'))}"]


def searched(*folders: Path) -> str:
    """Return the override by which options are also looked for in these folders. Raises ConfigError if one is not there."""
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError([f"--config-dir {folder}: there is no such folder"])
    return f"hydra.searchpath=[{','.join(json.dumps(folder.absolute().as_uri()) for folder in folders)}]"


def composed(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Return the configuration, and the chosen option of each group."""
    schema.register()
    run_id.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = config.hydra.runtime.choices
    names = {group: choices[group] for group in run_id.GROUPS}
    with open_dict(config):
        del config["hydra"]
    return config, names
