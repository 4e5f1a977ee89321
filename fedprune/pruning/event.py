"""One prune event as a straight line.

Measure, drop, shrink. With compensation: measure, move the survivors. With an exchange of units: measure, grow, regrow. With
candidates (candidates.py): measure, make several masks, compare them on data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch

from fedprune.precision import wide
from fedprune.pruning.candidates import Compare, candidate_masks, keeping_counts, lowest_loss
from fedprune.pruning.criterion import Criterion, Formula
from fedprune.pruning.criterion.prunefl import adjusted, dense_time, layer_times, unquestioned
from fedprune.pruning.criterion.regrowth_init import started
from fedprune.pruning.criterion.scores import compensated, scored
from fedprune.pruning.evidence import needs
from fedprune.pruning.evidence.finite import explained
from fedprune.pruning.mask import apply, count, regrow, shrink, size
from fedprune.pruning.what import What
from fedprune.pruning.what.top_k import nearest
from fedprune.types import Mask, Params, PruneEvent, Scores, Subnet


class Measure(Protocol):
    """(names of evidence, subnet, "alive", "dead" or "all": the entries to measure) -> the evidence by name.

    surviving: the mask that a removal would leave. The evidence is then about these entries, at the subnet before the removal.
    """

    def __call__(
        self, names: tuple[str, ...], subnet: Subnet, about: str, surviving: Mask | None = None, /
    ) -> dict[str, object]: ...


@dataclass(frozen=True)
class Axes:
    """The options of an event.

    what: the units and the scope. criterion: the formulas. regrown: the rule for the first values of grown weights
    (regrowth_init.RULES).
    """

    what: What
    criterion: Criterion
    regrown: str = "zero"


def prune(
    subnet: Subnet,
    event: PruneEvent,
    axes: Axes,
    measure: Measure,
    last: Params | None = None,
    compare: Compare | None = None,
) -> Subnet:
    """Return `subnet` at the event's density. Grown weights start from their values in `last`, or from zero.

    compare: how a criterion that selects compares its candidates.
    """
    grow = axes.criterion.grow
    if axes.criterion.selects and not event.swap:
        assert compare is not None, "build refuses candidates on clients"
        return _selected(subnet, event, axes, measure, compare)
    if axes.criterion.selects and axes.what.pool.layerwise:
        axes = replace(axes, what=keeping_counts(axes.what, subnet.mask, event.density))
    if axes.criterion.adjusts and event.swap:
        mask = _adjusted(subnet, event, axes.what, axes.criterion, measure)
        started_params = started(subnet, _grown(mask, subnet), last or {})
        return Subnet(apply(started_params, mask), mask)
    if axes.criterion.adjusts and count(subnet.mask) <= nearest(event.density * size(subnet.mask)):
        return subnet  # each layer lives as the criterion, or the ticket, has decided
    mask = dropped(subnet, event, axes, measure)
    smaller = Subnet(apply(_compensated(subnet, mask, axes.criterion, measure), mask), mask)
    if not event.swap:
        return smaller
    assert grow is not None, "build refuses an exchange without a grow formula"
    evidence = measure(needs(grow), smaller, "dead")
    scores = scored(grow, evidence, mask)
    with explained(evidence):
        mask = regrow(mask, scores, event.density, axes.what)
    return Subnet(started(smaller, _grown(mask, smaller), last or {}), mask)


def _grown(mask: Mask, before: Subnet) -> Mask:
    return {name: alive & ~before.mask[name] for name, alive in mask.items()}


def _adjusted(subnet: Subnet, event: PruneEvent, what: What, criterion: Criterion, measure: Measure) -> Mask:
    """Return a mask of at most the event's density, and of less where more would not pay (PruneFL)."""
    assert criterion.grow is not None, "build refuses an exchange without a grow formula"
    stays = unquestioned(subnet.mask, _score(criterion.drop, measure, subnet, "alive"), event.swap)
    gains = _score(criterion.grow, measure, subnet, "all")
    most = nearest(event.density * size(subnet.mask))
    times = layer_times(criterion.times, what.names, what.ends)
    return adjusted(stays, gains, times, criterion.base * dense_time(times, subnet.mask), most)


def _selected(subnet: Subnet, event: PruneEvent, axes: Axes, measure: Measure, compare: Compare) -> Subnet:
    """Return the candidate of the lowest loss."""
    criterion, wanted = axes.criterion, {*needs(axes.criterion.drop), "generator"}
    evidence = measure(tuple(wanted), subnet, "alive")
    scores = scored(criterion.drop, {name: evidence[name] for name in needs(criterion.drop)}, subnet.mask)
    stream = cast(Callable[[str], torch.Generator], evidence["generator"])
    with explained(evidence):
        masks = candidate_masks(subnet.mask, scores, event.density, axes.what, criterion, stream)
    return lowest_loss([Subnet(apply(subnet.params, mask), mask) for mask in masks], compare, criterion.adapt)


def dropped(subnet: Subnet, event: PruneEvent, axes: Axes, measure: Measure) -> Mask:
    """Return the mask that the event leaves before it grows anything, and without candidates."""
    evidence = measure(needs(axes.criterion.drop), subnet, "alive")
    scores = scored(axes.criterion.drop, evidence, subnet.mask)
    if event.block is not None:  # the others are full as they are, so that nothing grows there either
        taking_part = block(axes.what.in_order, *event.block)
        scores = {name: score if name in taking_part else torch.full_like(score, math.inf) for name, score in scores.items()}
    with explained(evidence):
        return shrink(subnet.mask, scores, event.density * (1 - event.swap), axes.what)


def block(names: tuple[str, ...], number: int, blocks: int) -> tuple[str, ...]:
    """Return the `number`-th of `blocks` blocks of consecutive layers, counted from the output.

    names: in the order in which the network runs them. The first blocks may have one layer more.
    """
    each, more = divmod(len(names), blocks)
    first = number * each + min(number, more)
    return names[::-1][first : first + each + (number < more)]


def _compensated(subnet: Subnet, surviving: Mask, criterion: Criterion, measure: Measure) -> Params:
    """Return the parameters after survivors have moved to make up for the others, if the criterion says how."""
    if criterion.compensate is None:
        return subnet.params
    evidence = measure(needs(criterion.compensate), subnet, "alive", surviving)
    steps = compensated(criterion.compensate, evidence, subnet.params)
    before = {name: subnet.params[name] for name in steps}
    return subnet.params | {name: (wide(before[name]) + step).to(before[name].dtype) for name, step in steps.items()}


def _score(formula: Formula, measure: Measure, subnet: Subnet, about: str) -> Scores:
    return scored(formula, measure(needs(formula), subnet, about), subnet.mask)
