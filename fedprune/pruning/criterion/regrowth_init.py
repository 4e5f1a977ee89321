"""What grown weights start from (federated.regrown): `zero`, or the last value that they had on the `server`."""

from __future__ import annotations

import torch

from fedprune.types import Mask, Params, Subnet

RULES = ("zero", "server")


def last_values(subnet: Subnet, stale: Params) -> Params:
    """Of every prunable entry the value that it has, or had when it died; 0 if it has never lived. stale: those of the dead."""
    return {name: torch.where(alive, subnet.params[name], stale.get(name, 0)) for name, alive in subnet.mask.items()}


def of_the_dead(last: Params, mask: Mask) -> Params:
    """The last values of what is dead, and 0 for what lives: what there is to remember."""
    return {name: torch.where(mask[name], 0, value) for name, value in last.items()}


def started(subnet: Subnet, grown: Mask, last: Params) -> Params:
    """The parameters, in which what is `grown` starts from its last value."""
    return subnet.params | {name: torch.where(grown[name], last[name], subnet.params[name]) for name in last}
