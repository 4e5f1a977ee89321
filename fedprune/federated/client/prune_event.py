"""A prune event on a client, about the mask that it was sent: at the `start` of its round, of the network that came, or at its
`end`, of what training has made of it.

The client measures evidence on its own data, asks its own gate on its own validation examples, prunes and rewinds. Weights that
it rewinds to follow from the seed (or the ticket that the run starts from), so they are not sent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fedprune.pruning.event import Axes, Measure, dropped, prune
from fedprune.pruning.evidence import needs
from fedprune.pruning.gate import shift
from fedprune.pruning.mask import apply
from fedprune.pruning.rewind import Draws, Rewind, rewound
from fedprune.randomness import torch_stream
from fedprune.types import Condition, Job, Params, PruneEvent, Subnet

MOMENTS = ("start", "end")


class Pruned(NamedTuple):
    """A subnet after an event. replaced: whether its weights are other ones, so that an optimizer's state is void."""

    subnet: Subnet
    replaced: bool


class Looks(NamedTuple):
    """The measurements that a client can take of networks: evidence, and outcomes on its own validation examples (val_accuracy,
    val_metric).

    first: the network after the first epoch of this round, or as it came if there is only one (None: before training).
    """

    measure: Measure
    validation: Callable[[Subnet], Mapping[str, float]]
    first: Params | None = None


@dataclass(frozen=True)
class OnClient:
    """Carries out events on clients. at: the moment of their round. gate: the condition of each event (None: no condition).

    fresh: the n-th independent initialisation; the 0th is the one that the run starts from, unless that is `ticket`.
    """

    axes: Axes
    rewind: Rewind
    gate: Condition | None
    at: str
    fresh: Callable[[int], Params]
    ticket: Subnet | None = None

    def __call__(self, job: Job, subnet: Subnet, looks: Looks) -> Pruned | None:
        """Return the subnet after the job's event, or None if the gate does not let it happen."""
        assert job.event is not None, "who has nothing to do is not asked"
        event = job.event
        pruned = functools.cache(lambda: prune(subnet, event, self.axes, looks.measure))
        outcomes: dict[str, Callable[[], float]] = {
            "val_accuracy": lambda: looks.validation(subnet)["val_accuracy"],
            "val_metric": lambda: looks.validation(subnet)["val_metric"],
            "pruned_accuracy": lambda: looks.validation(pruned())["val_accuracy"],
            "pruned_metric": lambda: looks.validation(pruned())["val_metric"],
            "mask_shift": lambda: self._shift(event, subnet, looks),
        }
        if self.gate is not None and not self.gate(**{name: outcomes[name]() for name in needs(self.gate)}):
            return None
        weights, _ = rewound(self.rewind, pruned().mask, {0: self.start}, self._draws(job), subnet.params)
        if weights is None:
            return Pruned(pruned(), False)
        return Pruned(Subnet(apply(weights, pruned().mask), pruned().mask), True)

    def _shift(self, event: PruneEvent, subnet: Subnet, looks: Looks) -> float:
        """Return the shift from the mask that the first epoch of this round would have led to, to that of the last."""
        assert looks.first is not None, "build refuses to ask for this before training"
        early, late = (
            dropped(Subnet(params, subnet.mask), event, self.axes, looks.measure) for params in (looks.first, subnet.params)
        )
        return shift(early, late, subnet.mask)

    @functools.cached_property
    def start(self) -> Params:
        """The weights that the run starts from."""
        return self.fresh(0) if self.ticket is None else self.ticket.params

    def _draws(self, job: Job) -> Draws:
        """Return the draws of an event: an initialisation that all clients have alike, and streams of this client's own."""
        return Draws(
            lambda: self.fresh(job.events + 1),
            lambda name: torch_stream(job.seed, f"rewind {name}", job.events, job.client),
            self.ticket.mask if self.ticket else {},
        )
