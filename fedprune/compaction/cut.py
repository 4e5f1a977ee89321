"""Copies of layers with some of their channels, whose parameters get their values later: in training (module.py)."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from fedprune.compaction.resize import count


def shallow_copy(module: nn.Module) -> nn.Module:
    """Return a copy with the same parameters, and buffers of its own. (deepcopy takes milliseconds.)"""
    copied = copy.copy(module)
    copied.__dict__["_parameters"] = dict(module._parameters)
    copied.__dict__["_buffers"] = {name: None if value is None else value.clone() for name, value in module._buffers.items()}
    copied.__dict__["_modules"] = {name: None if part is None else shallow_copy(part) for name, part in module._modules.items()}
    return copied


def own_parameters(module: nn.Module, others: set[nn.Parameter]) -> None:
    """Put copies in the place of these parameters."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter in others:
                part._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def part_of(layer: nn.Module, rows: Tensor, columns: Tensor | None = None, without: str = "") -> nn.Module:
    """Return a layer with some of its channels. without: the parameter that it loses."""
    part = shallow_copy(layer)
    if without:
        part._parameters[without] = None
    cut(part, rows, columns)
    return part


def cut(layer: nn.Module, rows: Tensor, columns: Tensor | None = None) -> None:
    """Leave a layer only these channels, in place. Its parameters are new, and have no values yet."""
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            width = len(columns) if columns is not None and name == "weight" else None
            layer._parameters[name] = empty(parameter, len(rows), width)
    for name, value in layer._buffers.items():
        if value is not None and value.dim():
            layer._buffers[name] = value[: len(rows)].clone()
    count(layer, {"out": len(rows)} if columns is None else {"out": len(rows), "in": len(columns)})


def empty(parameter: nn.Parameter, rows: int, columns: int | None = None) -> nn.Parameter:
    """Return a parameter without values, with so many rows and columns (None: all)."""
    shape = (rows, *parameter.shape[1:]) if columns is None else (rows, columns, *parameter.shape[2:])
    return nn.Parameter(parameter.detach().new_empty(shape), parameter.requires_grad)
