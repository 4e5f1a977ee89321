"""The policies of BatchNorm: `average | local | frozen`. A policy is explicit, because it changes the result.

average: scale, shift and running statistics are merged like weights.
local: they never leave the client (FedBN, Li et al. 2021). The server's copy is their mean, for reporting only; it is
never sent.
frozen: layers normalise with the statistics of the start, in training too; scale and shift are trained and merged.
"""

from __future__ import annotations

from torch import nn

from fedprune.errors import ConfigError, Incompatible
from fedprune.local.train import is_batchnorm
from fedprune.tensors import tensors_of

POLICIES = ("average", "local", "frozen")


def private_names(net: nn.Module, policy: str) -> tuple[str, ...]:
    """The tensors that clients keep to themselves under this policy. Raises ConfigError, or Incompatible if it has none."""
    if policy not in POLICIES:
        raise ConfigError([f"federated.batchnorm={policy}: choose one of {', '.join(POLICIES)}"])
    layers = [name for name, module in net.named_modules() if is_batchnorm(module)]
    if policy != "average" and not layers:
        raise Incompatible(f"federated.batchnorm={policy}: the network has no BatchNorm; choose federated.batchnorm=average")
    if policy != "local":
        return ()
    return tuple(name for name in tensors_of(net) if name.rpartition(".")[0] in layers)
