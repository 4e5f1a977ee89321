"""How many live where it is not known beforehand: the adjustment of PruneFL, by what a weight brings per unit of its time.

Pure: dicts of tensors in, a mask out. Jiang, Wang, Valls, Ko, Lee, Leung & Tassiulas 2022, "Model pruning enables efficient
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


def kept(mask: Mask, scores: Scores, swap: float) -> Mask:
    """What stays without question: of each layer's living all but the fraction `swap` (to the nearest) of lowest scores."""
    living = {name: scores[name].double().masked_fill(~alive, -torch.inf) for name, alive in mask.items()}
    counts = {name: int(alive.sum()) for name, alive in mask.items()}
    return layerwise(living, {name: number - nearest(swap * number) for name, number in counts.items()})


def adjusted(stays: Mask, gains: Scores, times: Mapping[str, float], base: float, most: int) -> Mask:
    """`stays`, and of all other entries those that make the whole bring more per unit of time.

    gains: g^2 of each entry. Gamma = sum of the gains of what lives / (base + sum of its times), times by layer. In the order
    of gain / time an entry comes in as long as gain / time > Gamma, which that raises; and no more than `most` live in all.
    Ties go to the lower index of the alphabetically first name. In float64.
    """
    names = sorted(stays)
    others = {name: ~stays[name].flatten() for name in names}
    gain = torch.cat([gains[name].double().flatten()[others[name]] for name in names])
    time = torch.cat([torch.full((int(others[name].sum()),), times[name], dtype=torch.float64) for name in names])
    order = (gain / time).sort(descending=True, stable=True).indices
    brought = sum(float(gains[name].double()[stays[name]].sum()) for name in names)
    spent = base + sum(times[name] * int(stays[name].sum()) for name in names)
    living = sum(int(alive.sum()) for alive in stays.values())
    number = min(_worthwhile(gain[order], time[order], brought, spent), max(most - living, 0))
    comes = torch.zeros(len(gain), dtype=torch.bool)
    comes[order[:number]] = True
    parts = dict(zip(names, comes.split([int(others[name].sum()) for name in names]), strict=True))
    return {name: stays[name].masked_scatter(~stays[name], parts[name]) for name in stays}


def _worthwhile(gain: Tensor, time: Tensor, brought: float, spent: float) -> int:
    """How many come in before the first that would not raise Gamma; the first of all does if nothing has brought anything."""
    gammas = (brought + gain.cumsum(0) - gain) / (spent + time.cumsum(0) - time)
    refused = torch.nonzero(~(gain / time > gammas.nan_to_num(0.0)))  # 0 / 0: nothing lives yet
    return int(refused[0]) if len(refused) else len(gain)


def layer_times(times: Mapping[str, float], names: tuple[str, ...], ends: Ends | None = None) -> dict[str, float]:
    """The time of one weight of each layer: 1, but for layers ("first", "last" or a name) that `times` names. ConfigError."""
    wrong = {layer: time for layer, time in times.items() if not time > 0}
    if wrong:
        raise ConfigError([f"criterion.times={wrong}: the time of a weight is more than 0"])
    return dict.fromkeys(names, 1.0) | by_layer(times, names, ends)
