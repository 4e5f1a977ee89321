"""Whose the mask is.

Every `whose` is (state, event, axes, rewind, measure, draws) -> State: what one due prune event does to the run.
"""

from __future__ import annotations

from dataclasses import replace

from fedprune.federated.server_step import masked
from fedprune.pruning import cycle
from fedprune.pruning.cycle import Axes, Measure
from fedprune.pruning.mask import apply
from fedprune.pruning.rewind import Draws, Rewind
from fedprune.types import PruneEvent, State, Subnet


def shared(
    state: State,
    event: PruneEvent,
    axes: Axes,
    rewind: Rewind,
    measure: Measure,
    draws: Draws,
) -> State:
    """One mask for all: the server prunes the merged network, and everybody trains what is left.

    After a rewind the server optimizer starts fresh; otherwise its momentum is only masked. Where weights are other ones,
    clients forget what they kept.
    """
    pruned = cycle.prune(state.server, event, axes, measure)
    weights, clock = rewind(pruned.mask, state.anchors, draws)
    server = pruned if weights is None else Subnet(apply(weights, pruned.mask), pruned.mask)
    return replace(
        state,
        server=server,
        ticket=server.params,
        events=state.events + 1,
        clock=state.clock if clock is None else clock,
        momentum=masked(state.momentum, pruned.mask) if clock is None else {},
        kept=state.kept if weights is None else {},
    )
