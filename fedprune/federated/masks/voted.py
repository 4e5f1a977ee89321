"""One mask for all, of which clients propose their own: a ballot (voting.py) makes one mask of the proposals."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedprune.capabilities import complete
from fedprune.errors import ConfigError
from fedprune.federated.masks.gates import due_events
from fedprune.federated.masks.server_event import after_event
from fedprune.federated.masks.shared import under
from fedprune.federated.masks.voting import Ballot, Vote, votes
from fedprune.federated.masks.whose import PruneContext, UpdateSummary, Whose, check_moment
from fedprune.pruning.mask import apply
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.types import Mask, Params, Plan, PruneEvent, Scores, State, Subnet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Voted(Whose):
    """Each client of a round carries out the event by itself, and the server makes one mask of theirs. Until then a proposal is
    its client's alone. Events before any training are the server's.
    """

    ballot: Ballot
    at: str = "end"
    back_after_exchange = True

    def __post_init__(self) -> None:
        check_moment(self.at)
        self._rehearse()

    @property
    def apportions(self) -> bool:
        return complete(self.ballot, Vote).apportions

    def _rehearse(self) -> None:
        """Count one vote. Raise ConfigError if the ballot finds its own keys wrong."""
        vote, what = {"": torch.ones(1, 1)}, What(weights, globally, names=("",))
        try:
            self.ballot(vote, vote, PruneEvent(0, 1.0), what, lambda purpose: torch.Generator())
        except ConfigError:
            raise
        except Exception as error:  # one of somebody's own that cannot count a vote on so little
            log.debug("%s: %s", self.ballot, error)

    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]:
        return tuple(event for event in due_events(plan, state) if event.round == 0)

    def on_client(self, plan: Plan, state: State, client: int) -> tuple[PruneEvent | None, int]:
        """Return the last of the events that are due: it goes as far as those before it together."""
        events = due_events(plan, state)
        return (events[-1], state.events + len(events) - 1) if events else (None, state.events)

    def merged(self, state: State, params: Params, summaries: Sequence[UpdateSummary], context: PruneContext) -> State:
        """Return the state under the mask that the proposals make together; under the old one if there are none."""
        proposals = [summary for summary in summaries if summary.pruned]
        if not proposals:
            return under(state.server.mask, state, params, context.fresh)
        job, shares = proposals[0].job, votes((summary.mask, summary.weight) for summary in proposals)
        assert job.event is not None
        if not job.event.swap:
            shares = _without_growth(shares, state.server.mask)
        mask = self.ballot(shares, params, job.event, context.axes.what, context.draws.generator)
        after = after_event(state, Subnet(apply(params, mask), mask), job.events + 1, context, {})
        return replace(after, pruned=job.round)  # the next event is as far from this one as if it had come before the round


def _without_growth(shares: Scores, mask: Mask) -> Scores:
    """Return the votes, below 0 for dead entries that nobody proposes."""
    return {name: share.masked_fill(~mask[name] & (share == 0), -1.0) for name, share in shares.items()}
