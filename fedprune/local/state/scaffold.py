"""SCAFFOLD's controls: how a client's gradients differ from everybody's, so that its steps do not drift apart.

SCAFFOLD, Karimireddy et al. 2020, algorithm 1. Client k keeps c_k, about its mean gradient; the server sends c, the mean of all
clients' c_k. At every local step c - c_k is added to the gradient, and after K steps at the rate lr, from w to y_k (option II):

    c_k+ = c_k - c + (w - y_k) / (K lr)

The change c_k+ - c_k travels back, and c_k+ stays with the client. Without having trained, c_k is zero. What is divided by is
the `reach`: K lr for plain SGD; with momentum beta the gradient of step t also acts in those that follow, and K becomes
sum_t (1 - beta^(K-t+1)) / (1 - beta) (Wang et al. 2020, FedNova), so that c_k+ is a mean of gradients again. Weight decay and
a proximal term count as gradient. Controls of dead entries are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fedprune.errors import Incompatible
from fedprune.precision import wide
from fedprune.pruning.mask import apply
from fedprune.types import Job, Params


@dataclass(frozen=True)
class Controls:
    """c (of all clients) and c_k (of this client) in a round, for the same parameters; without any, nothing is corrected."""

    c: Params = field(default_factory=dict)
    c_k: Params = field(default_factory=dict)

    def correction(self) -> Params:
        """Return c - c_k."""
        return {name: c - self.c_k[name] for name, c in self.c.items()}

    def change_and_next(self, sent: Params, trained: Params, reach: Mapping[str, float]) -> tuple[Params, Params]:
        """Return (c_k+ - c_k, which travels; c_k+, which the client keeps)."""
        new = renewed(self, sent, trained, reach)
        return {name: new[name] - c_k for name, c_k in self.c_k.items()}, new


def received(job: Job) -> Controls:
    """Return the controls of a job: c that was sent, c_k that the client kept; zero where the mask is dead."""
    c_k = {name: job.kept.control.get(name, torch.zeros_like(c)) for name, c in job.control.items()}
    return Controls(job.control, apply(c_k, job.subnet.mask))


def renewed(controls: Controls, sent: Params, trained: Params, reach: Mapping[str, float]) -> Params:
    """Return c_k+ = c_k - c + (w - y_k) / reach; c_k where nothing was trained. sent: w. trained: y_k."""
    new = dict(controls.c_k)
    for name, c_k in controls.c_k.items():
        if far := reach.get(name):
            moved = (wide(sent[name]) - wide(trained[name])) / far
            new[name] = (wide(c_k) - wide(controls.c[name]) + moved).to(c_k.dtype)
    return new


def reach(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, float]:
    """Return how far a gradient of one at each of `steps` steps would have moved the parameters that are trained, by name.

    Raises Incompatible for an optimizer of which that cannot be said.
    """
    refuse(optimizer)
    lengths = {
        p: group["lr"] * effective(steps, group["momentum"]) for group in optimizer.param_groups for p in group["params"]
    }
    return {name: lengths[p] for name, p in net.named_parameters() if p.requires_grad and p in lengths}


def effective(steps: int, beta: float) -> float:
    """Return the number of steps without momentum that go as far: sum over t of (1 - beta^(steps-t+1)) / (1 - beta)."""
    return (steps - beta * (1 - beta**steps) / (1 - beta)) / (1 - beta)


def refuse(optimizer: torch.optim.Optimizer, kept: bool = False) -> None:
    """Raise Incompatible unless this is SGD whose steps are sums of gradients. kept: whether its state is kept for the next
    round."""
    plain = "the controls of federated.control=scaffold are worked out from the steps of SGD: "
    if type(optimizer) is not torch.optim.SGD:
        raise Incompatible(f"{plain}{type(optimizer).__name__} takes others; choose local/optimizer=sgd or federated=fedavg")
    for group in optimizer.param_groups:
        odd = [key for key in ("nesterov", "dampening", "maximize") if group[key]]
        if odd:
            raise Incompatible(f"{plain}set local.optimizer.{odd[0]}={'0' if odd[0] == 'dampening' else 'false'}")
        if not 0 <= group["momentum"] < 1:
            raise Incompatible(f"{plain}local.optimizer.momentum={group['momentum']} has to be at least 0 and less than 1")
        if kept and group["momentum"]:
            raise Incompatible(
                f"{plain}a momentum that is kept brings in gradients of rounds before; choose federated.optimizer_state=fresh "
                "or local.optimizer.momentum=0"
            )
