"""Convert checkpoints of torch.nn.utils.prune, which have `layer.weight_orig` and `layer.weight_mask` for `layer.weight`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.errors import DataError
from fedprune.pruning.mask import apply
from fedprune.types import Params, Subnet

ORIG, MASK = "_orig", "_mask"


def from_torch_prune(state: Mapping[str, Tensor]) -> Subnet:
    """Return the subnet of a state_dict with pruned layers, with the names of the network before it was pruned.

    Raises DataError, naming the tensor, if one of a pair is missing, or a mask is not of zeros and ones.
    """
    ends = [(name, end) for end in (ORIG, MASK) for name in state if name.endswith(end) and not _is_buffer(state, name)]
    names = {name.removesuffix(end): None for name, end in ends}
    for name in names:
        _check_pair(state, name)
    mask = {name: state[name + MASK].bool() for name in names}
    params: Params = {}
    for name, tensor in state.items():
        if not name.endswith(MASK) or name.removesuffix(MASK) not in names:
            params[name.removesuffix(ORIG) if name.removesuffix(ORIG) in names else name] = tensor.detach().clone()
    return Subnet(apply(params, mask), mask)


def to_torch_prune(subnet: Subnet) -> dict[str, Tensor]:
    """Return a state_dict for a network of which every tensor in the mask was pruned, by `prune.custom_from_mask` or
    `prune.identity`.

    Dead entries of a subnet are zero, so they are zero in `_orig` as well.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in subnet.params.items():
        alive = subnet.mask.get(name)
        state |= {name: tensor.clone()} if alive is None else {name + ORIG: tensor.clone(), name + MASK: alive.to(tensor.dtype)}
    return state


def _is_buffer(state: Mapping[str, Tensor], name: str) -> bool:
    """Return whether a `_mask` without its `_orig` is another buffer: masks of torch.nn.utils.prune are floating zeros and
    ones."""
    values = state[name]
    numbers = values.is_floating_point() and bool(((values == 0) | (values == 1) | values.isnan()).all())
    return name.endswith(MASK) and name.removesuffix(MASK) + ORIG not in state and not numbers


def _check_pair(state: Mapping[str, Tensor], name: str) -> None:
    for end, other in ((ORIG, MASK), (MASK, ORIG)):
        if name + end not in state:
            raise DataError(f"{name}{other} without {name}{end}: not a complete checkpoint of torch.nn.utils.prune")
    values, alive = state[name + ORIG], state[name + MASK]
    if values.shape != alive.shape or not torch.isin(alive.float(), torch.tensor([0.0, 1.0], device=alive.device)).all():
        raise DataError(f"{name}{MASK} is not a mask of {name}{ORIG}: it should have its shape, and only zeros and ones")
