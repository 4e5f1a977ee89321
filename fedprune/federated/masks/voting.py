"""Ballots: they make one mask, at exactly the event's density, of the masks that clients propose.

Every ballot is (votes, merged, event, what, generator) -> Mask. votes: of each entry, the weight of the clients that propose to
keep it alive, as a fraction of the weight of all that propose a mask, from 0 to 1; below 0 if the entry is dead, nobody
proposes it and nothing is exchanged. merged: the aggregate of the clients' parameters. generator: a seeded torch generator by
layer name. Entries that nobody proposes come in last of all, and only if there are too few others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fedprune.capabilities import declares
from fedprune.errors import ConfigError
from fedprune.pruning.what import What
from fedprune.pruning.what.top_k import keep_best, nearest
from fedprune.types import Mask, Params, PruneEvent, Scores

Generator = Callable[[str], torch.Generator]
Ballot = Callable[[Scores, Params, PruneEvent, What, Generator], Mask]


class Vote:
    """The attributes that a ballot may declare. apportions: whether it decides how many weights of each layer live."""

    apportions: bool = False


def votes(masks: Iterable[tuple[Mask, float]]) -> Scores:
    """Return, of each entry, the fraction of all weight whose mask has it alive. Added up in the order given, in float64."""
    sums: Scores = {}
    total = 0.0
    for mask, weight in masks:
        sums = {name: alive.double() * weight + sums.get(name, 0.0) for name, alive in mask.items()}
        total += weight
    return {name: value / total for name, value in sums.items()}


def by_magnitude(
    votes: Scores, merged: Params, event: PruneEvent, what: What, generator: Generator, least: float = 0.0
) -> Mask:
    """Keep the largest |w| of the merged network among entries with more than `least` of the votes.

    Bibikar et al. 2022 (FedDST): the union of the proposals (least = 0), pruned again by magnitude in the scope of `what`.
    """
    if not 0 <= least < 1:
        raise ConfigError([f"whose.ballot.least={least} is a fraction of the votes: 0 or more, less than 1"])
    return what.select(_scores(votes, merged, least), event.density)


def by_votes(votes: Scores, merged: Params, event: PruneEvent, what: What, generator: Generator) -> Mask:
    """Keep the entries with the most votes; of equally many, those of the larger |w| of the merged network."""
    top = max(float(merged[name].abs().max()) for name in votes) or 1.0
    # A millionth of the votes is less than any client has, and all magnitudes together are less than that.
    rank = {name: (share * 1e6).round() + 0.5 * merged[name].abs().double() / top for name, share in votes.items()}
    return what.select(rank, event.density)


@declares(apportions=True)
def by_layer_density(
    votes: Scores, merged: Params, event: PruneEvent, what: What, generator: Generator, positions: str = "magnitude"
) -> Mask:
    """Keep the layer densities of the mean client, scaled to the event's density; within a layer the largest |w| of the merged
    network or, with positions=random, entries drawn at random. Babakniya et al. 2023 (FLASH: JMWST and SPDST).

    Seats are apportioned by Sainte-Lague, as in the scope `erk`: the exact total, and no layer more than it has. `what`
    has to prune single weights.
    """
    if positions not in ("magnitude", "random"):
        raise ConfigError([f"whose.ballot.positions={positions}: choose magnitude or random"])
    total = nearest(event.density * sum(shares.numel() for shares in votes.values()))
    counts = _apportioned({name: float(shares.clamp_min(0).sum()) for name, shares in votes.items()}, votes, total)
    scores = _scores(votes, merged, 0.0) if positions == "magnitude" else _drawn(votes, generator)
    return {name: keep_best({name: scores[name]}, counts[name])[name] for name in votes}


def _drawn(votes: Scores, generator: Generator) -> Scores:
    """Draw a score for each entry; -1 for those that must stay dead."""
    draws = {name: torch.rand(s.shape, generator=generator(name), dtype=torch.float64) for name, s in votes.items()}
    return {name: draw.masked_fill(votes[name] < 0, -1.0) for name, draw in draws.items()}


def _scores(votes: Scores, merged: Params, least: float) -> Scores:
    """Return |w| of the merged network; of entries that are zero, as newly grown ones are, the votes, below all others; and
    below those, in the order of the votes, the entries that have not enough of them."""
    scores = {}
    for name, shares in votes.items():
        size = merged[name].abs().double()
        enough = torch.where(size > 0, size, shares - 1.0)  # -1 to 0
        scores[name] = torch.where(shares > least, enough, shares - 2.0)  # -2 to -1
    return scores


def _apportioned(weights: dict[str, float], votes: Scores, total: int) -> dict[str, int]:
    """Apportion `total` seats to layers in proportion to their weights, no more to a layer than it has entries that may live.

    Seat k of a layer is worth w / (k - 1/2).
    """
    seats = {name: torch.arange(int((shares >= 0).sum()), dtype=torch.float64) + 0.5 for name, shares in votes.items()}
    worth: dict[str, Tensor] = {name: weights[name] / numbers for name, numbers in seats.items()}
    worth = {name: torch.where(value > 0, value, -math.inf) for name, value in worth.items()}
    return {name: int(kept.sum()) for name, kept in keep_best(worth, total).items()}
