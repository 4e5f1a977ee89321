"""Controls: what a client knows of how its own gradients differ from everybody's, so that its steps do not drift apart.

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

KEY = "c"
"""Under which a job carries c, and an update the change of c_k."""

PREFIX = "control:"  # of c_k in what a client keeps


@dataclass(frozen=True)
class Controls:
    """c and c_k of a client in a round, for the same parameters; without any, nothing is corrected."""

    everybodys: Params = field(default_factory=dict)
    own: Params = field(default_factory=dict)

    def correction(self) -> Params:
        """c - c_k."""
        return {name: c - self.own[name] for name, c in self.everybodys.items()}

    def answer(self, sent: Params, trained: Params, reach: Mapping[str, float]) -> tuple[Mapping[str, Params], Params]:
        """(what the update carries, what the client keeps); neither of them if there is nothing to correct."""
        if not self.everybodys:
            return {}, {}
        new = renewed(self.everybodys, self.own, sent, trained, reach)
        return {KEY: {n: new[n] - c for n, c in self.own.items()}}, {f"{PREFIX}{n}": c for n, c in new.items()}


def received(job: Job) -> Controls:
    """The controls of a job: c that it carries, c_k that the client kept; both of the living alone."""
    everybodys = job.carried.get(KEY, {})
    kept = {name: job.kept.get(f"{PREFIX}{name}", torch.zeros_like(c)) for name, c in everybodys.items()}
    return Controls(dict(everybodys), apply(kept, job.subnet.mask))


def renewed(everybodys: Params, own: Params, sent: Params, trained: Params, reach: Mapping[str, float]) -> Params:
    """c_k - c + (w - y_k) / reach; c_k where nothing was trained."""
    moved = {
        name: (wide(own[name]) - wide(everybodys[name]) + (wide(sent[name]) - wide(trained[name])) / r).to(own[name].dtype)
        for name, r in reach.items()
        if r and name in own
    }
    return {**own, **moved}


def reach(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, float]:
    """How far a gradient of one at each of `steps` steps would have moved the parameters that are trained, by name.

    Raises Incompatible for an optimizer of which that cannot be said.
    """
    refuse(optimizer)
    lengths = {
        p: group["lr"] * effective(steps, group["momentum"]) for group in optimizer.param_groups for p in group["params"]
    }
    return {name: lengths[p] for name, p in net.named_parameters() if p.requires_grad and p in lengths}


def effective(steps: int, beta: float) -> float:
    """How many steps without momentum go as far as these with it: sum over t of (1 - beta^(steps-t+1)) / (1 - beta)."""
    return (steps - beta * (1 - beta**steps) / (1 - beta)) / (1 - beta)


def refuse(optimizer: torch.optim.Optimizer, kept: bool = False) -> None:
    """Raises Incompatible unless this is SGD whose steps are sums of gradients. kept: whether it goes on in the next round."""
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
