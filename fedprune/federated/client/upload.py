"""Uploads: the part of its trained network that a client sends back.

Every option is an Upload, both ends of it. `pack` is (the network that was sent, the trained one) -> the subnet that travels;
`unpack` is (the network that was sent, the subnet that arrived) -> the client's network as it is merged. The mask of what
travels is a part of the trained one's: the wire encodes its living entries and nothing of the others. Biases, normalisation and
buffers travel whole, as they are.

    all                         every living weight
    top_weights                 the greatest weights of each layer ("Top-K-Weights" of ZeroFL, Qiu et al. 2022)
    difference_on_top_weights   how these have changed ("Diff on Top-K-Weights")
    top_difference              the greatest changes of each layer ("Top-K of Diff")

A difference d_k arrives as the network w + d_k, w being what was sent, with what did not travel unchanged: then the mean of
such networks is w plus the mean of the differences, zeros included, and the aggregate does not have to know. (To the last bit
w + (y - w) need not be y.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from fedprune.errors import ConfigError
from fedprune.pruning.mask import apply
from fedprune.pruning.what.top_k import keep_best, nearest
from fedprune.types import Mask, Params, Subnet


@dataclass(frozen=True)
class Upload:
    """pack: on the client, (the network it was sent, the one it trained) -> what travels. unpack: its inverse on the server.
    whole: whether every living weight travels, as it is."""

    pack: Callable[[Params, Subnet], Subnet]
    unpack: Callable[[Subnet, Subnet], Subnet]
    whole: bool = False


def everything() -> Upload:
    """Send every living weight."""
    return Upload(_all, _as_it_came, whole=True)


def top_weights(density: float) -> Upload:
    """Send the greatest |w| of each layer, `density` of its entries. The others count as dead in the aggregate."""
    return Upload(functools.partial(_top_weights, density=_checked(density)), _as_it_came)


def difference_on_top_weights(density: float) -> Upload:
    """Send w_trained - w_sent at the greatest |w_trained| of each layer, `density` of its entries."""
    return Upload(functools.partial(_difference_on_top_weights, density=_checked(density)), _added)


def top_difference(density: float) -> Upload:
    """Send the greatest |w_trained - w_sent| of each layer, `density` of its entries."""
    return Upload(functools.partial(_top_difference, density=_checked(density)), _added)


def greatest(values: Params, mask: Mask, density: float) -> Mask:
    """Return the living entries of greatest magnitude of each layer, as many as `density` of all its entries at most."""
    scores = {name: values[name].abs().masked_fill(~alive, -1.0) for name, alive in mask.items()}
    best = {name: keep_best({name: score}, nearest(density * score.numel()))[name] for name, score in scores.items()}
    return {name: best[name] & alive for name, alive in mask.items()}


def _all(sent: Params, trained: Subnet) -> Subnet:
    return trained


def _top_weights(sent: Params, trained: Subnet, density: float) -> Subnet:
    mask = greatest(trained.params, trained.mask, density)
    return Subnet(apply(trained.params, mask), mask)


def _difference_on_top_weights(sent: Params, trained: Subnet, density: float) -> Subnet:
    mask = greatest(trained.params, trained.mask, density)
    return Subnet(apply(_difference(sent, trained), mask), mask)


def _top_difference(sent: Params, trained: Subnet, density: float) -> Subnet:
    difference = _difference(sent, trained)
    mask = greatest(difference, trained.mask, density)
    return Subnet(apply(difference, mask), mask)


def _difference(sent: Params, trained: Subnet) -> Params:
    return trained.params | {name: trained.params[name] - sent[name] for name in trained.mask}


def _as_it_came(sent: Subnet, arrived: Subnet) -> Subnet:
    return arrived


def _added(sent: Subnet, arrived: Subnet) -> Subnet:
    return Subnet(arrived.params | {name: sent.params[name] + arrived.params[name] for name in sent.mask}, sent.mask)


def _checked(density: float) -> float:
    if not 0 < density <= 1:
        raise ConfigError(
            [f"federated.upload.density={density} is the fraction of each layer that travels: more than 0, at most 1"]
        )
    return density
