"""One prune event as a straight line: measure, drop, shrink; and, where units are exchanged, measure, grow, regrow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedprune.pruning.criterion import Criterion, Formula
from fedprune.pruning.evidence import needs
from fedprune.pruning.mask import apply, regrow, shrink
from fedprune.pruning.what import What
from fedprune.types import Mask, PruneEvent, Scores, Subnet

Measure = Callable[[tuple[str, ...], Subnet, str], dict]
"""(names of evidence, subnet, "alive" or "dead": which entries it is about) -> the evidence by name."""


@dataclass(frozen=True)
class Axes:
    """What to prune, and by which criterion."""

    what: What
    criterion: Criterion


def prune(subnet: Subnet, event: PruneEvent, axes: Axes, measure: Measure) -> Subnet:
    """`subnet` brought to the event's density. What is grown starts from zero, because dead entries are zero."""
    grow = axes.criterion.grow
    mask = dropped(subnet, event, axes, measure)
    smaller = Subnet(apply(subnet.params, mask), mask)
    if not event.swap:
        return smaller
    assert grow is not None, "build refuses an exchange without a grow formula"
    mask = regrow(mask, _score(grow, measure, smaller, "dead"), event.density, axes.what)
    return Subnet(smaller.params, mask)


def dropped(subnet: Subnet, event: PruneEvent, axes: Axes, measure: Measure) -> Mask:
    """What the event leaves alive before it grows anything."""
    scores = _score(axes.criterion.drop, measure, subnet, "alive")
    return shrink(subnet.mask, scores, event.density * (1 - event.swap), axes.what)


def _score(formula: Formula, measure: Measure, subnet: Subnet, about: str) -> Scores:
    return formula(**measure(needs(formula), subnet, about))
