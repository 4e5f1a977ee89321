"""Checks of a criterion that compares candidate masks on data. Each problem says what to choose instead."""

from __future__ import annotations

from fedprune.federated.composition import Composition
from fedprune.pruning.evidence.batchnorm import statistics_names
from fedprune.pruning.evidence.network import offers


def of_candidates(composed: Composition) -> list[str]:
    """Return what candidate masks cannot be combined with."""
    options, names, batchnorm = composed.options, composed.names, composed.config.federated.batchnorm
    criterion, whose = options.criterion, options.whose
    if not criterion.selects or not any(not event.swap for event in composed.plan.events):
        return []
    chosen = f"criterion={names['criterion']}"
    without = "criterion.candidates=1 for one mask"
    tracked = bool(statistics_names(composed.net))
    rules = {
        f"{chosen} compares candidate masks on data, and where={names['where']} has none: choose where=cohort, set "
        f"where.proxy=500, or {without}": not options.where.has_data,
        f"{chosen}: the server compares candidate masks for all, and whose={names['whose']} gives clients their own: choose "
        f"whose=shared, or {without}": whose.at is not None or whose.per_client,
        f"{chosen} varies the densities of layers, and what={names['what']} brings its own: choose what=weights_erk, or "
        f"{without}": composed.what.pool.own_density,
        f"{chosen} measures BatchNorm's statistics under each candidate mask, and model={names['model']} has none: "
        f"choose {_with_batchnorm(composed)}, or criterion.adapt=false to compare by the loss alone": (
            criterion.adapt and not tracked
        ),
        f"{chosen}: the server averages BatchNorm's statistics, and federated.batchnorm={batchnorm} keeps them from it: set "
        "federated.batchnorm=average, or criterion.adapt=false to compare by the loss alone": (
            criterion.adapt and tracked and batchnorm != "average"
        ),
    }
    return [problem for problem, broken in rules.items() if broken]


def _with_batchnorm(composed: Composition) -> str:
    """Return what to type for a network with BatchNorm."""
    return "model.norm=batch" if offers(composed.net, "batch") else "model=vgg_small"
