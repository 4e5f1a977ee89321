"""Ballots: how the masks that clients propose become one, at exactly the event's density.

Every ballot is (votes, merged, event, what, generator) -> Mask. votes: by name, the fraction of the weight of those who
proposed a mask that holds an entry, from 0 to 1; below 0 if it is dead, nobody holds it and nothing is exchanged. merged:
the parameters that their networks were merged to. generator: a seeded torch generator by layer name. Entries that nobody holds
come in last of all, and only if there are too few others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.pruning.what import What
from fedprune.pruning.what.top_k import keep_best, nearest
from fedprune.types import Mask, Params, PruneEvent, Scores

Generator = Callable[[str], torch.Generator]
Ballot = Callable[[Scores, Params, PruneEvent, What, Generator], Mask]


def votes(masks: Iterable[tuple[Mask, float]]) -> Scores:
    """The fraction of all weight that holds each entry. Added up in the order given, in float64."""
    found: Scores = {}
    total = 0.0
    for mask, weight in masks:
        found = {name: alive.double() * weight + found.get(name, 0.0) for name, alive in mask.items()}
        total += weight
    return {name: value / total for name, value in found.items()}


def by_magnitude(
    votes: Scores, merged: Params, event: PruneEvent, what: What, generator: Generator, least: float = 0.0
) -> Mask:
    """The largest |w| of the merged network among entries with more than `least` of the votes. Bibikar et al. 2022 (FedDST).

    The union of the proposals (least = 0), pruned again by magnitude in the scope of `what`.
    """
    if not 0 <= least < 1:
        raise ConfigError([f"whose.ballot.least={least} is a fraction of the votes: 0 or more, less than 1"])
    return what.select(_scores(votes, merged, least), event.density)


def by_votes(votes: Scores, merged: Params, event: PruneEvent, what: What, generator: Generator) -> Mask:
    """The entries with the most votes; of equally many, those of the larger |w| of the merged network."""
    top = max(float(merged[name].abs().max()) for name in votes) or 1.0
    # A millionth of the votes is less than any client has, and all magnitudes together are less than that.
    rank = {name: (part * 1e6).round() + 0.5 * merged[name].abs().double() / top for name, part in votes.items()}
    return what.select(rank, event.density)


def by_layer_density(
    votes: Scores, merged: Params, event: PruneEvent, what: What, generator: Generator, positions: str = "magnitude"
) -> Mask:
    """The layer densities of the mean client, scaled to the event's density; within a layer the largest |w| of the merged
    network or, with positions=random, entries drawn at random. Babakniya et al. 2023 (FLASH: JMWST and SPDST).

    Seats are apportioned by Sainte-Lague, as in the scope `erk`: the exact total, and no layer more than it has. `what`
    has to prune single weights.
    """
    if positions not in ("magnitude", "random"):
        raise ConfigError([f"whose.ballot.positions={positions}: choose magnitude or random"])
    total = nearest(event.density * sum(part.numel() for part in votes.values()))
    counts = _apportioned({name: float(part.clamp_min(0).sum()) for name, part in votes.items()}, votes, total)
    scores = {
        name: _scores({name: part}, merged, 0.0)[name]
        if positions == "magnitude"
        else torch.rand(part.shape, generator=generator(name), dtype=torch.float64).masked_fill(part < 0, -1.0)
        for name, part in votes.items()
    }
    return {name: keep_best({name: scores[name]}, counts[name])[name] for name in votes}


def _scores(votes: Scores, merged: Params, least: float) -> Scores:
    """|w| of the merged network; of those that are zero, as what clients have just grown is, by their votes; below all of
    those, in the order of the votes, what has not enough of them."""
    scores = {}
    for name, part in votes.items():
        size = merged[name].abs().double()
        enough = torch.where(size > 0, size, part - 1.0)  # -1 to 0
        scores[name] = torch.where(part > least, enough, part - 2.0)  # -2 to -1
    return scores


def _apportioned(weights: dict[str, float], places: Scores, total: int) -> dict[str, int]:
    """`total` seats in proportion to the weights, none more than there are places: seat k of a layer is worth w / (k - 1/2)."""
    worth: dict[str, Tensor] = {
        name: weights[name] / (torch.arange(int((part >= 0).sum()), dtype=torch.float64) + 0.5) for name, part in places.items()
    }
    worth = {name: torch.where(value > 0, value, -math.inf) for name, value in worth.items()}
    return {name: int(kept.sum()) for name, kept in keep_best(worth, total).items()}
