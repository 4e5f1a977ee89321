"""What all clients have alike stays as it is, bit for bit, in every aggregate, also where arithmetic would change it.

The mean of equal floating numbers is that number, except where they are infinite or no numbers at all (inf - inf is nan): the
-inf of a causal mask. Whole numbers are averaged in float64, which is exact up to 2^53 alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from fedprune.precision import finite, is_number
from fedprune.types import Mask, Params, Subnet

Updates = Iterable[tuple[Subnet, float]]
"""What clients send back, each with its weight (federated.weighting: its number of examples, or 1)."""

P = ParamSpec("P")
Merges = Callable[Concatenate[Params, Updates, P], Params]


def keeps_alike(aggregate: Merges[P]) -> Merges[P]:
    """Return the same aggregate, after which entries that arithmetic would change are what all clients sent, if they agree."""

    @functools.wraps(aggregate)
    def merged(server: Params, updates: Updates, *args: P.args, **kwargs: P.kwargs) -> Params:
        alike = Alike()
        found = aggregate(server, alike.watched(updates), *args, **kwargs)
        return alike.restored(found)

    return merged


class Alike:
    """The tensors of the first update that are fragile, and which of their entries all updates since then had, too."""

    def __init__(self) -> None:
        self._first: Params = {}
        self._same: Mask = {}

    def watched(self, updates: Updates) -> Iterator[tuple[Subnet, float]]:
        """Pass the updates on, and compare them while they stream by. No update but the first is remembered."""
        for number, (subnet, weight) in enumerate(updates):
            if number == 0:
                self._first = {name: value for name, value in subnet.params.items() if fragile(value)}
                self._same = {name: _held_everywhere(subnet, name) for name in self._first}
            else:
                for name, first in self._first.items():
                    self._same[name] &= _equal(first, subnet.params[name]) & _held_everywhere(subnet, name)
            yield subnet, weight

    def restored(self, merged: Params) -> Params:
        """Return what the updates were merged to, with the entries in which all agree as they came."""
        firsts = {name: first.to(merged[name].dtype) for name, first in self._first.items()}
        return merged | {name: torch.where(self._same[name], first, merged[name]) for name, first in firsts.items()}


def fragile(value: Tensor) -> bool:
    """Return whether a mean of equal tensors may differ from them: of whole numbers, or where not all are finite."""
    return not (is_number(value) and finite(value))


def _held_everywhere(subnet: Subnet, name: str) -> Tensor:
    """Return the mask of a tensor; of one that no mask covers, all of it."""
    if name in subnet.mask:
        return subnet.mask[name].clone()
    return torch.ones(subnet.params[name].shape, dtype=torch.bool)


def _equal(one: Tensor, other: Tensor) -> Tensor:
    """Return which entries are the same; nan is the same as nan."""
    return (one == other) | ((one != one) & (other != other))
