"""The bounds of a ticket, which may come from anybody: checked by what its file says of itself, before anything is built.

safetensors has checked by then that every tensor lies within the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from safetensors import safe_open

from fedprune.errors import DataError, shown
from fedprune.types import Json, Params

LONGEST = 2**24
"""Bytes of all metadata of a ticket, at most."""

TENSORS = 100_000
"""Tensors, at most."""

NAME = 1000
"""Letters of a tensor's name, at most."""

ITEMS = 10_000
"""Items of a list, and keys of an object, in the config of a network, at most."""

DEEPEST = 20
"""Levels of lists and objects in it, at most."""

LEAST = 2**14
"""A network's numbers of units, classes or pixels may be as large as this in any case."""

OBJECTS = ("axes", "network", "inputs")
LISTS = ("order", "complex")


def check_metadata(path: Path) -> None:
    """Raise DataError if the metadata of a ticket is not of the types and sizes that runs write.

    Raises SafetensorError and OSError for a file that is no safetensors.
    """
    with safe_open(path, framework="pt") as file:
        metadata, there = file.metadata() or {}, set(file.keys())
    if sum(map(len, metadata.values())) > LONGEST:
        raise DataError(f"{path} is no ticket of fedprune: it has more than {LONGEST} bytes of metadata")
    lists = {key: _json(path, metadata, key, list) for key in LISTS}
    for key, names in lists.items():
        if not _names(cast(list[object], names), there):
            raise DataError(f"{path} is damaged: its {key} is not a list of its tensors, each once")
    objects = {key: cast(Json, _json(path, metadata, key, dict)) for key in OBJECTS}
    if not all(isinstance(value, str) and len(value) <= NAME for value in objects["axes"].values()):
        raise DataError(f"{path} is damaged: its axes are not names")


def _json(path: Path, metadata: Mapping[str, str], key: str, kind: type) -> object:
    """Return the JSON of a key, an empty one if it is not there. Raises DataError if it is not of this kind."""
    if key not in metadata:
        return kind()
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: its {key} are not JSON ({shown(error)})") from error
    if not isinstance(value, kind):
        raise DataError(f"{path} is damaged: its {key} are a {type(value).__name__}, and no {kind.__name__}")
    return value


def _names(names: list[object], there: set[str]) -> bool:
    """Return whether these are names of tensors that are there, each once."""
    if len(names) > TENSORS or not all(isinstance(name, str) and len(name) <= NAME and name.isprintable() for name in names):
        return False
    return len(set(names)) == len(names) and set(names) <= there


def beyond(what: Mapping[str, object], params: Params) -> str | None:
    """Return the first number in the description of a network that is beyond what its tensors can hold; None if there is none.

    A layer of n units has n numbers at least, so that a network of more than the file has is not made at all.
    """
    most = max(LEAST, sum(tensor.numel() for tensor in params.values()))
    waiting: list[tuple[str, object, int]] = [(key, value, 0) for key, value in what.items()]
    while waiting:
        key, value, depth = waiting.pop()
        if depth > DEEPEST:
            return f"its {shown(key)} is nested more than {DEEPEST} levels deep"
        if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= most:
            return f"its {shown(key)} is {shown(value)}, and all of its tensors hold {most} numbers at most"
        if isinstance(value, dict | list):
            if len(value) > ITEMS:
                return f"its {shown(key)} has {len(value)} items, of at most {ITEMS}"
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{key}.{name}", each, depth + 1) for name, each in pairs]
    return None
