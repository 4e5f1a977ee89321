"""The server of FedPM: the mode of a Beta posterior over each weight's probability. An `Aggregate`, see accumulator.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.federated.server.accumulator import Accumulator, Aggregate
from fedprune.types import Params, Subnet


@dataclass(frozen=True)
class BetaMode(Aggregate):
    """theta = (alpha - 1) / (alpha + beta - 2), alpha = prior + sum_k m_k, beta = prior + K - sum_k m_k. Isik et al. 2023.

    m_k are the K clients' samples, 0 or 1; what comes out are scores, the log odds of theta. The prior is the same in every
    round, so nothing is left of earlier ones but what clients began from; with a prior of 1 theta is the mean of the samples.
    clip: theta is kept this far from 0 and 1, where a score would be infinite and never move again. Each client counts once.
    """

    prior: float = 1.0
    clip: float = 0.01
    takes = "bits"

    def __post_init__(self) -> None:
        problems = []
        if not self.prior >= 1:
            problems.append(f"federated.aggregate.prior={self.prior}: a Beta distribution has its mode inside from 1 on")
        if not 0 < self.clip < 0.5:
            problems.append(f"federated.aggregate.clip={self.clip} keeps theta from 0 and 1: more than 0, less than 0.5")
        if problems:
            raise ConfigError(problems)

    def __call__(self, server: Params) -> Accumulator:
        return _BetaMode(server, self.prior, self.clip)

    def problems(self, sends: str) -> list[str]:
        if sends == "bits":
            return []
        return ["federated/aggregate=beta_mode counts bits, and clients send weights: choose federated/client=sampled_masks"]


class _BetaMode:
    """Counts the clients that have each entry."""

    def __init__(self, server: Params, prior: float, clip: float) -> None:
        self._server, self._prior, self._clip = server, prior, clip
        self._counts: Params = {}
        self._clients = 0

    def add(self, subnet: Subnet, weight: float) -> None:
        self._clients += 1
        self._counts = {name: self._counts.get(name, 0) + bits.double() for name, bits in subnet.params.items()}

    def result(self) -> Params:
        return self._server | {name: self._score(count).to(self._server[name]) for name, count in self._counts.items()}

    def _score(self, count: Tensor) -> Tensor:
        """Return the log odds of the mode. count: how many of the clients have an entry."""
        alpha, beta = self._prior + count, self._prior + self._clients - count
        return torch.logit((alpha - 1) / (alpha + beta - 2), eps=self._clip)
