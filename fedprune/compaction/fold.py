"""Which units can go, and what of them has to be left behind in those that read them. Works on a copy, and changes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedprune.compaction.constants import Alive, constants, contribution, uniform, values
from fedprune.compaction.torch_pruning import Group, Unit

OUTPUT = "an output of the network"

Going = dict[Unit, Unit | None]
"""Units to remove; each with the unit that takes over its constant where a bias cannot."""


@dataclass
class Work:
    """The network being worked on, in double precision; which entries are alive; and the constants that reach each layer."""

    net: nn.Module
    alive: Alive
    example: Tensor
    seen: dict[str, Tensor] = field(default_factory=dict)

    def look(self) -> None:
        """Find the constants anew."""
        self.seen = constants(self.net, self.alive, self.example)


class Verdict(NamedTuple):
    """go: it may be removed. heir: provided that another unit takes over its constant. reason: why, if it has to stay."""

    go: bool
    heir: bool
    reason: str


def verdict(work: Work, unit: Unit) -> Verdict:
    """Whether one unit can go."""
    if unit.unknown:
        return Verdict(False, False, f"passes {', '.join(sorted(unit.unknown))}, which cannot be cut")
    if not unit.reads:
        return Verdict(False, False, OUTPUT)
    verdicts = [_reader(work, unit, name) for name in unit.reads if work.alive[name][:, unit.reads[name]].any()]
    stays = [one for one in verdicts if not one.go]
    return stays[0] if stays else next((one for one in verdicts if one.heir), Verdict(True, False, ""))


def _reader(work: Work, unit: Unit, name: str) -> Verdict:
    """Whether a unit can go as far as one layer is concerned that reads it."""
    places = unit.reads[name]
    if name not in work.seen or values(_layer(work, name), work.seen[name], places).isnan().any():
        return Verdict(False, False, f"not constant where {name} reads it (it is added to, or normalised with, what is alive)")
    if _even(work, unit, name):
        return Verdict(True, False, "")
    if len(places) > 1 or not uniform(values(_layer(work, name), work.seen[name], places)):
        return Verdict(False, False, f"its constant is felt unevenly by {name}")
    return Verdict(True, True, f"carries the constants of the dead ones into the zero padding of {name}")


def choose(work: Work, group: Group) -> Going:
    """The units of a group that can go; at least one is left, since no layer can be without channels."""
    verdicts = {unit: verdict(work, unit) for unit in group}
    going: Going = {unit: None for unit, one in verdicts.items() if one.go and not one.heir}
    uneven = [unit for unit, one in verdicts.items() if one.heir]
    if uneven:
        heir = max(uneven, key=lambda unit: _strength(work, unit))
        going |= {unit: heir for unit in uneven if unit is not heir and _strength(work, heir) > 0}
    if len(going) == len(group):
        del going[group[0]]
    return going


def _strength(work: Work, unit: Unit) -> float:
    """The smallest of its constants at the layers that read it: what an heir has to multiply, so the larger the better."""
    return min(abs(_value(work, unit, name)) for name in unit.reads)


def closed(work: Work, going: Going, gone: Iterable[Unit]) -> Going:
    """Without the units that share a group of GroupNorm with one that stays: they count in its mean and variance."""
    while True:
        leaving = _places([*going, *gone])
        torn = {unit for unit in going if any(not block <= leaving.get(name, set()) for name, block in _blocks(work, unit))}
        if not torn:
            return going
        going = {unit: heir for unit, heir in going.items() if unit not in torn}


def _places(units: Iterable[Unit]) -> dict[str, set[int]]:
    """The channels of normalisation layers that these units are."""
    places: dict[str, set[int]] = {}
    for unit in units:
        for name, channels in unit.norms.items():
            places.setdefault(name, set()).update(channels)
    return places


def _blocks(work: Work, unit: Unit) -> list[tuple[str, set[int]]]:
    """The channels that are normalised together with this unit, by GroupNorm."""
    found = []
    for name, channels in unit.norms.items():
        norm = work.net.get_submodule(name)
        if isinstance(norm, nn.GroupNorm):
            size = norm.num_channels // norm.num_groups
            found += [(name, set(range(c // size * size, c // size * size + size))) for c in channels]
    return found


@torch.no_grad()
def remove(work: Work, unit: Unit, heir: Unit | None) -> None:
    """Take a unit out of the copy: its constant goes to biases, or to its heir; its entries are dead from now on."""
    for name, places in unit.reads.items():
        if work.alive[name][:, places].any():
            if _even(work, unit, name):
                _to_bias(work, unit, name)
            else:
                assert heir is not None, "a constant that is felt unevenly needs an heir"
                _to_heir(work, unit, heir, name)
        _kill(work, name, (slice(None), places))
    for name, places in unit.makes.items():
        _kill(work, name, (places,))


def _to_bias(work: Work, unit: Unit, name: str) -> None:
    layer = _layer(work, name)
    constant = contribution(layer, work.seen[name], unit.reads[name])[0]
    if not constant.any():
        return
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(constant))
    layer.bias += constant


def _to_heir(work: Work, unit: Unit, heir: Unit, name: str) -> None:
    (mine,), (its,) = unit.reads[name], heir.reads[name]
    weight, alive = _layer(work, name).weight, work.alive[name]
    weight[:, its] += weight[:, mine] * (_value(work, unit, name) / _value(work, heir, name))
    alive[:, its] |= alive[:, mine]


def _kill(work: Work, name: str, where: tuple) -> None:
    work.alive[name][where] = False
    _layer(work, name).weight[where] = 0


def _even(work: Work, unit: Unit, name: str) -> bool:
    """Whether every output position of a layer gets the same from this unit."""
    return uniform(contribution(_layer(work, name), work.seen[name], unit.reads[name]))


def _value(work: Work, unit: Unit, name: str) -> float:
    return float(values(_layer(work, name), work.seen[name], unit.reads[name])[0, 0])


def _layer(work: Work, name: str) -> nn.Conv2d:  # or another of LAYERS: they have in common what is used here
    return work.net.get_submodule(name)  # type: ignore[return-value]
