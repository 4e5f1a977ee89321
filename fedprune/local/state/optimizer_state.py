"""An optimizer's state as tensors, so that a client can keep it from one of its rounds to the next.

It is a dict of dicts: by the number of a parameter in the optimizer's own order, then by the optimizer's name of the tensor
(`momentum_buffer`, `exp_avg`, `step`). Numbers are tensors of shape [].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.types import Params

OptimizerState = Mapping[int, Params]


def state_of(optimizer: torch.optim.Optimizer, masks: Mapping[Tensor, Tensor]) -> dict[int, Params]:
    """Return the optimizer's state, on the CPU. masks: by parameter, zeros and ones; the state of dead entries is zero, so that
    an entry that is grown again starts anew.

    Raises ConfigError for an optimizer whose state is more than tensors and numbers.
    """
    found: dict[int, Params] = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        state, mask = optimizer.state.get(parameter, {}), masks.get(parameter)
        tensors = {key: _tensor(optimizer, value, mask) for key, value in state.items() if value is not None}
        if tensors:
            found[number] = tensors
    return found


def resume(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Give a fresh optimizer the state that `state_of` took from one like it, if there is any."""
    if not state:
        return
    parameters = _parameters(optimizer)
    copies = {
        number: {key: _copied(tensor, parameters[number]) for key, tensor in tensors.items()}
        for number, tensors in state.items()
    }
    optimizer.load_state_dict({"state": copies, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copied(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy (load_state_dict makes one only where it must) with the parameter's strides, by which fused steps go."""
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if tensor.shape == parameter.shape else tensor.clone()


def _tensor(optimizer: torch.optim.Optimizer, value: object, mask: Tensor | None) -> Tensor:
    if isinstance(value, int | float):
        return torch.tensor(value)
    if not isinstance(value, Tensor):
        raise ConfigError(
            [f"federated.optimizer_state=kept: {type(optimizer).__name__} keeps more than tensors; choose another optimizer"]
        )
    value = value * mask if mask is not None and value.shape == mask.shape else value
    return value.detach().to("cpu", copy=True)
