"""Masked network -> physically smaller network with the same outputs, in eval mode, or a refusal.

A channel (wherever it occurs) is removed if no layer reads it, or if it is constant, and then its constant is folded into the
biases of the layers that read it. Under zero padding a constant other than zero is felt unevenly at the border, so no bias can
replace it: of all such channels of a layer one stays, and carries the others' constants, which is exact.
A channel that cannot be removed stays and is reported with the reason, since one too many is never wrong.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedprune.compaction.fold import OUTPUT, Folding, choose, closed, filled, remove, verdict
from fedprune.compaction.resize import CUTTABLE_LAYERS, Survivors, resize, resize_mask, widths_of
from fedprune.compaction.torch_pruning import Channel, Group, couplings
from fedprune.errors import ConfigError, Incompatible
from fedprune.plain_layers import is_plain
from fedprune.pruning.evidence.network import tensors_in
from fedprune.pruning.mask import apply
from fedprune.tensors import load_tensors, tensors_of, tied_parameter
from fedprune.types import Mask

log = logging.getLogger(__name__)

TOLERANCE = 1e-5

Stays = dict[str, dict[str, list[int]]]
"""The dead output channels that had to stay, by layer and reason."""


@dataclass(frozen=True)
class Compact:
    """A smaller network, the mask of its dead entries, the channels that are left, and the dead ones that had to stay.

    net: its parameters are new objects, so an optimizer must be built from it. survivors: see resize.py; `resize(dense,
    survivors)` makes the smaller architecture again, to load a state_dict into.
    """

    net: nn.Module
    mask: Mask
    survivors: Survivors
    stays: Stays


@torch.inference_mode(False)
def compact(net: nn.Module, mask: Mask, example: Tensor, round_to: int = 1) -> Compact:
    """Return the network without its dead channels. `example`: a batch of inputs, of which only the shape matters.

    round_to: in each layer that loses channels a multiple of so many stays, if need be with dead ones that nothing reads; or
    all of a layer that has no such multiple.

    Raises Incompatible if no dead channel can be removed, if the network cannot be traced, or if the smaller one's outputs
    would differ (by more than 1e-5, in eval mode); ConfigError if Torch-Pruning is not installed. `net` stays as it is.
    """
    if not example.is_floating_point():
        raise ConfigError(
            [f"compact follows what does not depend on the input, and {example.dtype} cannot say so: give floats"]
        )
    tied = tied_parameter(net, mask)
    if tied:
        raise Incompatible(f"{tied}, and it cannot be cut for one of them alone: keep the network masked")
    masked = _masked(net, mask)
    folding = _folding(masked, mask, example.clone())
    groups = couplings(folding.net, folding.example)
    gone = _remove_all(folding, groups)
    stays = _stays(folding, groups, gone, mask)
    if not gone and any(reason != OUTPUT for reasons in stays.values() for reason in reasons):
        raise Incompatible(f"no dead unit of {type(net).__name__} can be removed: {told(stays)}")
    gone = filled(folding, groups, gone, round_to)
    survivors = _survivors(masked, folding.net, gone)
    smaller = resize(masked, survivors)
    smaller.load_state_dict(resize(folding.net, survivors).state_dict())
    _compare(masked, smaller, example)
    if stays:
        log.info("dead units that stay: %s", told(stays))
    return Compact(smaller, resize_mask(_mask(folding, mask), survivors), survivors, stays)


def told(stays: Stays) -> str:
    """Return the dead channels that stay, as text."""
    rows = [(layer, reason, channels) for layer, reasons in stays.items() for reason, channels in reasons.items()]
    return "; ".join(f"{len(channels)} of {layer}: {reason}" for layer, reason, channels in rows)


def _masked(net: nn.Module, mask: Mask) -> nn.Module:
    try:
        masked = copy.deepcopy(net)
    except RuntimeError as error:  # weights that hooks compute, as torch.nn.utils.weight_norm has them
        reason = str(error).partition(".")[0]
        raise Incompatible(f"{type(net).__name__} cannot be copied ({reason}): keep it masked") from error
    load_tensors(masked, apply(tensors_of(net), mask))
    return masked


def _folding(masked: nn.Module, mask: Mask, example: Tensor) -> Folding:
    net = copy.deepcopy(masked).double().eval()
    weights = {name: layer.weight for name, layer in net.named_modules() if is_plain(layer, CUTTABLE_LAYERS)}
    alive = {
        name: mask.get(f"{name}.weight", torch.ones_like(cast(Tensor, weight), dtype=torch.bool))
        for name, weight in weights.items()
    }
    return Folding(net, {name: entries.clone() for name, entries in alive.items()}, example.double())


def _remove_all(folding: Folding, groups: list[Group]) -> set[Channel]:
    """Remove channels until none can go: once a channel has gone, those that it alone read can follow. Return all of them."""
    gone: set[Channel] = set()
    while True:
        folding.look()
        left = [[channel for channel in group if channel not in gone] for group in groups]
        can_go = {channel: heir for group in left for channel, heir in choose(folding, group).items()}
        going = closed(folding, can_go, gone)
        if not going:
            return gone
        for channel, heir in going.items():
            remove(folding, channel, heir)
        gone |= set(going)


def _stays(folding: Folding, groups: list[Group], gone: set[Channel], mask: Mask) -> Stays:
    """Return the dead channels that are still there, with the reasons."""
    removed = {(name, place) for channel in gone for name, places in channel.makes.items() for place in places}
    left = [channel for group in groups for channel in group if channel not in gone]
    reasons = {
        (name, place): verdict(folding, channel).reason or "the last of its layer, or normalised in a group with what is alive"
        for channel in left
        for name, places in channel.makes.items()
        for place in places
    }
    stays: Stays = {}
    for tensor, alive in mask.items():
        name = tensor.removesuffix(".weight")
        for place in (~alive.flatten(1).any(1)).nonzero().flatten().tolist():
            if (name, place) not in removed:
                reason = reasons.get((name, place), "padded or reshaped in a way that cannot be followed")
                stays.setdefault(name, {}).setdefault(reason, []).append(place)
    return stays


def _survivors(before: nn.Module, after: nn.Module, gone: set[Channel]) -> Survivors:
    """Return the channels that are left, of the layers that lost some or were given a bias."""
    lost: dict[str, dict[str, set[int]]] = {}
    for channel in gone:
        for end, places_by_layer in channel.ends():
            for name, places in places_by_layer.items():
                lost.setdefault(name, {}).setdefault(end, set()).update(places)
    survivors: Survivors = {}
    for name, layer in before.named_modules():
        given = getattr(layer, "bias", None) is None and getattr(after.get_submodule(name), "bias", None) is not None
        if name in lost or given:
            widths = widths_of(layer)
            survivors[name] = {end: sorted(set(range(n)) - lost.get(name, {}).get(end, set())) for end, n in widths.items()}
            survivors[name] |= {"bias": True} if given else {}
    return survivors


def _mask(folding: Folding, mask: Mask) -> Mask:
    """Return the mask after constants were moved to entries that were dead before."""
    return {
        tensor: folding.alive[name] if (name := tensor.removesuffix(".weight")) in folding.alive else alive
        for tensor, alive in mask.items()
    }


def _compare(masked: nn.Module, smaller: nn.Module, example: Tensor) -> None:
    """Raise Incompatible unless both networks give the same outputs on random inputs.

    The inputs are also negated and multiplied by ten, since a forward may branch on them.
    """
    x = torch.randn(example.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(example.device)
    name = type(masked).__name__
    nets = [copy.deepcopy(net).double().eval() for net in (masked, smaller)]
    with torch.no_grad():
        try:
            differ = max(_difference(nets[0], nets[1], factor * x) for factor in (1, -1, 10))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Incompatible(f"{name} cannot be made smaller: its forward counts on fixed widths ({reason})") from error
    if not differ <= TOLERANCE:
        raise Incompatible(f"{name} cannot be made smaller: its outputs would differ by {differ:.2g}; keep it masked")


def _difference(masked: nn.Module, smaller: nn.Module, x: Tensor) -> float:
    """Return how far apart the outputs are, relative to the largest entry of each tensor (or to 1, if that is more)."""
    outputs = zip(tensors_in(masked(x)), tensors_in(smaller(x)), strict=True)
    pairs = [(a.double(), b.double()) for a, b in outputs]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1)) for a, b in pairs)
