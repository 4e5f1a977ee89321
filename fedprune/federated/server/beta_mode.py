"""The server of FedPM: the mode of a Beta posterior over each weight's probability. An `Aggregate`, see aggregate.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedprune.errors import ConfigError
from fedprune.federated.server.unanimous import Updates
from fedprune.types import Params


@dataclass(frozen=True)
class BetaMode:
    """theta = (alpha - 1) / (alpha + beta - 2), alpha = prior + sum_k m_k, beta = prior + K - sum_k m_k. Isik et al. 2023.

    m_k are the K clients' samples, 0 or 1; what comes out are scores, the log odds of theta. The prior is the same in every
    round, so nothing is left of earlier ones but what clients began from; with a prior of 1 theta is the mean of the samples.
    clip: theta is kept this far from 0 and 1, where a score would be infinite and never move again. Each client counts once.
    """

    prior: float = 1.0
    clip: float = 0.01

    def __post_init__(self) -> None:
        problems = []
        if not self.prior >= 1:
            problems.append(f"federated.aggregate.prior={self.prior}: a Beta distribution has its mode inside from 1 on")
        if not 0 < self.clip < 0.5:
            problems.append(f"federated.aggregate.clip={self.clip} keeps theta from 0 and 1: more than 0, less than 0.5")
        if problems:
            raise ConfigError(problems)

    def __call__(self, server: Params, updates: Updates) -> Params:
        there, clients = Params(), 0
        for subnet, _ in updates:
            clients += 1
            there = {name: there.get(name, 0) + bits.double() for name, bits in subnet.params.items()}
        return server | {name: self._score(total, clients).to(server[name]) for name, total in there.items()}

    def _score(self, there: torch.Tensor, clients: int) -> torch.Tensor:
        """The log odds of the mode, of how many of the clients have an entry."""
        alpha, beta = self.prior + there, self.prior + clients - there
        return torch.logit((alpha - 1) / (alpha + beta - 2), eps=self.clip)
