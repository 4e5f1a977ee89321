"""The widths of layers before and after a round in which units were pruned, and a warning where a layer is left with few."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fedprune.pruning.what import What
from fedprune.types import Mask

log = logging.getLogger(__name__)

FEW = 0.1
"""A layer with less than this share of its units, and less than half of the share of all layers, is warned of."""

NAMED = 12
"""So many layers stand in a line."""


def tell_widths(what: What, before: Mask, after: Mask, dense: Mapping[str, int]) -> str | None:
    """Return the numbers of living units of each layer that has lost some, as text; None if none has, or if units are single
    weights. A warning is logged of layers that are left with few. dense: all units of each layer.
    """
    if not what.kind.whole_lines or all(after[name] is before[name] for name in what.names):
        return None
    had, has = what.alive_by_layer(before), what.alive_by_layer(after)
    lost = [name for name in what.names if has[name] < had[name]]
    if not lost:
        return None
    whole = sum(has.values()) / sum(dense.values())
    few = [name for name in lost if has[name] / dense[name] < min(FEW, whole / 2)]
    if few:
        log.warning(
            "few units are left of %s, while %.0f %% of all are: such a layer is a bottleneck; what=%s leaves each its share",
            ", ".join(f"{name.removesuffix('.weight')} ({has[name]} of {dense[name]})" for name in few),
            100 * whole,
            "filters_per_layer or neurons_per_layer",
        )
    pairs = [f"{name.removesuffix('.weight')} {had[name]} -> {has[name]}" for name in lost]
    return f"pruned: {', '.join(pairs[:NAMED])}{f' and {len(pairs) - NAMED} more layers' * (len(pairs) > NAMED)}"
