"""The metrics of a round that follow from its masks: densities, operations of training; and layers that have collapsed."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from fedprune.federated.masks import UpdateSummary
from fedprune.federated.metrics.costs import densities, training_flops
from fedprune.pruning.evidence.gates import companion
from fedprune.pruning.mask import collapsed
from fedprune.pruning.what import What
from fedprune.types import Job, Mask, State, Subnet

log = logging.getLogger(__name__)

T = TypeVar("T")


class Latest(Generic[T]):
    """A function of a subnet's mask that remembers its latest result: most rounds have the mask of the round before."""

    def __init__(self, function: Callable[[Subnet], T]):
        self._function = function
        self._latest: tuple[Mask, T] | None = None

    def __call__(self, subnet: Subnet) -> T:
        if self._latest is None or self._latest[0] is not subnet.mask:
            self._latest = subnet.mask, self._function(subnet)
        return self._latest[1]


@dataclass(frozen=True)
class Report:
    """The metrics of a round's masks.

    parameters: the names of all parameters. flops: of training on one example, by layer of the dense network. at: the moment of
    their round at which clients prune, if they do.
    """

    what: What
    parameters: tuple[str, ...]
    flops: Mapping[str, float]
    at: str | None

    def densities(self, jobs: Sequence[Job]) -> dict[str, float]:
        """Return the densities of the networks that the clients of a round are sent: means over the clients."""
        subnets = {id(job.subnet): job.subnet for job in jobs}
        each = {key: self._densities(subnet) for key, subnet in subnets.items()}
        if len(each) == 1:
            return dict(next(iter(each.values())))
        return {name: statistics.fmean(each[id(job.subnet)][name] for job in jobs) for name in next(iter(each.values()))}

    @cached_property
    def _densities(self) -> Callable[[Subnet], dict[str, float]]:
        def of(subnet: Subnet) -> dict[str, float]:
            return densities(subnet, self.what, self.parameters)

        probabilities = {companion(name, "score") for name in self.what.names}  # whose mean is a density, too
        return of if probabilities & set(self.parameters) else Latest(of)

    def training_flops(self, summaries: Sequence[UpdateSummary]) -> float:
        """Return the operations of a round's training, each client's by the mask that it trained under."""
        return sum(summary.seen * self._flops(self._trained_under(summary)) for summary in summaries)

    @cached_property
    def _flops(self) -> Callable[[Subnet], float]:
        return Latest(lambda subnet: training_flops(self.flops, subnet.mask))

    def _trained_under(self, summary: UpdateSummary) -> Subnet:
        sent = summary.job.subnet
        return Subnet(sent.params, summary.mask) if summary.pruned and self.at == "start" else sent


def warn_of_collapsed_layers(before: State, after: State, summaries: Sequence[UpdateSummary]) -> None:
    """Log which layers of the server's network nothing passes through any more. summaries: of clients with masks of their own,
    whose networks are looked at, too."""
    steps = [("", before.server.mask, after.server.mask)]
    steps += [(f" of client {one.job.client}", one.job.subnet.mask, one.mask) for one in summaries if one.pruned]
    for owner, old, new in steps:
        for layer in collapsed(old, new):
            text = "in round %d layer %s%s has lost its last unit; what.min_per_layer=1 keeps one"
            log.warning(text, before.round, layer, owner)
