"""Whose the mask is.

Every `whose` is (state, event, axes, rewind, measure, fresh) -> State: what one due prune event does to the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedprune.federated.aggregate import masked
from fedprune.pruning import cycle
from fedprune.pruning.cycle import Axes, Measure
from fedprune.pruning.mask import apply
from fedprune.pruning.rewind import Rewind
from fedprune.types import Params, PruneEvent, State, Subnet


def shared(
    state: State,
    event: PruneEvent,
    axes: Axes,
    rewind: Rewind,
    measure: Measure,
    fresh: Callable[[], Params],
) -> State:
    """One mask for all: the server prunes the merged network, and everybody trains what is left.

    After a rewind the server optimizer starts fresh, and clients forget what they kept; otherwise momentum is only masked.
    """
    pruned = cycle.prune(state.server, event, axes, measure)
    weights, clock = rewind(pruned.params, state.anchors, fresh)
    server = Subnet(apply(weights, pruned.mask), pruned.mask)
    rewound = clock is not None
    return replace(
        state,
        server=server,
        ticket=server.params,
        events=state.events + 1,
        clock=clock if clock is not None else state.clock,
        momentum={} if rewound else masked(state.momentum, pruned.mask),
        kept={} if rewound else state.kept,
    )
