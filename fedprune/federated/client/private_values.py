"""Private values of entries: where an entry is not common, each client goes on with the value that it has trained itself.

Li et al. 2021 (Hermes). Only values of common entries travel down. Who must have an entry alive is `whose.common`:

- `cohort`: every client of the round, which is what the server averages. After a round the server remembers for its clients
  which entries those were. A client that comes back gets the server's present value of each entry that was common in its own
  last round, and goes on with its own value of every other one. So what a client trains either is in a mean of the server or
  stays with the client. If nobody prunes this is FedAvg, and if all clients take part in every round it is the same as `all`.
- `all`: every client of the run, whether it is in the cohort or not, by the masks of this moment.

A client that has not trained yet takes all values that the server has.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from fedprune.pruning.mask import pack, unpack
from fedprune.types import Job, Mask, Params, ServerState, State, Subnet


def by_all(state: State) -> Callable[[int], Mask]:
    """Return (client) -> the entries that every client of the run has alive. A client without a personal mask has all."""
    masks = [bytes(personal.mask) for personal in state.personal.values()]
    common = _unpacked(state, _in_common(masks)) if masks else state.server.mask
    return lambda client: common


def by_cohort(state: State, client: int) -> Mask:
    """Return the entries that the clients of this client's last round all had alive when it ended; none if it had no round."""
    bits = state.server_state.common.get(client)
    return _unpacked(state, bits) if bits else {name: torch.zeros_like(alive) for name, alive in state.server.mask.items()}


def remembered(memory: ServerState, masks: Mapping[int, Mask]) -> ServerState:
    """Return the server's memory after a round. masks: by client, that of the network that it sent."""
    bits = _in_common(pack(mask) for mask in masks.values())
    return replace(memory, common={**memory.common, **dict.fromkeys(masks, bits)})


def _in_common(masks: Iterable[bytes]) -> bytes:
    """Return the bits that are set in each of these packed masks. There has to be one."""
    first, *others = masks
    numbers = (int.from_bytes(mask, "big") for mask in (first, *others))
    return functools.reduce(operator.and_, numbers).to_bytes(len(first), "big")


def _unpacked(state: State, bits: bytes) -> Mask:
    return unpack(bits, {name: alive.shape for name, alive in state.server.mask.items()})


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
