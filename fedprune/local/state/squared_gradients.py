"""Squared gradients that a client adds up from round to round, and keeps until a prune event asks for them.

Of every prunable tensor, dead entries too, the sum over its rounds since the last event of the square of the round's gradient,
which is the sum over its steps. Jiang et al. 2022 (PruneFL).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from fedprune.precision import wide_zeros
from fedprune.types import ClientState, Params


def added(before: Params, gradients: Mapping[str, Tensor]) -> Params:
    """Return the sums after a round in which gradients added up to these. before: the sums before it."""
    return {name: gradient.square() + before.get(name, 0) for name, gradient in gradients.items()}


def sums(before: Params, like: Params) -> Params:
    """Return the sums of these tensors; zeros of those that have none yet."""
    return {name: before.get(name, wide_zeros(value)) for name, value in like.items()}


def forgotten(kept: Mapping[int, ClientState]) -> dict[int, ClientState]:
    """Return the states that clients keep once an event has asked for their sums: without these."""
    rest = {client: replace(state, squared_gradients={}) for client, state in kept.items()}
    return {client: state for client, state in rest.items() if not state.empty}
