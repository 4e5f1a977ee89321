"""ClientState <-> named groups of named tensors: what processes hand each other, and what a checkpoint holds.

A group has the name of a field; the state of an optimizer has a group for each parameter, `optimizer/<number>`. A field that is
empty has no group.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedprune.types import ClientState, Params

Groups = dict[str, Params]

OPTIMIZER = "optimizer/"
BITS = "bits"
"""The one tensor of the group `mask`: uint8, the packed bits."""


def grouped(kept: ClientState) -> Groups:
    """Return the tensors of the state by group."""
    if kept.empty:
        return {}
    groups = {
        "batchnorm": kept.batchnorm,
        "weights": kept.weights,
        "control": kept.control,
        "squared_gradients": kept.squared_gradients,
        "mask": {BITS: as_tensor(kept.mask)} if kept.mask else {},
    }
    groups |= {f"{OPTIMIZER}{number}": dict(state) for number, state in kept.optimizer.items()}
    return {group: tensors for group, tensors in groups.items() if tensors}


def ungrouped(groups: Mapping[str, Params]) -> ClientState:
    """Return the state that `grouped` was given."""
    return ClientState(
        batchnorm=groups.get("batchnorm", {}),
        weights=groups.get("weights", {}),
        optimizer=_by_number(groups),
        control=groups.get("control", {}),
        squared_gradients=groups.get("squared_gradients", {}),
        mask=as_bytes(groups["mask"][BITS]) if "mask" in groups else b"",
    )


def _by_number(groups: Mapping[str, Params]) -> dict[int, Params]:
    names = [group for group in groups if group.startswith(OPTIMIZER)]
    return {int(name.removeprefix(OPTIMIZER)): groups[name] for name in names}


def as_tensor(packed: bytes) -> Tensor:
    """Return packed bits as a tensor, to stand among others."""
    return torch.from_numpy(np.frombuffer(packed, np.uint8).copy())


def as_bytes(tensor: Tensor) -> bytes:
    """Return the packed bits that `as_tensor` was given."""
    return tensor.numpy().tobytes()
