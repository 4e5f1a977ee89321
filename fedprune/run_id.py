"""The name of a job's folder: its overrides, and a hash of its identity, so that the same command finds a finished run."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedprune.identity import VOLATILE, Inputs, with_inputs, written

AXES = ("what", "criterion", "when", "how_often", "where", "whose", "rewind")

GROUPS = (
    *AXES,
    *("federated", "partition", "data", "model", "local", "executor", "wire", "logger"),
)
"""All config groups of a run, in order."""

METHOD = "experiment@_global_"
"""The key by which one experiment adds another to itself: conf/experiment/benchmark.yaml sweeps over methods with it."""

QUOTES = "\"'"
LONGEST = 200  # characters of a folder's name before its hash


def register() -> None:
    """Register the resolver that names a job's folder."""
    OmegaConf.register_new_resolver("fedprune.folder", folder_name, replace=True)


@dataclass(frozen=True)
class RunId:
    """A run in eight hexadecimal digits. of_config: those of its configuration alone, which stay when the code or the data that
    it names change. inputs: that code and data."""

    digest: str
    of_config: str
    inputs: Inputs


def run_id(config: DictConfig) -> RunId:
    """Return which run a configuration is. Raises omegaconf's errors for a bad interpolation."""
    plain = written(config)
    identity, inputs = with_inputs(plain)
    return RunId(digest_of(identity), digest_of(plain), inputs)


def folder_hash(config: DictConfig) -> str:
    """Return eight hexadecimal digits of a run's identity."""
    return run_id(config).digest


def digest_of(value: object) -> str:
    """Return eight hexadecimal digits of anything that prints as JSON or text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def folder_name(*, _root_: DictConfig) -> str:
    """Return a job's overrides in short and its hash; or the name of an existing folder with the same hash."""
    digest = folder_hash(_root_)
    existing = sorted(Path(_root_.hydra.sweep.dir).glob(f"*{digest}"))
    if existing:
        return existing[0].name
    words = [_word(override) for override in _root_.hydra.overrides.task]
    return "-".join(["-".join(filter(None, words))[:LONGEST], digest]).lstrip("-")


def _ticket(path: Path) -> str:
    """Return a ticket's name: the hash of its run, or the file's own name if it was given one."""
    if path.suffix == ".safetensors" and path.name != "ticket.safetensors":
        return path.stem
    return (path.parent if path.suffix == ".safetensors" else path).name.rpartition("-")[2]


def _word(override: str) -> str:
    """Return an override in short: of a group its option, of another key `key=value`; '' for a key that changes no result."""
    key, _, value = override.lstrip("+~").partition("=")
    if key == "ticket.path":
        return f"ticket={_ticket(Path(value.strip(QUOTES)))}"
    if key == METHOD:
        return value.rpartition("/")[2]
    if key.startswith(("experiment", "name", "data.root", *VOLATILE)):
        return ""
    return re.sub(r"[^\w.,+=-]+", "_", value if key in GROUPS else f"{key.rpartition('/')[2]}={value}")
