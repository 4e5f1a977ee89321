"""A prune event that the server carries out, and the state after any event that gives all clients another mask."""

from __future__ import annotations

from dataclasses import replace

from fedprune.federated.masks.whose import PruneContext
from fedprune.federated.server import scaffold
from fedprune.federated.server.optimizer import state_under
from fedprune.local.state import squared_gradients
from fedprune.pruning.candidates import Compare
from fedprune.pruning.criterion.regrowth_init import last_values, of_the_dead
from fedprune.pruning.event import Measure, prune
from fedprune.pruning.mask import apply
from fedprune.pruning.rewind import rewound
from fedprune.types import ClientState, Params, PruneEvent, ServerState, State, Subnet


def prune_server(
    state: State, event: PruneEvent, context: PruneContext, measure: Measure, compare: Compare | None = None
) -> State:
    """Return the state after one event of the server: it prunes the merged network, and all clients train what is left.

    compare: how a criterion that selects compares its candidates.
    """
    last = last_values(state.server, state.stale) if context.axes.regrown == "server" else {}
    pruned = prune(state.server, event, context.axes, measure, last, compare)
    return after_event(state, pruned, state.events + 1, context, last)


def after_event(state: State, pruned: Subnet, events: int, context: PruneContext, last: Params) -> State:
    """Return the state with another mask for all, after a rewind. events: the number of events that are done. last: the values
    of prunable entries when they last lived (empty: nobody remembers).

    After a rewind the server optimizer starts fresh; otherwise its momentum is only masked. Where weights are replaced, clients
    forget what they kept, and the server its control and the last values; otherwise both ends forget the controls of the dead
    alone, so that c is still the mean of all c_k. Sums of squared gradients begin anew at every event.
    """
    weights, clock = rewound(context.rewind, pruned.mask, state.anchors, context.draws, pruned.params)
    server_state, kept = ServerState(), dict[int, ClientState]()
    if weights is None:
        server_state = state_under(pruned.mask, state.server_state, context.fresh)
        kept = scaffold.without_dead(squared_gradients.forgotten(state.kept), pruned.mask)
    if clock is not None:
        server_state = replace(server_state, momentum={})
    server = pruned if weights is None else Subnet(apply(weights, pruned.mask), pruned.mask)
    return replace(
        state,
        server=server,
        ticket=server.params,
        events=events,
        clock=state.clock if clock is None else clock,
        server_state=server_state,
        kept=kept,
        stale=of_the_dead(last, pruned.mask) if last and weights is None else {},
        pruned=state.round,
        opened=False,
        candidate={},
    )
