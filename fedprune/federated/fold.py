"""The updates of a round, folded one after the other: an update's network goes to the accumulator, and is not kept here.

What stays are summaries, and the state that each client keeps (which may be weights of its own).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedprune.federated.masks import UpdateSummary
from fedprune.federated.server import scaffold
from fedprune.federated.server.accumulator import Accumulator, result
from fedprune.types import ClientState, Job, Params, Subnet, Update


@dataclass
class Fold:
    """The updates of a round so far. weighting: `examples` or `uniform`. private: the names of tensors that clients keep.

    kept: the state of each client. control_changes: the sum of the changes of SCAFFOLD's controls.
    """

    accumulator: Accumulator
    weighting: str
    private: tuple[str, ...]
    kept: dict[int, ClientState]
    summaries: list[UpdateSummary] = field(default_factory=list)
    control_changes: Params = field(default_factory=dict)

    def add(self, job: Job, update: Update) -> None:
        """Take up one client's update."""
        assert update.subnet is not None, "a client that was told to train sends a subnet"
        weight = float(update.examples if self.weighting == "examples" else 1)
        subnet = self._whole(update.subnet, update) if self.private else update.subnet
        self.accumulator.add(subnet, weight)
        self.summaries.append(UpdateSummary(job, subnet.mask, weight, int(update.metrics["seen"]), update.pruned))
        if not update.kept.empty:
            self.kept[update.client] = update.kept
        if update.control:
            self.control_changes |= scaffold.summed(self.control_changes, update)

    def result(self, server: Params) -> Params:
        """Return the aggregate of the updates. Raises RunError if it is no network like the server's."""
        return result(self.accumulator, server)

    def _whole(self, subnet: Subnet, update: Update) -> Subnet:
        """Return the subnet with the tensors that the client keeps: the server reports their mean, and never sends it."""
        return Subnet(subnet.params | update.kept.batchnorm, subnet.mask)
