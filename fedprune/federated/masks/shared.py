"""One mask for all: the server prunes the merged network, and every client trains what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedprune.federated.masks.gates import due_events
from fedprune.federated.masks.whose import PruneContext, UpdateSummary, Whose
from fedprune.federated.server.optimizer import Fresh, state_under
from fedprune.pruning.mask import apply
from fedprune.types import Mask, Params, Plan, PruneEvent, State, Subnet


@dataclass(frozen=True)
class Shared(Whose):
    """One mask for all: the server prunes the merged network."""

    per_client = False

    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]:
        return due_events(plan, state)

    def merged(self, state: State, params: Params, summaries: Sequence[UpdateSummary], context: PruneContext) -> State:
        """Return the state with the merged parameters. The mask stays: only the server changes it."""
        return under(state.server.mask, state, params, context.fresh)


def under(mask: Mask, state: State, params: Params, fresh: Fresh) -> State:
    """Return the state with these parameters for the server, under this mask. fresh: the values that momentum starts from, to
    which that of dead entries goes back."""
    server = Subnet(apply(params, mask), mask)
    return replace(state, server=server, server_state=state_under(mask, state.server_state, fresh))
