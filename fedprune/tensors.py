"""The tensors of a network, each under one name.

`state_dict()` lists a tensor once for each of its names: of tied weights (`b.weight = a.weight`), and of a module that is
reachable by two paths. Here a tensor has only its first name in the network's order, so that nothing is counted, sent, masked
or stepped twice. `call` with that name replaces it wherever it is used.
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
    """Return copies of all parameters and buffers, also of those that are not saved: a `call` with them changes nothing."""
    repeated = {*other_names(net)}
    buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers() if name not in repeated}
    parameters = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in net.named_parameters()}
    return buffers | parameters


def call(net: nn.Module, tensors: Mapping[str, Tensor], *inputs: Any) -> Any:
    """Return the network's outputs with these tensors, by their one names, in place of its own, which stay as they are.

    torch.func.functional_call alone would leave them in a module that has two paths: it restores a module once for each path.
    """
    first_names: dict[int, str] = {}
    replaced = dict(tensors)
    for prefix, module in net.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and first_names.setdefault(id(tensor), start + name) in tensors:
                replaced[start + name] = tensors[first_names[id(tensor)]]
    return functional_call(net, replaced, inputs, tie_weights=False)


def load_tensors(net: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Copy values into the network, in place. No storage is shared. Raises KeyError if one is missing."""
    with torch.no_grad():
        for name, tensor in tensors_of(net).items():
            tensor.copy_(params[name])


def other_names(net: nn.Module) -> dict[str, str]:
    """Return {further name: the one name} of tensors that have several names. Non-persistent buffers are left out."""
    first_names = {id(tensor): name for name, tensor in _once(net)}
    paths = net.named_modules(remove_duplicate=False)
    every = {name: tensor for prefix, module in paths for name, tensor in _direct(prefix, module)}
    return {name: first_names[id(tensor)] for name, tensor in every.items() if first_names[id(tensor)] != name}


def one_name(net: nn.Module, layer: str) -> str:
    """Return the path under which the tensors of a layer are named: its own, or that of a layer with the same tensors."""
    for repeated, name in other_names(net).items():
        rest = repeated.removeprefix(layer)
        if repeated.startswith(f"{layer}."):
            return name.removesuffix(rest) if name.endswith(rest) else name.rpartition(".")[0]
    return layer


def in_one_memory(net: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of names of tensors that lie in the same memory, though they are not one tied parameter.

    These are parameters that were made of another one's data, whose values an optimizer would change twice; and buffers that
    are registered twice or are views of another tensor, which torch separates when it moves a network.
    """
    parameters = {id(parameter) for parameter in net.parameters()}
    spans = sorted(
        (*_span(tensor), name, id(tensor))
        for prefix, module in net.named_modules()
        for name, tensor in _direct(prefix, module)
        if tensor.numel()
    )
    return [
        (name, next_name)
        for (storage, _, end, name, tensor), (next_storage, start, _, next_name, next_tensor) in itertools.pairwise(spans)
        if storage == next_storage and storage and start < end and not (tensor == next_tensor and tensor in parameters)
    ]


def _span(tensor: Tensor) -> tuple[int, int, int]:
    """Return the memory of a tensor: (its storage, the first byte in it, the byte after the last)."""
    last = sum((int(size) - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return tensor.untyped_storage().data_ptr(), start, start + (last + 1) * tensor.element_size()


def tied_layers(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return {parameter: its layers} of each parameter that several layers have. A layer with two paths counts once."""
    owners: dict[int, list[str]] = {}
    for prefix, module in net.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(prefix)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[key]: tuple(layers) for key, layers in owners.items() if len(layers) > 1}


def tied_parameter(net: nn.Module, names: Iterable[str]) -> str | None:
    """Return a text that names the first of these parameters that several layers have, and the layers; None if there is
    none."""
    layers = tied_layers(net)
    tied = next((name for name in names if name in layers), None)
    return None if tied is None else f"{tied} is the same tensor in {' and '.join(layers[tied])}"


def _once(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (first name, tensor)."""
    seen: set[int] = set()
    for prefix, module in net.named_modules():
        for name, tensor in _direct(prefix, module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor


def _direct(prefix: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the parameters and persistent buffers of one module, without those of its children."""
    start = f"{prefix}." if prefix else ""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield start + name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield start + name, buffer


def unlike(given: object, like: Mapping[str, Tensor], exactly: bool = True) -> str | None:
    """Return in what a value differs by names and shapes from a dict of tensors, or None: the rest of a sentence.

    exactly: whether it may have no other names.
    """
    if not isinstance(given, Mapping):
        return f"gives {_kind(given)} and no dict of tensors by name"
    for name, tensor in like.items():
        if name not in given:
            return f"gives nothing for {name}, which is of shape {list(tensor.shape)}"
        value = given[name]
        if not isinstance(value, Tensor):
            return f"gives {_kind(value)} for {name}, and no tensor of shape {list(tensor.shape)}"
        if value.shape != tensor.shape:
            return f"gives a tensor of shape {list(value.shape)} for {name}, which is of shape {list(tensor.shape)}"
    others = [str(name) for name in given if name not in like] if exactly else []
    return f"gives {', '.join(others[:3])}, which the network has not" if others else None


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
