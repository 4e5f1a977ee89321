"""Kinds of rounds: between a server and its clients (star), or among clients (decentralised.py).

Every option of federated/round is a `Rounds`:
    loop(**parts)              -> the loop, of the parts of a FederatedLoop
    traffic(wire, subnet, each, cohort) -> bytes (down, up) of a round that trains this subnet, lengths of real encodings; each:
                                  of one client that a server sends it to
    problems(composition)      -> what it cannot be combined with, each with what to choose instead
    welcomes                   whether clients are sent what is never trained, or have it before they begin
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedprune.federated.loop import FederatedLoop
from fedprune.types import Subnet
from fedprune.wire.message import Wire

if TYPE_CHECKING:
    from fedprune.federated.composition import Composition


class Rounds(ABC):
    """The base of all options; see above."""

    welcomes: bool = True

    @abstractmethod
    def loop(self, **parts: Any) -> FederatedLoop: ...

    @abstractmethod
    def traffic(self, wire: Wire, subnet: Subnet, each: tuple[int, int], cohort: int) -> tuple[int, int]: ...

    def problems(self, composition: Composition) -> list[str]:
        return []


@dataclass(frozen=True)
class Star(Rounds):
    """A server sends its network to the clients of a round, and merges what they make of it."""

    def loop(self, **parts: Any) -> FederatedLoop:
        return FederatedLoop(**parts)

    def traffic(self, wire: Wire, subnet: Subnet, each: tuple[int, int], cohort: int) -> tuple[int, int]:
        down, up = each
        return cohort * down, cohort * up

    def problems(self, composition: Composition) -> list[str]:
        """Clients whose masks the server would have to know."""
        if composition.options.client.goes_on_alone:
            return [
                "federated/client=evolving_mask goes on with a mask that no server knows: choose federated/round=neighbours, "
                "or federated/client=trained_weights"
            ]
        return []
