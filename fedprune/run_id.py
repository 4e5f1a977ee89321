"""The name of a job's folder: its overrides in short, and a hash of its identity, by which the same command finds a done run.

    lotteryfl-snip-density=0.1-seed=3-clients=20-1a2b3c4d

The words that tell most come first: methods and options, tickets, the density, the seed, then other keys by their last words.
What makes the name longer than LONGEST is left out; the hash tells such runs apart. Tables and legends have the same words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedprune.errors import ConfigError
from fedprune.identity import FILES, VOLATILE, Inputs, with_inputs, written

AXES = ("what", "criterion", "when", "how_often", "where", "whose", "rewind")

GROUPS = (
    *AXES,
    *("federated", "partition", "data", "model", "local", "executor", "wire", "logger"),
)
"""All config groups of a run, in order."""

METHOD = "experiment@_global_"
"""The key by which one experiment adds another to itself: conf/experiment/benchmark.yaml sweeps over methods with it."""

UNNAMED = ("experiment", "name", "data.root")
"""Keys that are not in a folder's name: the folder above has their name, or they change no result."""

QUOTES = "\"'"
LONGEST, LONGEST_VALUE, LONGEST_NAME = 80, 24, 200
"""The most characters of a folder's name, hash included, and of one value in it; the most bytes of the name above it."""

COLUMNS = ("run", "status", "reason", "name", "metric", "larger_is_better", "round", "seeds", "method", "ticket", "version")
"""Words that no key is shortened to, besides GROUPS, `density` and `seed`: tables have columns of these names."""

SHORT = {METHOD: "method", "ticket.path": "ticket", "init_from.path": "init_from"}
"""Keys whose last word says too little."""


def register() -> None:
    """Register the resolvers that name a job's folder and the folder above it."""
    OmegaConf.register_new_resolver("fedprune.name", above_name, replace=True)
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


def above_name(*, _root_: DictConfig) -> str:
    """Return `name`, which is that of a folder below outputs/. Raises ConfigError for one that is not."""
    name = str(_root_.name)
    parts = name.split("/")
    if all(part.strip(". ") and len(part.encode()) <= LONGEST_NAME for part in parts) and name.isprintable():
        return name
    advice = "type a name such as my_sweep or paper/figure_2, or hydra.run.dir=FOLDER for results elsewhere"
    most = f"at most {LONGEST_NAME} bytes a part"
    raise ConfigError([f"name={name[:40]!r} is not the name of a folder below outputs/ ({most}): {advice}"])


def folder_name(*, _root_: DictConfig) -> str:
    """Return a job's overrides in short and its hash; or the name of an existing folder with the same hash."""
    digest = folder_hash(_root_)
    existing = sorted(Path(_root_.hydra.sweep.dir).glob(f"*{digest}"))
    if existing:
        return existing[0].name
    return in_short(_root_.hydra.overrides.task, digest)


def in_short(overrides: Sequence[str], digest: str) -> str:
    """Return the name of the folder of a run with these overrides: at most LONGEST characters, its hash last."""
    pairs = [_pair(override) for override in overrides]
    names = short_keys(key for key, _ in pairs if key not in UNNAMED and re.split("[./@]", key)[0] not in VOLATILE)
    words = [_word(key, value, names[key]) for key, value in sorted(pairs, key=_rank) if key in names]
    room = LONGEST - len(digest)
    kept = 0
    while kept < len(words) and sum(len(word) + 1 for word in words[: kept + 1]) <= room:
        kept += 1
    return "-".join([*words[:kept], digest])


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return each dotted key by its last words: one, or as many as tell it from the other keys and from columns of tables."""
    parts = {key: re.split(r"[./]", key) for key in keys}
    reserved = {*COLUMNS, *GROUPS, "density", "seed"}
    return {key: SHORT.get(key) or _shortest(words, [*parts.values()], reserved) for key, words in parts.items()}


def ticket_name(path: Path) -> str:
    """Return a ticket in short: the hash of its run, or the file's own name if it was given one."""
    if path.suffix == ".safetensors" and path.name != "ticket.safetensors":
        return path.stem
    return (path.parent if path.suffix == ".safetensors" else path).name.rpartition("-")[2]


def _shortest(words: list[str], of_all: list[list[str]], reserved: set[str]) -> str:
    for number in range(1, len(words)):
        short = ".".join(words[-number:])
        if short not in reserved and sum(each[-number:] == words[-number:] for each in of_all) == 1:
            return short
    return ".".join(words)


def _pair(override: str) -> tuple[str, str]:
    """Return (key, value) of an override; the value of one that removes its key is `removed`."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, "removed" if override.startswith("~") else value.strip(QUOTES)


def _rank(pair: tuple[str, str]) -> int:
    key = pair[0]
    ranks = [key == METHOD, key in GROUPS, key in FILES, key == "density", key == "seed", True]
    return ranks.index(True)


def _word(key: str, value: str, name: str) -> str:
    """Return an override in short: of a method or a group the option, of another key `name=value`."""
    if key in FILES:
        return f"{name}={_cut(ticket_name(Path(value)) if key == 'ticket.path' else Path(value).stem)}"
    option = value.rpartition("/")[2]  # of an option in a folder, and of a path, the last part says which
    return _cut(option) if key == METHOD or key in GROUPS else f"{name}={_cut(option)}"


def _cut(value: str) -> str:
    return re.sub(r"[^\w.,+=-]+", "_", value)[:LONGEST_VALUE]
