"""Companions: what training learns about each entry of a prunable weight, as a parameter beside it, of its shape.

    fc1.weight_log_alpha     how open the weight's hard concrete gate is (local/penalty=l0)
    fc1.weight_log_sigma2    the log variance of the weight (local/dropout=variational)
    fc1.weight_score         the log odds that the weight is there (federated/client=sampled_masks)

Companions are parameters like any other: trained (under weight_decay too, if there is any), merged, sent, rewound, saved. They
are never pruned, and a forward pass does not look at them: only training does, see regularisers/base.py. Evaluation, evidence
and tickets are about the network that is in use, which `fold` makes of them. Those of the dead travel and are saved with the
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
"""Every kind of companion, and which option trains it."""


class Companion(NamedTuple):
    """A kind of companion, and the mean and standard deviation of the values that it starts from."""

    kind: str
    mean: float
    deviation: float = 0.0


def companion(name: str, kind: str) -> str:
    """What the companion of a tensor is called."""
    return f"{name}_{kind}"


def is_companion(name: str) -> bool:
    """Whether a parameter of this name belongs to another one."""
    return companion_of(name) is not None


def companion_of(name: str) -> str | None:
    """Of which kind the companion of this name is; None if it is none."""
    return next((kind for kind in CHOOSE if name.rpartition(".")[2] == f"weight_{kind}"), None)


def add(net: nn.Module, names: Iterable[str], kind: Companion, generator: torch.Generator) -> None:
    """Give the named tensors companions of a kind, each entry drawn for itself."""
    for name in names:
        layer, _, own = name.rpartition(".")
        weight = net.get_parameter(name)
        values = kind.mean + kind.deviation * torch.randn(weight.shape, generator=generator)
        net.get_submodule(layer).register_parameter(companion(own, kind.kind), nn.Parameter(values.to(weight.dtype)))


def fold(params: Params) -> Params:
    """The network that is in use: every weight with a gate times the gate's value without noise. To be done once."""
    gated = {name: companion(name, "log_alpha") for name in params if companion(name, "log_alpha") in params}
    return params | {name: params[name] * expected(params[gate]) for name, gate in gated.items()} if gated else params


def plain(params: Params) -> Params:
    """The same without companions: a network that does not know how it was trained."""
    return {name: tensor for name, tensor in fold(params).items() if not is_companion(name)}


def log_alpha(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """How open each weight's gate is."""
    return {name: params[companion(name, "log_alpha")] for name in names}


def log_sigma2(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """The log variance of each weight."""
    return {name: params[companion(name, "log_sigma2")] for name in names}


def no_gates(network: Network, names: tuple[str, ...]) -> str | None:
    """Why there is no `log_alpha`, or None."""
    return _missing(network, names, "log_alpha", "weights have no gates")


def no_variance(network: Network, names: tuple[str, ...]) -> str | None:
    """Why there is no `log_sigma2`, or None."""
    return _missing(network, names, "log_sigma2", "weights have no variance")


def gated(network: Network, names: tuple[str, ...]) -> str | None:
    """Why weights cannot be moved by what was measured of them times their gates, or None."""
    there = tensors_of(network.net)
    if not any(companion(name, "log_alpha") in there for name in names):
        return None
    return "how far survivors move is of weights times their gates: choose criterion=woodfisher_scores or local/penalty=none"


def _missing(network: Network, names: tuple[str, ...], kind: str, what: str) -> str | None:
    there = tensors_of(network.net)
    return None if all(companion(name, kind) in there for name in names) else f"{what} of their own: choose {CHOOSE[kind]}"
