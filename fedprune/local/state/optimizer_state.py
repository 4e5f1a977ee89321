"""An optimizer's state as tensors by name, so that a client can keep it from one of its rounds to the next.

`optimizer:number:key`: the number is that of the parameter, in the optimizer's own order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.types import Params

PREFIX = "optimizer:"  # no tensor of a network has a colon in its name


def of(optimizer: torch.optim.Optimizer, masks: Mapping[Tensor, Tensor]) -> Params:
    """What the optimizer remembers, on the CPU. `masks`, by parameter: the dead are forgotten, so that what grows starts anew.

    Raises ConfigError for an optimizer that remembers more than tensors and numbers.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found: Params = {}
    for number, parameter in enumerate(parameters):
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[name_of(number, key)] = _tensor(optimizer, value, masks.get(parameter))
    return found


def resume(optimizer: torch.optim.Optimizer, kept: Params) -> None:
    """Give a fresh optimizer the state that `of` took from one like it, if there is any."""
    if not kept:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {key: _copied(tensor, parameters[number]) for key, tensor in values.items()}
        for number, values in by_parameter(kept).items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _copied(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy (load_state_dict makes one only where it must), laid out as the parameter is: fused optimizers go by that."""
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if tensor.shape == parameter.shape else tensor.clone()


def by_parameter(kept: Params) -> dict[int, dict[str, Tensor]]:
    """The state of each parameter that has one, by its number."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in kept.items():
        _, number, key = name.split(":", 2)
        state.setdefault(int(number), {})[key] = tensor
    return state


def name_of(number: int, key: str) -> str:
    """What the state `key` of a parameter is called."""
    return f"{PREFIX}{number}:{key}"


def part(kept: Params) -> Params:
    """Of what a client kept, the optimizer's part."""
    return {name: tensor for name, tensor in kept.items() if name.startswith(PREFIX)}


def _tensor(optimizer: torch.optim.Optimizer, value: object, mask: Tensor | None) -> Tensor:
    if isinstance(value, int | float):
        return torch.tensor(value)
    if not isinstance(value, Tensor):
        raise ConfigError(
            [f"federated.optimizer_state=kept: {type(optimizer).__name__} keeps more than tensors; choose another optimizer"]
        )
    value = value * mask if mask is not None and value.shape == mask.shape else value
    return value.detach().to("cpu", copy=True)
