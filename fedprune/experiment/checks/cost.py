"""Checks of densities that are a share of something else than units. Each problem says what to choose instead."""

from __future__ import annotations

from fedprune.federated.composition import Composition
from fedprune.pruning.cost import unreachable


def of_cost(composed: Composition) -> list[str]:
    """Return the options that count units where a density is a share of something else, and a density that is out of reach."""
    what, options, plan, names = composed.what, composed.options, composed.plan, composed.names
    if what.cost is None or not plan.events:
        return []
    of, criterion = f"density_of={what.cost.of}", options.criterion
    rules = {
        f"{of}: whose={names['whose']} counts weights or units: type density_of=units, or choose whose=shared": (
            options.whose.apportions or options.whose.counts_units
        ),
        f"{of}: criterion={names['criterion']} counts weights or units: type density_of=units, or choose criterion=magnitude": (
            criterion.selects or criterion.adjusts
        ),
        f"{of}: how_often={names['how_often']} exchanges a part of the units: type density_of=units, or choose "
        "how_often=iterative": any(event.swap for event in plan.events),
    }
    problems = [problem for problem, broken in rules.items() if broken]
    return problems or unreachable(what, composed.net, plan.events[-1].density)
