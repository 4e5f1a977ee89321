"""How updates become the server's next network.

`overlap_mean` serves almost everybody; a server optimizer then turns the mean into a step. Both are pure.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.pruning.mask import pack
from fedprune.types import Mask, Params, Subnet

Momentum = Mapping[str, Params]
ServerStep = Callable[[Params, Params, Momentum, tuple[str, ...]], tuple[Params, Momentum]]
"""(server, mean of the updates, momentum, names of the parameters) -> (new server, new momentum). Buffers take the mean."""


def overlap_mean(server: Params, updates: Iterable[tuple[Subnet, float]]) -> Params:
    """Each entry is the weighted mean over the clients whose mask holds it; where nobody holds it, the server's value stays.

    With equal masks this is FedAvg (McMahan et al. 2017). Updates are taken up one by one, in the given order, into a running
    mean: memory does not grow with the cohort, and networks that are equal average to themselves, bit for bit. Clients in a row
    that share one mask are taken up together. Whole numbers (counters) are rounded to the nearest.
    """
    mean: Params = {}
    cover: dict[str, Tensor | float] = {}  # the weight of those who hold an entry
    for _, alike in itertools.groupby(updates, key=_mask_of):
        mask, params, weight = _running_mean(alike)
        mean, cover = _join(mean, cover, params, {name: weight * mask[name] if name in mask else weight for name in params})
    return server | {name: _where_held(mean[name], cover[name], server[name]) for name in mean}


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
        values = {name: value if value.is_floating_point() else value.double() for name, value in subnet.params.items()}
        mean = {name: mean[name].lerp(value, weight / total) if mean else value for name, value in values.items()}
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
    return held.to(server.dtype) if server.is_floating_point() else held.round().to(server.dtype)


@dataclass(frozen=True)
class Average:
    """The server takes the mean as it is: FedAvg."""

    def __call__(self, server: Params, mean: Params, momentum: Momentum, trained: tuple[str, ...]) -> tuple[Params, Momentum]:
        return mean, momentum


@dataclass(frozen=True)
class FedAvgM:
    """Server momentum: v <- beta v + (w - mean); w <- w - lr v. Hsu, Qi & Brown 2019."""

    lr: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        _check_lr(self.lr)

    def __call__(self, server: Params, mean: Params, momentum: Momentum, trained: tuple[str, ...]) -> tuple[Params, Momentum]:
        old = momentum.get("v", {})
        v = {name: self.beta * old.get(name, 0.0) + (server[name] - mean[name]) for name in trained}
        return mean | {name: server[name] - self.lr * v[name] for name in trained}, {"v": v}


@dataclass(frozen=True)
class FedAdam:
    """delta = mean - w; m <- beta1 m + (1 - beta1) delta; v <- beta2 v + (1 - beta2) delta^2; w <- w + lr m / (sqrt v + tau).

    Reddi et al. 2021, algorithm 2; like it, without bias correction, and v starts from tau^2.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_lr(self.lr)

    def __call__(self, server: Params, mean: Params, momentum: Momentum, trained: tuple[str, ...]) -> tuple[Params, Momentum]:
        first, second = momentum.get("m", {}), momentum.get("v", {})
        delta = {name: mean[name] - server[name] for name in trained}
        m = {name: self.beta1 * first.get(name, 0.0) + (1 - self.beta1) * delta[name] for name in trained}
        # Zero is no value that v can reach: it is an entry that was dead, and starts afresh.
        old = {name: torch.where(second[name] == 0, self.tau**2, second[name]) for name in second}
        v = {name: self.beta2 * old.get(name, self.tau**2) + (1 - self.beta2) * delta[name].square() for name in trained}
        step = {name: self.lr * m[name] / (v[name].sqrt() + self.tau) for name in trained}
        return mean | {name: server[name] + step[name] for name in trained}, {"m": m, "v": v}


def masked(momentum: Momentum, mask: Mask) -> Momentum:
    """Momentum of dead entries is forgotten: a weight that is grown again starts afresh."""
    return {key: {name: t * mask[name] if name in mask else t for name, t in part.items()} for key, part in momentum.items()}


def _check_lr(lr: float) -> None:
    if not lr > 0:
        raise ConfigError([f"federated.server.lr={lr} must be positive"])
