"""The server's end of controls (see local/state/scaffold.py): c, the mean of all clients' c_k, is State.server_state.control.

    c <- c + (|S| / N) mean over S of (c_k+ - c_k)

S are the clients whose updates arrived, N all of them: c stays the mean of all c_k, of those too that have not trained yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedprune.precision import wide, wide_zeros
from fedprune.types import ClientState, Mask, Params, State, Update


def start(names: tuple[str, ...], params: Params) -> Params:
    """Return c before anybody has trained: zero for each of these parameters."""
    return {name: wide_zeros(params[name]) for name in names}


def sent(names: tuple[str, ...], state: State) -> Params:
    """Return the control that goes to clients that train: c of these parameters, in the parameters' own types."""
    params = state.server.params
    c = state.server_state.control or start(names, params)
    return {name: value.to(params[name].dtype) for name, value in c.items()}


def summed(changes: Params, update: Update) -> Params:
    """Return the changes of c_k so far plus those of this update."""
    return {name: wide(change) + changes.get(name, 0.0) for name, change in update.control.items()}


def stepped(c: Params, changes: Params, clients: int) -> Params:
    """Return c after the sum of the cohort's changes; as it was if there are none. clients: the number of all clients."""
    return {**c, **{name: c.get(name, 0.0) + change / clients for name, change in changes.items()}}


def without_dead(kept: Mapping[int, ClientState], mask: Mask) -> dict[int, ClientState]:
    """Return what clients keep, with the controls of dead entries at zero: a weight that is grown again starts without one."""
    return {client: _living(state, mask) for client, state in kept.items()}


def _living(kept: ClientState, mask: Mask) -> ClientState:
    return replace(kept, control={name: c_k * mask[name] if name in mask else c_k for name, c_k in kept.control.items()})
