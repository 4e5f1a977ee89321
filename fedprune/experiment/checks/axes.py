"""Checks of the axes against each other and against the network. Each problem says what to choose instead."""

from __future__ import annotations

from fedprune.experiment.checks.problems import Names
from fedprune.federated.masks.whose import Whose
from fedprune.federated.where import Where
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence import (
    FROM_CLIENTS,
    FROM_TRAINING,
    OBSTACLES,
    needed_by,
    needs,
)
from fedprune.pruning.evidence.gates import CHOOSE
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.rewind import Rewind
from fedprune.pruning.what import What
from fedprune.pruning.what.top_k import nearest
from fedprune.types import Mask, Plan


def composition(plan: Plan, criterion: Criterion, where: Where, rewind: Rewind, whose: Whose, names: Names) -> list[str]:
    """Return the combinations of axes that mean nothing."""
    exchanges = any(event.swap for event in plan.events)
    first = min((event.round for event in plan.events), default=plan.rounds)
    asked = evidence_of(criterion)
    on_data = sorted(asked & set(FROM_CLIENTS)) if plan.events else []
    dropping = set(needs(criterion.drop))
    how_often, chosen = f"how_often={names['how_often']}", f"criterion={names['criterion']}"
    rules = {
        f"{how_often} exchanges units, and {chosen} has no formula to grow by: choose criterion=rigl or criterion=set": (
            exchanges and criterion.grow is None
        ),
        f"{how_often} trains on from where it is, and rewind={names['rewind']} would undo that: choose rewind=none": (
            exchanges and rewind.goes_back and not whose.back_after_exchange
        ),
        f"{chosen} needs {', '.join(on_data)}, and where={names['where']} has no data: "
        "choose where=cohort, or set where.proxy=500 to give the server a proxy set": (bool(on_data) and not where.has_data),
        f"{chosen} compares with the weights at the start, and the first prune event is before any training: "
        "choose when=after_training, or when=during_training with when.start=0.5": "init_params" in asked
        and plan.events != ()
        and first == 0,
        f"{chosen} reads what training learns beside the weights, and the first prune event is before any training: "
        "choose when=after_training, or when=during_training with when.start=0.5": bool({*CHOOSE} & asked)
        and plan.events != ()
        and first == 0,
        f"{chosen} asks for what clients add up while they train, and the first prune event is before any training: "
        "choose when=after_training, or when=during_training with when.start=0.5": bool({*FROM_TRAINING} & dropping)
        and plan.events != ()
        and first == 0,
        f"{chosen} asks for what clients add up while they train, and where={names['where']} trains nothing: "
        "choose where=all_clients": bool({*FROM_TRAINING} & asked) and plan.events != () and where.on_server,
        f"{chosen} compares with the weights at the start, and rewind={names['rewind']} replaces them: choose rewind=init": (
            "init_params" in asked and len(plan.events) > 1 and rewind.replaces_start
        ),
    }
    return [problem for problem, broken in rules.items() if broken] + rewind.problems(plan)


def blocks(plan: Plan, what: What, names: Names) -> list[str]:
    """Return the problems of a plan by which layers take turns."""
    most = max((event.block[1] for event in plan.events if event.block), default=0)
    chosen = f"how_often={names['how_often']}"
    rules = {
        f"{chosen}: how_often.blocks={most} is more than the {len(what.names)} layers that may be pruned: "
        f"choose how_often.blocks={len(what.names)} or less": (most > len(what.names)),
        f"{chosen} exchanges in some layers at a time, and what={names['what']} lets layers compete with each other: "
        "choose what=weights_erk": most > 0 and not what.pool.layerwise,
    }
    return [problem for problem, broken in rules.items() if broken]


def of_single_weights(plan: Plan, axes: Axes, whose: Whose, names: Names) -> list[str]:
    """Return a problem for each two options that both decide how many weights of each layer live."""
    single, swaps = axes.what.kind.single, [event for event in plan.events if event.swap]
    adjusts = axes.criterion.adjusts and bool(swaps)
    apportions = whose.apportions and bool(plan.events)
    what, chosen = f"what={names['what']}", f"criterion={names['criterion']}"
    rules = {
        f"{chosen} weighs single weights, and {what} has larger units: choose what=weights_global": adjusts and not single,
        f"{chosen} weighs all layers at once, and how_often={names['how_often']} has blocks: choose how_often=dynamic": (
            adjusts and any(event.block for event in swaps)
        ),
        f"whose={names['whose']} chooses single weights, and {what} has larger units: "
        "choose what=weights_global, or whose=voted": apportions and not single,
        f"whose={names['whose']} takes its densities from the clients, and {what} brings its own: "
        "choose what=weights_global, or whose=voted": apportions and axes.what.pool.own_density,
    }
    return [problem for problem, broken in rules.items() if broken]


def obstacles(plan: Plan, criterion: Criterion, network: Network, prunable: tuple[str, ...], names: Names) -> list[str]:
    """Return the evidence that this network cannot give about its prunable tensors."""
    asked = sorted(evidence_of(criterion) & OBSTACLES.keys()) if plan.events else []
    found = (OBSTACLES[name](network, prunable) for name in asked)
    return [f"criterion={names['criterion']}: {problem}" for problem in found if problem is not None]


def whole_units(mask: Mask, what: What, plan: Plan, names: Names) -> list[str]:
    """Return a problem if the mask that a run starts from cuts through units, so that no unit could be pruned; else nothing."""
    if not plan.events:
        return []
    return [
        f"ticket: its mask of {name} is not of whole units of what={names['what']}, and how_often={names['how_often']} prunes "
        "by units: choose what=weights_global"
        for name in what.broken(mask)[:1]
    ]


def min_per_layer(what: What, plan: Plan, units: dict[str, int]) -> list[str]:
    """Return a problem if an event cannot leave `min_per_layer` units in each layer, else nothing. units: numbers by layer."""
    if what.emerges or what.cost is not None:  # of a cost, pruning.cost says what can be reached
        return []
    needed = sum(min(what.min_per_layer, number) for number in units.values())
    lowest = min((event.density * (1 - event.swap) for event in plan.events), default=1.0)
    kept = nearest(lowest * sum(units.values()))
    if kept >= needed:
        return []
    most = next(m for m in range(what.min_per_layer, -1, -1) if sum(min(m, number) for number in units.values()) <= kept)
    return [
        f"what.min_per_layer={what.min_per_layer} keeps {needed} units, and a density of {lowest:.4g} only {kept}: "
        f"choose what.min_per_layer={most}, or a higher density"
    ]


def scope(what: What, plan: Plan, units: dict[str, int], names: Names) -> list[str]:
    """Return what in a plan the scope cannot carry out. units: their number, by layer."""
    return [f"what={names['what']}: {problem}" for problem in what.pool.problems(plan, units)]


def evidence_of(criterion: Criterion) -> set[str]:
    """Return all evidence that the formulas of a criterion ask for."""
    return needed_by(criterion.formulas().values())
