"""Means of the updates of a round. Aggregates that withstand clients that send anything are in robust.py.

Every option is an `Aggregate` (accumulator.py), and pure; a server optimizer (optimizer.py) then makes a step of its result.
A client has an entry that is alive in its mask. Everybody has the tensors without a mask (biases, BatchNorm's scales and
statistics, counters), which go by the same rule. An entry that no client has is uncovered.

Means of half precision are taken in float32 and rounded once, those of whole numbers in float64 and rounded to the nearest.

Updates are taken up in the given order into a running mean: memory does not grow with the cohort, and networks that are equal
average to themselves, bit for bit. Consecutive clients whose masks are equal are taken up together.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.federated.server.accumulator import Accumulator, Aggregate, Unanimous
from fedprune.precision import is_number, wide
from fedprune.pruning.mask import pack, places
from fedprune.types import Mask, Params, Subnet

HolderWeights = Mapping[str, Tensor | float]
"""The sum of the weights of the clients that have an entry: by entry, or one number for a whole tensor."""


@dataclass(frozen=True)
class OverlapMean(Aggregate):
    """Each entry is the weighted mean over the clients that have it, sum_k a_k m_k w_k / sum_k a_k m_k.

    With equal masks this is FedAvg (McMahan et al. 2017). uncovered: the rule for entries that no client has: `keep` is the
    server's value, `zero` is 0.
    """

    uncovered: str = "keep"

    def __post_init__(self) -> None:
        check_uncovered(self.uncovered)

    def __call__(self, server: Params) -> Accumulator:
        return Unanimous(_OverlapMean(server, self.uncovered))


def mean_with_zeros(server: Params) -> Accumulator:
    """Take the mean over all clients: sum_k a_k m_k w_k / sum_k a_k. A dead entry counts as a zero.

    Plain FedAvg of sparse networks, as in ZeroFL (Qiu et al. 2022): it draws entries that few clients have towards zero.
    Entries that no client has become 0.
    """
    return Unanimous(_MeanWithZeros(server))


def intersection(server: Params) -> Accumulator:
    """Take the weighted mean of the entries that every client of the round has; every other entry keeps the server's value.

    Li et al. 2021 (Hermes): the server's part of it.
    """
    return Unanimous(_Intersection(server))


class _RunningMean:
    """The weighted mean of networks, taken up one by one."""

    def __init__(self) -> None:
        self.mean: Params = {}
        self.total = 0.0

    def add(self, params: Params, weight: float) -> None:
        """Take up a network: mean += (params - mean) weight / total."""
        self.total += weight
        values = {name: wide(value) if is_number(value) else value.double() for name, value in params.items()}
        if not self.mean:
            self.mean = {name: value.clone() for name, value in values.items()}
            return
        for name, value in values.items():
            self.mean[name].lerp_(value, weight / self.total)


class _ByMask(ABC):
    """The base of means that depend on who has an entry. Consecutive clients whose masks are equal have one running mean."""

    def __init__(self, server: Params) -> None:
        self._server = server
        self._bits: bytes | None = None  # the mask of the clients of the running mean, by its content
        self._mask: Mask = {}
        self._equal_masks = _RunningMean()
        self._mean: Params = {}
        self._holder_weights: HolderWeights = {}

    def add(self, subnet: Subnet, weight: float) -> None:
        """Take up one client's network, in the running mean if its mask equals that of the client before it."""
        bits = _bits(*subnet.mask.values())
        if bits != self._bits:
            self._join_equal_masks()
            self._bits, self._equal_masks = bits, _RunningMean()
        self._mask = subnet.mask
        self._equal_masks.add(subnet.params, weight)

    def _join_equal_masks(self) -> None:
        if self._bits is not None:
            self._mean, self._holder_weights = _join(self._mean, self._holder_weights, self._equal_masks.mean, self._weights())
            self._bits = None

    @abstractmethod
    def _weights(self) -> HolderWeights:
        """Return, by name, the weight of the clients of the running mean that have an entry."""


class _OverlapMean(_ByMask):
    def __init__(self, server: Params, uncovered: str) -> None:
        super().__init__(server)
        self._uncovered = uncovered

    def _weights(self) -> HolderWeights:
        return {name: _weight_of_holders(self._mask.get(name), self._equal_masks.total) for name in self._equal_masks.mean}

    def result(self) -> Params:
        self._join_equal_masks()
        return settled(self._mean, self._holder_weights, self._server, self._uncovered)


class _Intersection(_ByMask):
    def __init__(self, server: Params) -> None:
        super().__init__(server)
        self._had_by_all: Mask = {}

    def _weights(self) -> HolderWeights:
        return dict.fromkeys(self._equal_masks.mean, self._equal_masks.total)

    def _join_equal_masks(self) -> None:
        super()._join_equal_masks()
        self._had_by_all = {name: alive & self._had_by_all.get(name, alive) for name, alive in self._mask.items()}

    def result(self) -> Params:
        self._join_equal_masks()
        return settled(self._mean, {**self._holder_weights, **self._had_by_all}, self._server)


class _MeanWithZeros:
    def __init__(self, server: Params) -> None:
        self._server, self._mean = server, _RunningMean()

    def add(self, subnet: Subnet, weight: float) -> None:
        self._mean.add(subnet.params, weight)  # dead entries of a Subnet are zeros

    def result(self) -> Params:
        return settled(self._mean.mean, dict.fromkeys(self._mean.mean, self._mean.total), self._server)


def settled(mean: Params, holders: HolderWeights, server: Params, uncovered: str = "keep") -> Params:
    """Return `mean` in the server's types. Entries without holders go by the rule of `uncovered`. holders: their weight or
    number."""
    otherwise = {name: server[name] if uncovered == "keep" else torch.zeros_like(server[name]) for name in mean}
    return server | {name: _where_anybody_has(value, holders[name], otherwise[name]) for name, value in mean.items()}


def check_uncovered(rule: str) -> None:
    """Raise ConfigError unless it is one of the rules."""
    if rule not in ("keep", "zero"):
        raise ConfigError([f"federated.aggregate.uncovered={rule}: choose one of keep, zero"])


def _weight_of_holders(alive: Tensor | None, weight: float) -> Tensor | float:
    """Return the weight of the clients that have an entry, by entry if something is dead."""
    return weight if alive is None or isinstance(places(alive), slice) else weight * alive


@functools.lru_cache(maxsize=8)
def _bits(*mask: Tensor) -> bytes:
    """Return a mask by its content, whichever object it is; remembered, since most updates share one."""
    return pack({str(number): alive for number, alive in enumerate(mask)})


def _join(mean: Params, holders: HolderWeights, more: Params, weight: HolderWeights) -> tuple[Params, HolderWeights]:
    """Return two means as one, and how much weight stands behind its entries."""
    if not mean:
        return more, weight
    both = {name: holders[name] + weight[name] for name in more}
    share = {name: _share(weight[name], both[name]) for name in more}
    return {name: mean[name] + (more[name] - mean[name]) * share[name] for name in more}, both


def _share(weight: Tensor | float, both: Tensor | float) -> Tensor | float:
    return torch.where(both > 0, weight / both, 0.0) if isinstance(both, Tensor) else weight / both


def _where_anybody_has(mean: Tensor, holders: Tensor | float, server: Tensor) -> Tensor:
    value = torch.where(holders > 0, mean, server) if isinstance(holders, Tensor) else mean
    return value.to(server.dtype) if is_number(server) else value.round().to(server.dtype)
