"""How the updates of a round become one network: means. What withstands clients that send anything is in robust.py.

Every option is an `Aggregate`, and pure; a server optimizer (optimizer.py) then makes a step of what it returns. Names that
no mask has (biases, BatchNorm's scales and statistics, counters) are held by everybody, and go by the same rule. Means of half
precision are taken in float32 and rounded once, those of whole numbers in float64 and rounded to the nearest; what all clients
have alike stays as it is, bit for bit (unanimous.py). Without updates the server's network stays.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.federated.server.unanimous import Updates, keeps_alike
from fedprune.precision import is_number, wide
from fedprune.pruning.mask import pack, places
from fedprune.types import Mask, Params, Subnet

Aggregate = Callable[[Params, Updates], Params]
"""(server, updates) -> one network, of the server's names and types."""


@dataclass(frozen=True)
class OverlapMean:
    """`overlap_mean`, under a rule for what nobody holds: `keep` is the server's value, `zero` is 0."""

    uncovered: str = "keep"

    def __post_init__(self) -> None:
        check_uncovered(self.uncovered)

    def __call__(self, server: Params, updates: Updates) -> Params:
        return overlap_mean(server, updates, self.uncovered)


@keeps_alike
def overlap_mean(server: Params, updates: Updates, uncovered: str = "keep") -> Params:
    """Each entry is the weighted mean over the clients whose mask holds it, sum_k a_k m_k w_k / sum_k a_k m_k.

    Where nobody holds it, the server's value stays, or, with `uncovered` zero, it is 0. With equal masks this is FedAvg
    (McMahan et al. 2017). Updates are taken up one by one, in the given order, into a running mean: memory does not grow with
    the cohort, and networks that are equal average to themselves, bit for bit. Clients in a row that share one mask are taken
    up together.
    """
    mean: Params = {}
    cover: dict[str, Tensor | float] = {}  # the weight of those who hold an entry
    for mask, params, weight in _alike(updates):
        mean, cover = _join(mean, cover, params, {name: _held(mask.get(name), weight) for name in params})
    return settled(mean, cover, server, uncovered)


@keeps_alike
def mean_with_zeros(server: Params, updates: Updates) -> Params:
    """The mean over all clients, whoever holds an entry: sum_k a_k m_k w_k / sum_k a_k. A dead entry counts as a zero.

    Plain FedAvg of sparse networks, as in ZeroFL (Qiu et al. 2022): it draws what few hold towards zero. What nobody holds
    becomes 0. A running mean: memory does not grow with the cohort.
    """
    _, mean, total = _running_mean(updates)  # dead entries of a Subnet are zeros
    return settled(mean, dict.fromkeys(mean, total), server)


@keeps_alike
def intersection(server: Params, updates: Updates) -> Params:
    """The weighted mean of the entries that every client holds; every other entry keeps the server's value.

    Hermes (Li et al. 2021, MobiCom), its server's part. Running means: memory does not grow with the cohort.
    """
    mean: Params = {}
    total: Mapping[str, Tensor | float] = {}
    common: Mask = {}
    for mask, params, weight in _alike(updates):
        mean, total = _join(mean, total, params, dict.fromkeys(params, weight))
        common = {name: alive & common.get(name, alive) for name, alive in mask.items()}
    return settled(mean, {**total, **common}, server)


def settled(mean: Params, cover: Mapping[str, Tensor | float], server: Params, uncovered: str = "keep") -> Params:
    """`mean` in the server's types, and by the rule of `uncovered` where `cover` is not above zero."""
    otherwise = {name: server[name] if uncovered == "keep" else torch.zeros_like(server[name]) for name in mean}
    return server | {name: _where_held(value, cover[name], otherwise[name]) for name, value in mean.items()}


def check_uncovered(rule: str) -> None:
    """Raises ConfigError unless it is one of the rules."""
    if rule not in ("keep", "zero"):
        raise ConfigError([f"federated.aggregate.uncovered={rule}: choose one of keep, zero"])


def _held(alive: Tensor | None, weight: float) -> Tensor | float:
    """The weight of those who hold an entry, by entry if not all are held."""
    return weight if alive is None or isinstance(places(alive), slice) else weight * alive


def _alike(updates: Updates) -> Iterator[tuple[Mask, Params, float]]:
    """(mask, mean, total weight) of clients in a row that share one mask."""
    return (_running_mean(alike) for _, alike in itertools.groupby(updates, key=_mask_of))


def _mask_of(update: tuple[Subnet, float]) -> bytes:
    return _bits(*update[0].mask.values())


@functools.lru_cache(maxsize=8)
def _bits(*mask: Tensor) -> bytes:
    """A mask by its content, so that it does not matter which object it is; remembered, since most updates share one."""
    return pack(dict(enumerate(mask)))  # type: ignore[arg-type]


def _running_mean(updates: Iterable[tuple[Subnet, float]]) -> tuple[Mask, Params, float]:
    """(mask, mean, total weight) of networks that share one mask."""
    mean, total, mask = Params(), 0.0, Mask()
    for subnet, weight in updates:
        total, mask = total + weight, subnet.mask
        values = {name: wide(value) if is_number(value) else value.double() for name, value in subnet.params.items()}
        if not mean:
            mean = {name: value.clone() for name, value in values.items()}
            continue
        for name, value in values.items():
            mean[name].lerp_(value, weight / total)
    return mask, mean, total


def _join(mean: Params, cover: Mapping, more: Params, weight: Mapping) -> tuple[Params, dict[str, Tensor | float]]:
    """Two means as one; `cover` and `weight` say, by entry or for a whole tensor, how much stands behind them."""
    if not mean:
        return more, dict(weight)
    both = {name: cover[name] + weight[name] for name in more}
    part = {name: _share(weight[name], both[name]) for name in more}
    return {name: mean[name] + (more[name] - mean[name]) * part[name] for name in more}, both


def _share(weight: Tensor | float, both: Tensor | float) -> Tensor | float:
    return torch.where(both > 0, weight / both, 0.0) if isinstance(both, Tensor) else weight / both


def _where_held(mean: Tensor, cover: Tensor | float, server: Tensor) -> Tensor:
    held = torch.where(cover > 0, mean, server) if isinstance(cover, Tensor) else mean
    return held.to(server.dtype) if is_number(server) else held.round().to(server.dtype)
