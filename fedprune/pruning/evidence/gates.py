"""Companions: parameters beside a prunable weight, of its shape, which training learns for each entry.

    fc1.weight_log_alpha     how open the weight's hard concrete gate is (local/penalty=l0)
    fc1.weight_log_sigma2    the log variance of the weight (local/dropout=variational)
    fc1.weight_score         the log odds that the weight is there (federated/client=sampled_masks)

Companions are parameters like any other: trained (under weight_decay too, if there is any), merged, sent, rewound, saved. They
are never pruned, and a forward pass does not read them: only training does, see regularisers/base.py. Evaluation, evidence and
tickets are about the network that is in use, which `fold` computes. Companions of dead entries travel and are saved with the
others, since an entry may grow again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from fedprune.pruning.evidence.hard_concrete import expected
from fedprune.pruning.evidence.network import Network
from fedprune.tensors import tensors_of
from fedprune.types import Params

CHOOSE = {
    "log_alpha": "local/penalty=l0",
    "log_sigma2": "local/dropout=variational",
    "score": "federated/client=sampled_masks",
}
"""Every kind of companion, and the option that trains it."""


class Companion(NamedTuple):
    """A kind of companion, and the mean and standard deviation of the values that it starts from."""

    kind: str
    mean: float
    deviation: float = 0.0


def companion(name: str, kind: str) -> str:
    """Return the name of a tensor's companion."""
    return f"{name}_{kind}"


def is_companion(name: str) -> bool:
    """Return whether a parameter of this name is a companion."""
    return companion_of(name) is not None


def companion_of(name: str) -> str | None:
    """Return the kind of the companion of this name; None if it is no companion."""
    return next((kind for kind in CHOOSE if name.rpartition(".")[2] == f"weight_{kind}"), None)


def add(net: nn.Module, names: Iterable[str], kind: Companion, generator: torch.Generator) -> None:
    """Give the named tensors companions of a kind, each entry drawn independently."""
    for name in names:
        layer, _, weight_name = name.rpartition(".")
        weight = net.get_parameter(name)
        values = kind.mean + kind.deviation * torch.randn(weight.shape, generator=generator)
        net.get_submodule(layer).register_parameter(companion(weight_name, kind.kind), nn.Parameter(values.to(weight.dtype)))


def fold(params: Params) -> Params:
    """Return the network that is in use: every weight with a gate times the gate's value without noise. Fold only once."""
    gates = {name: companion(name, "log_alpha") for name in params if companion(name, "log_alpha") in params}
    if not gates:
        return params
    return params | {name: params[name] * expected(params[gate]) for name, gate in gates.items()}


def plain(params: Params) -> Params:
    """Return the network that is in use, without companions."""
    return {name: tensor for name, tensor in fold(params).items() if not is_companion(name)}


def log_alpha(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """Return log alpha of each weight's gate: the larger, the more open."""
    return {name: params[companion(name, "log_alpha")] for name in names}


def log_sigma2(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """Return the log variance of each weight."""
    return {name: params[companion(name, "log_sigma2")] for name in names}


def no_gates(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why there is no `log_alpha`, or None."""
    return _missing(network, names, "log_alpha", "weights have no gates")


def no_variance(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why there is no `log_sigma2`, or None."""
    return _missing(network, names, "log_sigma2", "weights have no variance")


def gated(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why weights with gates cannot be moved, or None: steps are measured of weights times their gates."""
    tensors = tensors_of(network.net)
    if not any(companion(name, "log_alpha") in tensors for name in names):
        return None
    return "how far survivors move is of weights times their gates: choose criterion=woodfisher_scores or local/penalty=none"


def _missing(network: Network, names: tuple[str, ...], kind: str, what: str) -> str | None:
    tensors = tensors_of(network.net)
    if all(companion(name, kind) in tensors for name in names):
        return None
    return f"{what} of their own: choose {CHOOSE[kind]}"
