"""The server's end of controls (see local/state/scaffold.py): c, the mean of all clients' c_k, is in State.momentum, like the
buffers of a server optimizer.

    c <- c + (|S| / N) mean over S of (c_k+ - c_k)

S are the clients whose updates arrived, N all of them: c stays the mean of all c_k, of those too that have not trained yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedprune.federated.server.optimizer import Momentum, masked
from fedprune.local.state.scaffold import KEY, PREFIX
from fedprune.precision import wide, wide_zeros
from fedprune.types import Mask, Params, State, Update


def start(names: tuple[str, ...], params: Params) -> Mapping[str, Params]:
    """c before anybody has trained: zero. Nothing where nothing is controlled."""
    return {KEY: {name: wide_zeros(params[name]) for name in names}} if names else {}


def carried(names: tuple[str, ...], state: State) -> Mapping[str, Params]:
    """What goes to clients that train: c of these parameters, in the parameters' own types."""
    c = (state.momentum if KEY in state.momentum else start(names, state.server.params)).get(KEY, {})
    return {KEY: {name: value.to(state.server.params[name].dtype) for name, value in c.items()}} if names else {}


def summed(changes: Params, update: Update) -> Params:
    """The changes of c_k so far, and those that this update carries."""
    return {name: wide(change) + changes.get(name, 0.0) for name, change in update.carried.get(KEY, {}).items()}


def stepped(momentum: Momentum, changes: Params, clients: int) -> Momentum:
    """c after the sum of the cohort's changes; as it was if there are none. clients: all of them."""
    c = momentum.get(KEY, {})
    after = {**c, **{name: c.get(name, 0.0) + change / clients for name, change in changes.items()}}
    return {KEY: after} if after else {}


def pruned(before: State, after: State) -> State:
    """The state after a prune event, c still being the mean of all c_k.

    Where weights were replaced, clients have forgotten what they kept, and c goes with it. Otherwise c stays, whatever becomes
    of a server optimizer, and both ends forget the dead: a weight that is grown again starts without a control.
    """
    rest = {key: part for key, part in after.momentum.items() if key != KEY}
    if KEY not in before.momentum or not after.kept:
        return replace(after, momentum=rest)
    c = masked({KEY: before.momentum[KEY]}, after.server.mask)
    kept = {client: _living(own, after.server.mask) for client, own in after.kept.items()}
    return replace(after, momentum={**rest, **c}, kept=kept)


def _living(kept: Params, mask: Mask) -> Params:
    layers = {name: name.removeprefix(PREFIX) for name in kept if name.startswith(PREFIX)}
    return kept | {name: kept[name] * mask[layer] for name, layer in layers.items() if layer in mask}
