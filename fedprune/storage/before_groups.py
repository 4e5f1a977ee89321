"""Checkpoints of before ClientState, in which all that a client keeps is one group: prefixes of names say what is what."""

from __future__ import annotations

import re

from fedprune.storage.groups import BITS, OPTIMIZER
from fedprune.types import Mask, Params

TRAINED = "trained:mask"
KINDS = {
    "control": re.compile(r"control:(?P<name>.+)"),
    "squared_gradients": re.compile(r"accumulated:(?P<name>.+)"),
    "optimizer": re.compile(r"optimizer:(?P<number>\d+):(?P<name>.+)"),
}


def one_bag(tensors: Params, mask: Mask) -> dict[str, Params]:
    """Return such a group as the groups of a ClientState (see storage/groups.py). mask: the server's."""
    groups: dict[str, Params] = {}
    for full, tensor in tensors.items():
        group, name = _place(full, TRAINED in tensors or full in mask)
        groups.setdefault(group, {})[name] = tensor
    return groups


def _place(full: str, weight: bool) -> tuple[str, str]:
    """Return (the group, the name in it) of a tensor. weight: whether it is one of `weights`, if it is of the network."""
    if full == TRAINED:
        return "mask", BITS
    for kind, pattern in KINDS.items():
        if match := pattern.fullmatch(full):
            return f"{OPTIMIZER}{match['number']}" if kind == "optimizer" else kind, match["name"]
    return "weights" if weight else "batchnorm", full
