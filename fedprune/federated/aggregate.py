"""How updates become the server's next network.

`overlap_mean` serves almost everybody; a server optimizer then turns the mean into a step. Both are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.types import Mask, Params, Subnet

Momentum = Mapping[str, Params]
ServerStep = Callable[[Params, Params, Momentum, tuple[str, ...]], tuple[Params, Momentum]]
"""(server, mean of the updates, momentum, names of the parameters) -> (new server, new momentum). Buffers take the mean."""


def overlap_mean(server: Params, updates: Iterable[tuple[Subnet, float]]) -> Params:
    """Each entry is the weighted mean over the clients whose mask holds it; where nobody holds it, the server's value stays.

    With equal masks this is FedAvg (McMahan et al. 2017). Updates are taken up one by one, in the given order, so that memory
    does not grow with the cohort. Whole numbers (counters) are rounded to the nearest.
    """
    total: Params = {}
    cover: Params = {}  # by entry, the weight of those who hold it
    held, weight, everybody = Mask(), 0.0, 0.0
    for subnet, share in updates:
        _add(total, subnet.params, share)
        if subnet.mask is not held:  # clients in a row often share one mask: it is counted once for all of them
            _add(cover, held, weight)
            held, weight = subnet.mask, 0.0
        weight, everybody = weight + share, everybody + share
    _add(cover, held, weight)
    return server | {name: _divide(total[name], cover.get(name, everybody), server[name]) for name in total}


def _add(total: Params, params: Params, share: float) -> None:
    """total += share * params, in place: the totals are our own."""
    for name, value in params.items():
        number = value if value.is_floating_point() else value.double()
        total[name] = total[name].add_(number, alpha=share) if name in total else number * share


def _divide(total: Tensor, weight: Tensor | float, server: Tensor) -> Tensor:
    """The mean over those who hold an entry; the server's value where nobody does. In the server's type of number."""
    mean = total / weight
    if isinstance(weight, Tensor):
        mean = torch.where(weight > 0, mean, server)
    return mean.to(server.dtype) if server.is_floating_point() else mean.round().to(server.dtype)


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
