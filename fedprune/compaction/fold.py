"""The removal of channels from a copy of the network; their constants are folded into the layers that read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fedprune.compaction.constants import Alive, constants, contribution, uniform, values
from fedprune.compaction.torch_pruning import Channel, Group

OUTPUT = "an output of the network"

Going = dict[Channel, Channel | None]
"""Channels to remove; each with the channel that takes over its constant where a bias cannot."""


@dataclass
class Folding:
    """A copy of the network in double precision, from which channels are removed.

    alive: the mask of each layer's weight. example: one input. seen: the constants that reach each layer.
    """

    net: nn.Module
    alive: Alive
    example: Tensor
    seen: dict[str, Tensor] = field(default_factory=dict)

    def look(self) -> None:
        """Find the constants again."""
        self.seen = constants(self.net, self.alive, self.example)


class Verdict(NamedTuple):
    """The answer to whether a channel can be removed.

    go: it can. heir: only if another channel takes over its constant. reason: why it cannot, or what it carries; else "".
    """

    go: bool
    heir: bool
    reason: str


def verdict(folding: Folding, channel: Channel) -> Verdict:
    """Return whether one channel can go."""
    if channel.unknown:
        return Verdict(False, False, f"passes {', '.join(sorted(channel.unknown))}, which cannot be cut")
    if not channel.reads:
        return Verdict(False, False, OUTPUT)
    verdicts = [_reader(folding, channel, name) for name in channel.reads if folding.alive[name][:, channel.reads[name]].any()]
    stays = [verdict for verdict in verdicts if not verdict.go]
    if stays:
        return stays[0]
    return next((verdict for verdict in verdicts if verdict.heir), Verdict(True, False, ""))


def _reader(folding: Folding, channel: Channel, name: str) -> Verdict:
    """Return whether a channel can go as far as one layer is concerned that reads it."""
    places = channel.reads[name]
    if name not in folding.seen or values(_layer(folding, name), folding.seen[name], places).isnan().any():
        return Verdict(False, False, f"not constant where {name} reads it (it is added to, or normalised with, what is alive)")
    if _even(folding, channel, name):
        return Verdict(True, False, "")
    if len(places) > 1 or not uniform(values(_layer(folding, name), folding.seen[name], places)):
        return Verdict(False, False, f"its constant is felt unevenly by {name}")
    return Verdict(True, True, f"carries the constants of the dead ones into the zero padding of {name}")


def choose(folding: Folding, group: Group) -> Going:
    """Return the channels of a group that can go; at least one is left, since no layer can be without channels."""
    verdicts = {channel: verdict(folding, channel) for channel in group}
    going: Going = {channel: None for channel, verdict in verdicts.items() if verdict.go and not verdict.heir}
    uneven = [channel for channel, verdict in verdicts.items() if verdict.heir]
    if uneven:
        heir = max(uneven, key=lambda channel: _strength(folding, channel))
        going |= {channel: heir for channel in uneven if channel is not heir and _strength(folding, heir) > 0}
    if len(going) == len(group):
        del going[group[0]]
    return going


def _strength(folding: Folding, channel: Channel) -> float:
    """Return the smallest constant of a channel at the layers that read it; an heir divides by it, so the larger the better."""
    return min(abs(_value(folding, channel, name)) for name in channel.reads)


def closed(folding: Folding, going: Going, gone: Iterable[Channel]) -> Going:
    """Leave out channels that share a group of GroupNorm with one that stays: they count in its mean and variance."""
    while True:
        leaving = _places([*going, *gone])
        torn = {
            channel
            for channel in going
            if any(not normed <= leaving.get(name, set()) for name, normed in _normed_together(folding, channel))
        }
        if not torn:
            return going
        going = {channel: heir for channel, heir in going.items() if channel not in torn}


def filled(folding: Folding, groups: Iterable[Group], gone: set[Channel], to: int) -> set[Channel]:
    """Return the channels that go where a multiple of `to` is left of each group that loses some.

    Those that stay for it were removed already: nothing reads them, so they change no output.
    """
    going = set(gone)
    for group in groups:
        away = [channel for channel in group if channel in gone]
        going -= set(away[: -(len(group) - len(away)) % to])
    return set(closed(folding, dict.fromkeys(going), ()))


def _places(channels: Iterable[Channel]) -> dict[str, set[int]]:
    """Return the places of these channels in normalisation layers."""
    places: dict[str, set[int]] = {}
    for channel in channels:
        for name, numbers in channel.norms.items():
            places.setdefault(name, set()).update(numbers)
    return places


def _normed_together(folding: Folding, channel: Channel) -> list[tuple[str, set[int]]]:
    """Return the places that GroupNorm normalises together with this channel."""
    together = list[tuple[str, set[int]]]()
    for name, numbers in channel.norms.items():
        norm = folding.net.get_submodule(name)
        if isinstance(norm, nn.GroupNorm):
            size = norm.num_channels // norm.num_groups
            firsts = [number // size * size for number in numbers]
            together += [(name, set(range(first, first + size))) for first in firsts]
    return together


@torch.no_grad()
def remove(folding: Folding, channel: Channel, heir: Channel | None) -> None:
    """Take a channel out of the copy: its constant goes to biases, or to its heir; its entries are dead from now on."""
    for name, places in channel.reads.items():
        if folding.alive[name][:, places].any():
            if _even(folding, channel, name):
                _to_bias(folding, channel, name)
            else:
                assert heir is not None, "a constant that is felt unevenly needs an heir"
                _to_heir(folding, channel, heir, name)
        _kill(folding, name, (slice(None), places))
    for name, places in channel.makes.items():
        _kill(folding, name, (places,))


def _to_bias(folding: Folding, channel: Channel, name: str) -> None:
    layer = _layer(folding, name)
    constant = contribution(layer, folding.seen[name], channel.reads[name])[0]
    if not constant.any():
        return
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(constant))
    layer.bias += constant


def _to_heir(folding: Folding, channel: Channel, heir: Channel, name: str) -> None:
    (mine,), (its,) = channel.reads[name], heir.reads[name]
    weight, alive = _layer(folding, name).weight, folding.alive[name]
    weight[:, its] += weight[:, mine] * (_value(folding, channel, name) / _value(folding, heir, name))
    alive[:, its] |= alive[:, mine]


def _kill(folding: Folding, name: str, where: tuple[slice | list[int], ...]) -> None:
    folding.alive[name][where] = False
    _layer(folding, name).weight[where] = 0


def _even(folding: Folding, channel: Channel, name: str) -> bool:
    """Return whether every output position of a layer gets the same sum from this channel."""
    return uniform(contribution(_layer(folding, name), folding.seen[name], channel.reads[name]))


def _value(folding: Folding, channel: Channel, name: str) -> float:
    return float(values(_layer(folding, name), folding.seen[name], channel.reads[name])[0, 0])


def _layer(folding: Folding, name: str) -> nn.Conv2d:  # or another of CUTTABLE_LAYERS, with the same attributes
    return cast(nn.Conv2d, folding.net.get_submodule(name))
