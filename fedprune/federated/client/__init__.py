"""The work of clients in a round: they train the weights that they are sent, or do something else (fedpm.py, dispfl.py).

Every option is a `Work`:
    regularisers             the additions to every client's training
    prepare(net, names)      changes a fresh network in place; names: of the prunable tensors
    wire(codec, tensors, names) -> the Wire: which of the network's tensors travel, and how
    sent_back(subnet)        -> as long a subnet as a client sends back after training this one, for estimates
    client_round(worker, start, seed) -> the Client that performs jobs; worker: a ClientRound to call; start: () -> the initial
                                weights
    problems(composition)    -> the options that it cannot be combined with, each with one to choose instead
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fedprune.federated.client.round import Client, ClientRound
from fedprune.local.regularisers.base import Regulariser
from fedprune.types import Params, Subnet
from fedprune.wire.codec import Codec, Layout
from fedprune.wire.message import Wire

if TYPE_CHECKING:
    from fedprune.federated.composition import Composition


class Work(ABC):
    """The base of all options: clients train the weights that they are sent, and send them back, unless an option says
    otherwise.

    sends: what travels to the server, `weights` or `bits`. goes_on_alone: whether clients go on with masks that no server
    knows. tunes: whether the Client has `tuned`, which evaluates what a client's training would make of a job.
    """

    sends: str = "weights"
    goes_on_alone: bool = False
    tunes: bool = False

    @property
    def regularisers(self) -> tuple[Regulariser, ...]:
        return ()

    def prepare(self, net: nn.Module, names: tuple[str, ...]) -> None:  # noqa: B027  # most options leave a fresh network as it is
        pass

    def wire(self, codec: Codec, tensors: Params, names: tuple[str, ...]) -> Wire:
        return Wire(codec, Layout.of(tensors, names))

    def sent_back(self, subnet: Subnet) -> Subnet:
        return subnet

    @abstractmethod
    def client_round(self, worker: ClientRound, start: Callable[[], Params], seed: int) -> Client: ...

    def problems(self, composition: Composition) -> list[str]:
        return []


@dataclass(frozen=True)
class TrainedWeights(Work):
    """Clients train the weights that they are sent, and send them back."""

    tunes = True

    def client_round(self, worker: ClientRound, start: Callable[[], Params], seed: int) -> Client:
        return worker


def broken(rules: Mapping[str, bool]) -> list[str]:
    """Return the rules that are not met."""
    return [problem for problem, met in rules.items() if not met]
