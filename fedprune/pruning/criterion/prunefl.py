"""The adjustment of PruneFL, which also decides how many entries live: by the gain of an entry per unit of its time.

Jiang, Wang, Valls, Ko, Lee, Leung & Tassiulas 2022, "Model pruning enables efficient
federated learning on edge devices", algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.pruning.what.scope import Ends, by_layer, layerwise
from fedprune.pruning.what.top_k import nearest
from fedprune.types import Mask, Scores


def unquestioned(mask: Mask, scores: Scores, swap: float) -> Mask:
    """Return each layer's living entries without the fraction `swap` (to the nearest) of lowest scores."""
    living = {name: scores[name].double().masked_fill(~alive, -torch.inf) for name, alive in mask.items()}
    counts = {name: int(alive.sum()) for name, alive in mask.items()}
    return layerwise(living, {name: number - nearest(swap * number) for name, number in counts.items()})


def adjusted(stays: Mask, gains: Scores, times: Mapping[str, float], base: float, most: int) -> Mask:
    """Return `stays`, and of all other entries those that raise the gain of the whole network per unit of time.

    gains: g^2 of each entry. times: of one entry, by layer. base: the time of a round without weights (the paper's C0), in the
    unit of `times`. Gamma = sum of the gains of living entries / (base + sum of their times). In the order of gain / time, an
    entry comes in as long as gain / time > Gamma, which this raises; and no more than `most` live in all. Ties go
    to the lower index of the alphabetically first name. In float64. Algorithm 2 of the paper.
    """
    names = sorted(stays)
    others = {name: ~stays[name].flatten() for name in names}
    numbers = [int(others[name].sum()) for name in names]
    gain = torch.cat([gains[name].double().flatten()[others[name]] for name in names])
    time = torch.cat(
        [torch.full((number,), times[name], dtype=torch.float64) for name, number in zip(names, numbers, strict=True)]
    )
    order = (gain / time).sort(descending=True, stable=True).indices
    brought = sum(float(gains[name].double()[stays[name]].sum()) for name in names)
    spent = base + sum(times[name] * int(stays[name].sum()) for name in names)
    living = sum(int(alive.sum()) for alive in stays.values())
    number = min(_worthwhile(gain[order], time[order], brought, spent), max(most - living, 0))
    comes = torch.zeros(len(gain), dtype=torch.bool)
    comes[order[:number]] = True
    comes_in = dict(zip(names, comes.split(numbers), strict=True))
    return {name: stays[name].masked_scatter(~stays[name], comes_in[name]) for name in stays}


def _worthwhile(gain: Tensor, time: Tensor, brought: float, spent: float) -> int:
    """Return how many entries come in before the first that would not raise Gamma; with Gamma = 0 the first one comes in."""
    gammas = (brought + gain.cumsum(0) - gain) / (spent + time.cumsum(0) - time)
    refused = torch.nonzero(~(gain / time > gammas.nan_to_num(0.0)))  # 0 / 0: nothing lives yet
    return int(refused[0]) if len(refused) else len(gain)


def dense_time(times: Mapping[str, float], mask: Mask) -> float:
    """Return the time of all entries, dead or alive. times: of one entry, by layer."""
    return sum(times[name] * alive.numel() for name, alive in mask.items())


def layer_times(times: Mapping[str, float], names: tuple[str, ...], ends: Ends | None = None) -> dict[str, float]:
    """Return the time of one weight of each layer: 1, or that in `times`, by layer ("first", "last" or a name).

    Raises ConfigError where a time is not positive or no layer has the name.
    """
    wrong = {layer: time for layer, time in times.items() if not time > 0}
    if wrong:
        raise ConfigError([f"criterion.times={wrong}: the time of a weight is more than 0"])
    return dict.fromkeys(names, 1.0) | by_layer(times, names, ends)
