"""What clients do in a round: train the weights that they are sent, or something of their own (sampled_masks, evolving_mask).

Every option is a `Work`:
    regularisers             what it adds to every client's training
    begin(net, names)        what it makes of a fresh network, in place; names: of the prunable tensors
    wire(codec, tensors, names) -> which of the network's tensors travel, and how
    answer(subnet)           -> as long a subnet as a client sends back after training this one: for estimates
    client_round(worker, start, seed) -> what a worker does with jobs; worker: its ClientRound; start: () -> the initial weights
    problems(composition)    -> what it cannot be combined with, each with what to choose instead
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import nn

from fedprune.federated.client.round import ClientRound
from fedprune.local.regularisers.base import Regulariser
from fedprune.pruning.what import What
from fedprune.types import Params, Plan, Subnet
from fedprune.wire.codec import Codec, Layout
from fedprune.wire.message import Wire


class Composition(NamedTuple):
    """What was chosen beside it. options: the objects by group; names: of the options; config: the whole configuration."""

    plan: Plan
    what: What
    net: nn.Module
    options: Mapping[str, Any]
    names: Mapping[str, str]
    config: Any


class Work(Protocol):
    """What all options have in common; see above."""

    @property
    def regularisers(self) -> tuple[Regulariser, ...]: ...

    def begin(self, net: nn.Module, names: tuple[str, ...]) -> None: ...

    def wire(self, codec: Codec, tensors: Params, names: tuple[str, ...]) -> Wire: ...

    def answer(self, subnet: Subnet) -> Subnet: ...

    def client_round(self, worker: ClientRound, start: Callable[[], Params], seed: int) -> ClientRound: ...

    def problems(self, composition: Composition) -> list[str]: ...


@dataclass(frozen=True)
class TrainedWeights:
    """Clients train the weights that they are sent, and send them back."""

    regularisers: ClassVar[tuple[Regulariser, ...]] = ()

    def begin(self, net: nn.Module, names: tuple[str, ...]) -> None:
        pass

    def wire(self, codec: Codec, tensors: Params, names: tuple[str, ...]) -> Wire:
        return Wire(codec, Layout.of(tensors, names))

    def answer(self, subnet: Subnet) -> Subnet:
        return subnet

    def client_round(self, worker: ClientRound, start: Callable[[], Params], seed: int) -> ClientRound:
        return worker

    def problems(self, composition: Composition) -> list[str]:
        return []


def broken(rules: Mapping[str, bool]) -> list[str]:
    """The rules that are not kept."""
    return [problem for problem, kept in rules.items() if not kept]
