"""What a client adds up about its gradients from round to round, and keeps to itself until a prune event asks for it.

Of every prunable tensor, dead entries too, the sum over its rounds since the last event of the square of the round's gradient,
which is the sum over its steps. Jiang et al. 2022 (PruneFL). `accumulated:name` is the sum for the tensor of that name.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedprune.precision import wide_zeros
from fedprune.types import Params

PREFIX = "accumulated:"  # no tensor of a network has a colon in its name


def added(kept: Params, gradients: Mapping[str, Tensor]) -> Params:
    """The sums after a round in which gradients added up to these. kept: what the client kept, other things too."""
    return {f"{PREFIX}{name}": g.square() + kept.get(f"{PREFIX}{name}", 0) for name, g in gradients.items()}


def sums(kept: Params, like: Params) -> Params:
    """The sums by the tensors' own names; zeros if there are none yet."""
    return {name: kept.get(f"{PREFIX}{name}", wide_zeros(value)) for name, value in like.items()}


def part(kept: Params) -> Params:
    """Of what a client kept, the sums."""
    return {name: tensor for name, tensor in kept.items() if name.startswith(PREFIX)}


def forgotten(kept: Mapping[int, Params]) -> dict[int, Params]:
    """What clients keep once an event has asked for their sums: all the rest."""
    rest = {client: {n: t for n, t in own.items() if not n.startswith(PREFIX)} for client, own in kept.items()}
    return {client: own for client, own in rest.items() if own}
