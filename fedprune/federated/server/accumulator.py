"""An aggregate takes up the updates of a round one by one: `start`, `add` for each of them, `result`.

Every option of federated/aggregate is an `Aggregate`: (server) -> an `Accumulator`. A mean holds one update at a time, however
many clients take part; an aggregate that compares all of them (robust.py) keeps them until its result is asked for.

What all clients have alike stays as it is, bit for bit, also where arithmetic would change it: see `Unanimous`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from fedprune.capabilities import named
from fedprune.errors import ConfigError, RunError, in_user_code
from fedprune.precision import finite, is_number
from fedprune.tensors import unlike
from fedprune.types import Mask, Params, Subnet


class Accumulator(Protocol):
    """The aggregate of the updates so far."""

    def add(self, subnet: Subnet, weight: float) -> None:
        """Take up one client's network. weight: its number of examples or 1 (federated.weighting)."""

    def result(self) -> Params:
        """Return one network, of the server's names and types; the server's own if nothing was added."""


class Aggregate(ABC):
    """The base of all options: (server) -> an accumulator that nothing was added to. server: the network before the round.

    takes: what is merged, `weights` or `bits` (see Work.sends).
    """

    takes: str = "weights"

    @abstractmethod
    def __call__(self, server: Params) -> Accumulator: ...

    def problems(self, sends: str) -> list[str]:
        """Return a problem if clients send something else than it takes, else nothing. sends: what they send."""
        if self.takes == sends or sends != "weights":  # of other things the client's own option says so
            return []
        return [f"federated/aggregate merges {self.takes}, and clients send {sends}: choose federated/aggregate=overlap_mean"]


def merged(aggregate: Aggregate, server: Params, updates: Iterable[tuple[Subnet, float]]) -> Params:
    """Return the aggregate of these updates, each given with its weight."""
    accumulator = aggregate(server)
    for subnet, weight in updates:
        accumulator.add(subnet, weight)
    return result(accumulator, server)


def result(accumulator: Accumulator, server: Params) -> Params:
    """Return the result of an accumulator, which may be anybody's. Raises RunError if it is no network like the server's."""
    merged = accumulator.result()
    wrong = unlike(merged, server)
    if wrong is not None:
        raise RunError(
            f"federated.aggregate, {named(accumulator)}: its result {wrong}: return a tensor for each of the server's"
        )
    return merged


def check(aggregate: Aggregate, net: Params | None = None, mask: Mask | None = None) -> None:
    """Merge two small networks, or two like `net`. Raises ConfigError if this is no aggregate, such as (server, updates) ->
    network, or gives no network."""
    server, alive = (net, mask or {}) if net else ({"w": torch.zeros(2)}, {"w": torch.ones(2, dtype=torch.bool)})
    try:
        with in_user_code(f"federated.aggregate, {named(aggregate)}"):
            merged(aggregate, server, [(Subnet(server, alive), 1.0)] * 2)
    except ConfigError:
        raise
    except RunError as error:
        about = "an aggregate is (server) -> an object with add(subnet, weight) and result()"
        raise ConfigError([f"{error}: {about}, see fedprune/federated/server/accumulator.py"]) from error


class Unanimous:
    """Another accumulator, after which entries that arithmetic would change are what all clients sent, if they agree.

    The mean of equal floating numbers is that number, except where they are infinite or no numbers at all (inf - inf is nan):
    the -inf of a causal mask. Whole numbers are averaged in float64, which is exact up to 2^53 alone.
    """

    def __init__(self, accumulator: Accumulator):
        self._accumulator = accumulator
        self._first: Params | None = None  # the first update's tensors that are fragile
        self._agreed: Mask = {}  # which of their entries all updates since then had, too

    def add(self, subnet: Subnet, weight: float) -> None:
        """Compare an update with the first, and pass it on. No update but the first is remembered."""
        if self._first is None:
            self._first = {name: value for name, value in subnet.params.items() if fragile(value)}
            self._agreed = {name: _alive_in(subnet, name) for name in self._first}
        else:
            for name, first in self._first.items():
                self._agreed[name] &= _equal(first, subnet.params[name]) & _alive_in(subnet, name)
        self._accumulator.add(subnet, weight)

    def result(self) -> Params:
        """Return the other accumulator's result, with the entries in which all agree as they came."""
        merged = self._accumulator.result()
        firsts = {name: first.to(merged[name].dtype) for name, first in (self._first or {}).items()}
        return merged | {name: torch.where(self._agreed[name], first, merged[name]) for name, first in firsts.items()}


def fragile(value: Tensor) -> bool:
    """Return whether a mean of equal tensors may differ from them: of whole numbers, or where not all are finite."""
    return not (is_number(value) and finite(value))


def _alive_in(subnet: Subnet, name: str) -> Tensor:
    """Return the mask of a tensor; of one that no mask covers, all of it."""
    if name in subnet.mask:
        return subnet.mask[name].clone()
    return torch.ones(subnet.params[name].shape, dtype=torch.bool)


def _equal(tensor: Tensor, other: Tensor) -> Tensor:
    """Return which entries are the same; nan is the same as nan."""
    return (tensor == other) | ((tensor != tensor) & (other != other))
