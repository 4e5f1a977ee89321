"""Values that are a client's own: of the entries that not every client holds, each goes on with what it has trained itself.

Li et al. 2021 (Hermes). Which entries all clients hold, the server knows from their masks; only the values of these are sent
down. A client that has not trained yet has nothing of its own, and takes all that it is sent.
"""

from __future__ import annotations

import functools
import operator

import torch

from fedprune.pruning.mask import pack, unpack
from fedprune.types import Job, Mask, Params, State, Subnet


def shared_entries(state: State) -> Mask:
    """The entries that every client holds: a client without a mask of its own holds all."""
    mask = state.server.mask
    if not state.personal:
        return mask
    held = (int.from_bytes(bytes(own.mask), "big") for own in state.personal.values())
    bits = functools.reduce(operator.and_, held).to_bytes(len(pack(mask)), "big")
    return unpack(bits, {name: alive.shape for name, alive in mask.items()})


def trained(state: State, client: int) -> Params:
    """Return the prunable tensors as this client has trained them in its last round; nothing before that."""
    return state.kept[client].weights if client in state.kept else {}


def sent(mask: Mask, shared: Mask) -> Mask | None:
    """Which entries of a client's mask get the server's values, if not all of them do."""
    found = {name: alive & shared[name] for name, alive in mask.items()}
    return None if all(torch.equal(alive, mask[name]) for name, alive in found.items()) else found


def joined(server: Params, own: Params, shared: Mask) -> Params:
    """The server's values where all clients hold an entry, and `own` ones elsewhere; of the names in `own`."""
    return {name: torch.where(shared[name], server[name], value) for name, value in own.items()}


def arrived(job: Job) -> Subnet:
    """The network that a client trains: what it was sent, and what it kept of the entries whose values were not."""
    if job.shared is None:
        return job.subnet
    own = joined(job.subnet.params, job.kept.weights, job.shared)
    held = {name: torch.where(job.subnet.mask[name], value, 0) for name, value in own.items()}
    return Subnet(job.subnet.params | held, job.subnet.mask)
