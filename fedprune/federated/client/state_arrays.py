"""A client's state on its way to and from its worker, past the wire: as numpy arrays (see execution/arrays.py)."""

from __future__ import annotations

from collections.abc import Mapping

from fedprune.execution.arrays import Arrays, arrays_of, as_tensor, tensors_of
from fedprune.storage.groups import grouped, ungrouped
from fedprune.types import ClientState, Params

KeptArrays = dict[str, Arrays]
"""The groups of a ClientState (storage/groups.py), each as arrays by name."""


def as_arrays(kept: ClientState) -> KeptArrays:
    """Return a state as arrays, which share its memory."""
    return {group: arrays_of(tensors) for group, tensors in grouped(kept).items()}


def of_arrays(groups: Mapping[str, Arrays]) -> ClientState:
    """Return the state that these arrays were made of; it shares their memory."""
    return ungrouped({group: tensors_of(arrays) for group, arrays in groups.items()})


def copy_of_arrays(groups: Mapping[str, Arrays]) -> ClientState:
    """Return the state that these arrays were made of, in memory of its own."""
    return ungrouped({group: copies(arrays) for group, arrays in groups.items()})


def copies(arrays: Arrays) -> Params:
    """Return tensors with the values of these arrays, which may lie in memory that is shared, or in the server's state."""
    return {name: as_tensor(array.copy()) for name, array in arrays.items()}
