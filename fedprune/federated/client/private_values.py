"""Private values of entries: where not all clients have an entry alive, each goes on with the value that it has trained itself.

Li et al. 2021 (Hermes). The server knows the common entries, which all clients have alive, from their masks; only the values of
these travel down. A client that has not trained yet takes all values that the server has.
"""

from __future__ import annotations

import functools
import operator

import torch

from fedprune.pruning.mask import pack, unpack
from fedprune.types import Job, Mask, Params, State, Subnet


def common_entries(state: State) -> Mask:
    """Return the entries that every client has alive. A client without a personal mask has all."""
    mask = state.server.mask
    if not state.personal:
        return mask
    masks = (int.from_bytes(bytes(personal.mask), "big") for personal in state.personal.values())
    bits = functools.reduce(operator.and_, masks).to_bytes(len(pack(mask)), "big")
    return unpack(bits, {name: alive.shape for name, alive in mask.items()})


def weights_of(state: State, client: int) -> Params:
    """Return the prunable tensors as this client has trained them in its last round; nothing before that."""
    return state.kept[client].weights if client in state.kept else {}


def common_in(mask: Mask, common: Mask) -> Mask | None:
    """Return the common entries that are alive in a client's mask; None if everything that is alive in it is common."""
    entries = {name: alive & common[name] for name, alive in mask.items()}
    return None if all(torch.equal(alive, mask[name]) for name, alive in entries.items()) else entries


def joined(server: Params, private: Params, common: Mask) -> Params:
    """Return the server's values of common entries and `private` ones elsewhere, by the names in `private`."""
    return {name: torch.where(common[name], server[name], value) for name, value in private.items()}


def arrived(job: Job) -> Subnet:
    """Return the network that a client trains: the values that it was sent, and those that it kept of all other entries."""
    if job.common is None:
        return job.subnet
    values = joined(job.subnet.params, job.kept.weights, job.common)
    alive = {name: torch.where(job.subnet.mask[name], value, 0) for name, value in values.items()}
    return Subnet(job.subnet.params | alive, job.subnet.mask)
