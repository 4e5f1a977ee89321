"""The tensors of a network, each under one name.

`state_dict()` lists a tensor once for each of its names: for tied weights (`b.weight = a.weight`), and for a module that is
reachable by two paths. Here it has the first of them, in the network's order, so that nothing is counted, sent, masked or
stepped twice. `call` with that one name changes it wherever it is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedprune.types import Params


def tensors_of(net: nn.Module) -> Params:
    """Return the network's parameters and persistent buffers, detached, in the order of `state_dict()`; each once."""
    return {name: tensor.detach() for name, tensor in _once(net)}


def copies(net: nn.Module) -> Params:
    """Return copies of all parameters and buffers, those that are not saved too: with them a call leaves no trace."""
    further = {*other_names(net)}
    buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers() if name not in further}
    parameters = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in net.named_parameters()}
    return buffers | parameters


def call(net: nn.Module, tensors: Mapping[str, Tensor], *inputs: Any) -> Any:
    """Return what the network puts out with these tensors, by their one names, in the place of its own, which stay as they are.

    torch.func.functional_call by itself leaves its tensors in a module that has two paths: it is put back once for each.
    """
    first: dict[int, str] = {}
    given = dict(tensors)
    for prefix, part in net.named_modules():
        start = f"{prefix}." if prefix else ""
        for own, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and first.setdefault(id(tensor), start + own) in tensors:
                given[start + own] = tensors[first[id(tensor)]]
    return functional_call(net, given, inputs, tie_weights=False)


def load_tensors(net: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Copy values into the network, in place. No storage is shared. Raises KeyError if one is missing."""
    with torch.no_grad():
        for name, tensor in tensors_of(net).items():
            tensor.copy_(params[name])


def other_names(net: nn.Module) -> dict[str, str]:
    """Return the further names of tensors that have several: {further name: the one name}. Non-persistent buffers have none."""
    first = {id(tensor): name for name, tensor in _once(net)}
    every = {name: tensor for prefix, part in net.named_modules(remove_duplicate=False) for name, tensor in _own(prefix, part)}
    return {name: first[id(tensor)] for name, tensor in every.items() if first[id(tensor)] != name}


def one_name(net: nn.Module, layer: str) -> str:
    """Return the path under which the tensors of a layer have their names: its own, or that of one with the same tensors."""
    for further, name in other_names(net).items():
        rest = further.removeprefix(layer)
        if further.startswith(f"{layer}."):
            return name.removesuffix(rest) if name.endswith(rest) else name.rpartition(".")[0]
    return layer


def in_one_memory(net: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of names of tensors that lie in the same memory, though they are no shared parameter.

    Those are parameters that were made of another one's data, whose values an optimizer would change twice; and buffers that
    are registered twice or are views of another tensor, which torch separates when it moves a network.
    """
    parameters = {id(parameter) for parameter in net.parameters()}
    spans = sorted(
        (*_span(tensor), name, id(tensor))
        for prefix, part in net.named_modules()
        for name, tensor in _own(prefix, part)
        if tensor.numel()
    )
    return [
        (name, other)
        for (place, _, end, name, one), (there, start, _, other, two) in itertools.pairwise(spans)
        if place == there and place and start < end and not (one == two and one in parameters)
    ]


def _span(tensor: Tensor) -> tuple[int, int, int]:
    """Return where a tensor lies: (its storage, the first byte of it, the byte after the last)."""
    last = sum((int(size) - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return tensor.untyped_storage().data_ptr(), start, start + (last + 1) * tensor.element_size()


def shared_by_layers(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the parameters that belong to more than one layer, by name: the layers. (One layer with two names is one.)"""
    owners: dict[int, list[str]] = {}
    for prefix, part in net.named_modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(prefix)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[key]: tuple(layers) for key, layers in owners.items() if len(layers) > 1}


def shared(net: nn.Module, names: Iterable[str]) -> str | None:
    """Return, as text, one of these parameters that several layers have, and which; None if each has one layer."""
    layers = shared_by_layers(net)
    told = [f"{name} is the same tensor in {' and '.join(layers[name])}" for name in names if name in layers]
    return told[0] if told else None


def _once(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (first name, tensor)."""
    seen: set[int] = set()
    for prefix, part in net.named_modules():
        for name, tensor in _own(prefix, part):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor


def _own(prefix: str, part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the parameters and persistent buffers of one module, without those of its parts."""
    start = f"{prefix}." if prefix else ""
    for name, parameter in part._parameters.items():
        if parameter is not None:
            yield start + name, parameter
    for name, buffer in part._buffers.items():
        if buffer is not None and name not in part._non_persistent_buffers_set:
            yield start + name, buffer
