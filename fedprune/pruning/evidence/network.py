"""A network that is looked at: the outputs and the calls of its layers, without a trace.

Networks are called at copies of parameters and buffers; flags and hooks are put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from fedprune.pruning.what.layer_order import LayerOrder
from fedprune.tensors import call
from fedprune.types import Params


@dataclass(frozen=True)
class Network:
    """A network and what its inputs are.

    shape: of one input, (C, H, W) of images or (T,) of sequences. order: the order in which the network runs its layers; None:
    as they are defined.
    """

    net: nn.Module
    shape: tuple[int, ...]
    order: LayerOrder | None = None

    def run(self, params: Params, inputs: Tensor) -> object:
        """Return the outputs at other parameters and buffers, in evaluation mode: a tensor, or whatever the forward returns."""
        with evaluated(self.net):
            return call(self.net, params, inputs)


def reads_characters(net: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether the network's inputs are sequences (T,) of the numbers of characters, and not of floats."""
    return len(shape) == 1 and any(isinstance(layer, nn.Embedding) for layer in net.modules())


def blank(net: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return a batch of one input of zeros, of the type that the network takes."""
    return torch.zeros(1, *shape, dtype=torch.int64 if reads_characters(net, shape) else torch.float32)


def tensors_in(outputs: object) -> list[Tensor]:
    """Return the tensors among a network's outputs: one, or those of a dict, a tuple or the like."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def evaluated(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which the module is in evaluation mode; every part has its own flag again afterwards."""
    return _in_mode(module, train=False)


def training(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which the module is in training mode; every part has its own flag again afterwards."""
    return _in_mode(module, train=True)


@contextmanager
def _in_mode(module: nn.Module, train: bool) -> Iterator[None]:
    flags = [(part, part.training) for part in module.modules()]
    module.train(train)
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag


@contextmanager
def differentiable() -> Iterator[None]:
    """Compute attention by plain operations, which have all derivatives; the fused ones have only the first."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class Call(NamedTuple):
    """One call of a layer.

    inputs: the first of the arguments. output: the tensor that came out. passed: the copy of it that was passed on, which may
    be written to.
    """

    inputs: Any
    output: Tensor
    passed: Tensor


@contextmanager
def calls(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Note every call of these layers, by the layer's name. A call that puts out anything but one tensor is left out."""
    seen: dict[str, list[Call]] = {name: [] for name in layers}

    def note(name: str, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):  # recurrent layers and attention put out more
            return output
        seen[name].append(Call(next(iter([*args, *kwargs.values()]), None), output, output.clone()))
        return seen[name][-1].passed

    hooks = [
        layer.register_forward_hook(
            lambda _, args, kwargs, output, name=name: note(name, args, kwargs, output), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def owners(net: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the layer that each of these tensors belongs to, by the tensor's name."""
    return {name: net.get_submodule(name.rpartition(".")[0]) for name in names}


def dim_of_units(layer: nn.Module) -> int:
    """Return the dimension of a layer's outputs in which its units are."""
    return -1 if isinstance(layer, nn.Linear) else 1


def first_few(parts: list[str], number: int = 3) -> str:
    """Return the first of a list, and how many more there are, as text for a message."""
    return ", ".join(parts[:number]) + (f" and {len(parts) - number} more" if len(parts) > number else "")


def batch_or(net: nn.Module) -> str:
    """Return the piece of advice `model.norm=batch or `, where the model has that key and that value of it."""
    return "model.norm=batch or " if offers(net, "batch") else ""


def offers(net: nn.Module, norm: str) -> bool:
    """Return whether the key `norm` of the network's model takes this value: our models note its values on their networks."""
    return norm in getattr(net, "norms", ())
