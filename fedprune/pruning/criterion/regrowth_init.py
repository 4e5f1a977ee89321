"""The first values of grown weights (federated.regrown): `zero`, or the last value that they had on the `server`."""

from __future__ import annotations

import torch

from fedprune.types import Mask, Params, Subnet

RULES = ("zero", "server")


def last_values(subnet: Subnet, stale: Params) -> Params:
    """Return the value of every prunable entry: that of now, that when it died (stale), or 0 if it has never lived."""
    return {name: torch.where(alive, subnet.params[name], stale.get(name, 0)) for name, alive in subnet.mask.items()}


def of_the_dead(last: Params, mask: Mask) -> Params:
    """Return the last values of dead entries, and 0 for living ones: the values to remember."""
    return {name: torch.where(mask[name], 0, value) for name, value in last.items()}


def started(subnet: Subnet, grown: Mask, last: Params) -> Params:
    """Return the parameters, with `grown` entries at their last values."""
    return subnet.params | {name: torch.where(grown[name], last[name], subnet.params[name]) for name in last}
