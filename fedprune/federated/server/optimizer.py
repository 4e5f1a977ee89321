"""Server optimizers: they make the server's next network of the aggregate of a round.

Every option is a `ServerStep`: pure, what it remembers is passed in and returned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.precision import wide
from fedprune.types import Mask, Params, ServerState

Momentum = Mapping[str, Params]
Fresh = Mapping[str, float]
"""The values that momentum starts from, by its kind; 0 for a kind that is not named."""


class ServerStep(ABC):
    """The base of all options: (server, aggregate, momentum, names of the parameters that are trained) -> (new server, new
    momentum).

    What is not trained (buffers, frozen layers, whole numbers) takes the aggregate. Steps of half precision parameters are
    worked out in float32, in which their momentum stays, and rounded once. moves: whether the new server is anything else than
    the aggregate.
    """

    moves: bool = True

    @property
    def fresh(self) -> Fresh:
        """The values that momentum starts from, where they are not 0."""
        return {}

    @abstractmethod
    def __call__(
        self, server: Params, mean: Params, momentum: Momentum, trainable: tuple[str, ...]
    ) -> tuple[Params, Momentum]: ...


@dataclass(frozen=True)
class Average(ServerStep):
    """The server takes the aggregate as it is: FedAvg."""

    moves = False

    def __call__(self, server: Params, mean: Params, momentum: Momentum, trainable: tuple[str, ...]) -> tuple[Params, Momentum]:
        return mean, momentum


@dataclass(frozen=True)
class FedAvgM(ServerStep):
    """Server momentum: v <- beta v + (w - mean); w <- w - lr v. Hsu, Qi & Brown 2019."""

    lr: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        _check(lr=self.lr, beta=self.beta)

    def __call__(self, server: Params, mean: Params, momentum: Momentum, trainable: tuple[str, ...]) -> tuple[Params, Momentum]:
        old, now = momentum.get("v", {}), {name: wide(server[name]) for name in trainable}
        v = {name: self.beta * old.get(name, 0.0) + (now[name] - wide(mean[name])) for name in trainable}
        return mean | {name: (now[name] - self.lr * v[name]).to(server[name].dtype) for name in trainable}, {"v": v}


@dataclass(frozen=True)
class FedAdam(ServerStep):
    """delta = mean - w; m <- beta1 m + (1 - beta1) delta; v <- beta2 v + (1 - beta2) delta^2; w <- w + lr m / (sqrt v + tau).

    Reddi et al. 2021, algorithm 2; like it, without bias correction, and v starts from tau^2.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(lr=self.lr, beta1=self.beta1, beta2=self.beta2, tau=self.tau)

    @property
    def fresh(self) -> Fresh:
        return {"v": self.tau**2}

    def __call__(self, server: Params, mean: Params, momentum: Momentum, trainable: tuple[str, ...]) -> tuple[Params, Momentum]:
        first, second = momentum.get("m", {}), momentum.get("v", {})
        now = {name: wide(server[name]) for name in trainable}
        delta = {name: _reals(wide(mean[name]) - now[name]) for name in trainable}
        m = {name: self.beta1 * first.get(name, 0.0) + (1 - self.beta1) * delta[name] for name in trainable}
        v = {name: self.beta2 * second.get(name, self.tau**2) + (1 - self.beta2) * delta[name].square() for name in trainable}
        step = {name: self.lr * m[name] / (v[name].sqrt() + self.tau) for name in trainable}
        return mean | {name: _moved(now[name], step[name]).to(server[name].dtype) for name in trainable}, {"m": m, "v": v}


def _reals(tensor: Tensor) -> Tensor:
    """Return a complex tensor [...] as its real and imaginary parts [..., 2], as torch's Adam takes it; others themselves."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _moved(tensor: Tensor, step: Tensor) -> Tensor:
    """Return tensor + step, the step being as `_reals` gives it."""
    return tensor + (torch.view_as_complex(step) if tensor.is_complex() else step)


def masked(momentum: Momentum, mask: Mask, fresh: Fresh = MappingProxyType({})) -> Momentum:
    """Return momentum that has forgotten dead entries: a weight that is grown again starts from what is `fresh`."""
    return {
        key: {name: _under(mask[name], t, fresh.get(key, 0.0)) if name in mask else t for name, t in part.items()}
        for key, part in momentum.items()
    }


def state_under(mask: Mask, state: ServerState, fresh: Fresh) -> ServerState:
    """Return what the server keeps, without what it knew of dead entries."""
    control = {name: _under(mask[name], c, 0.0) if name in mask else c for name, c in state.control.items()}
    return replace(state, momentum=masked(state.momentum, mask, fresh), control=control)


def _under(alive: Tensor, momentum: Tensor, fresh: float) -> Tensor:
    """Return the momentum of living entries, `fresh` elsewhere; that of a complex tensor has a dimension more."""
    there = alive if momentum.dim() == alive.dim() else alive[..., None]
    return torch.where(there, momentum, fresh) if fresh else momentum * there


def _check(**values: float) -> None:
    """Raise ConfigError for a step or a share that is none."""
    positive = [f"federated.server.{key}={values[key]} must be positive" for key in ("lr", "tau") if not values.get(key, 1) > 0]
    shares = {key: value for key, value in values.items() if key.startswith("beta") and not 0 <= value <= 1}
    problems = positive + [
        f"federated.server.{key}={value} is the share of the old mean that is kept: from 0 to 1"
        for key, value in shares.items()
    ]
    if problems:
        raise ConfigError(problems)
