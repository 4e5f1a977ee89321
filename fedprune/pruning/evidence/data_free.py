"""Evidence that is in the network itself: it needs no data, so the server has it at hand whatever `where` says.

Every function is (network, params, names) -> one tensor per name; `params` are all of the network's parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedprune.pruning.evidence.loss import Call, blank, calls, evaluated, owners, reads_characters
from fedprune.pruning.plain_layers import is_plain
from fedprune.pruning.what import others
from fedprune.pruning.what.layer_order import LayerOrder
from fedprune.tensors import call, tensors_of, tied_parameter
from fedprune.types import Params

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)

SCALED = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""Normalisations that multiply by their weight; what a subclass does with it (1 + weight, for one) is not known."""


@dataclass(frozen=True)
class Network:
    """The network as the server has it. shape: of one input, (C, H, W) of images or (T,) of sequences. order: that in which it
    runs its layers; None: as they are defined."""

    net: nn.Module
    shape: tuple[int, ...]
    order: LayerOrder | None = None

    def run(self, params: Params, inputs: Tensor) -> Any:
        """Its outputs at other parameters and buffers, in evaluation mode: a tensor, or whatever its forward returns."""
        with evaluated(self.net):
            return call(self.net, params, inputs)


def flow_grads(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """dR / d|w|, R the sum of the outputs (all of them, if there are several) for an input of ones, with every weight, bias and
    buffer replaced by its absolute value. In float64, since flows grow with every layer; BatchNorm normalises with its running
    statistics."""
    state = {name: value.abs().double() if value.is_floating_point() else value for name, value in params.items()}
    wanted = [state[name].requires_grad_() for name in names]
    outputs = tensors_in(network.run(state, torch.ones(1, *network.shape, dtype=torch.float64)))
    flow = torch.stack([output.sum() for output in outputs if output.is_floating_point()]).sum()
    return dict(zip(names, torch.autograd.grad(flow, wanted, materialize_grads=True), strict=True))


def scales(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """|gamma| of the normalisation that takes in a layer's outputs directly, spread over the entries that make each output.

    Zero for layers that none follows (build refuses to score those).
    """
    gammas = {name: params[f"{norm}.weight"].abs() for name, norm in normalised(network, names).items()}
    return {name: spread(gammas[name], params[name]) if name in gammas else torch.zeros_like(params[name]) for name in names}


def filter_scales(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """As `scales`, for criteria that go by them in convolutions alone: linear layers need no normalisation."""
    return scales(network, params, names)


def unscaled(network: Network, names: tuple[str, ...]) -> str | None:
    """Why `scales` of these layers are not to be had, or None."""
    scaled = normalised(network, names)
    without = [name.removesuffix(".weight") for name in names if name not in scaled]
    if not without:
        return None
    if len(without) == len(names):
        return "no layer that may be pruned is followed by a normalisation: choose model=resnet20, or criterion=filter_norm"
    return f"no normalisation follows {', '.join(without)}: choose what.skip=[{','.join(without)}], or criterion=filter_norm"


def unscaled_filters(network: Network, names: tuple[str, ...]) -> str | None:
    """Why `filter_scales` of these layers are not to be had, or None."""
    state, scaled = tensors_of(network.net), normalised(network, names)
    without = [name.removesuffix(".weight") for name in names if name not in scaled and state[name].dim() > 2]
    if not without:
        return None
    return f"no normalisation follows {some(without)}: choose {batch_or(network.net)}model=resnet20, or criterion=magnitude"


def no_flow(network: Network, names: tuple[str, ...]) -> str | None:
    """Why `flow_grads` mean nothing in this network, or None."""
    if reads_characters(network.net, network.shape):
        return "flow starts from an input of ones, and characters are no numbers to add up: choose criterion=snip"
    stuck = [
        f"{name} ({type(layer).__name__})"
        for name, layer in network.net.named_modules()
        if isinstance(layer, NORMS) and getattr(layer, "running_mean", None) is None
    ]
    if not stuck:
        return None
    return f"{some(stuck)} would divide the flow by itself: choose {batch_or(network.net)}criterion=snip"


def puts_out(network: Network, names: tuple[str, ...]) -> str | None:
    """Why what these layers put out are not all activations, or None: one gives the network's own outputs, or is not one whose
    rows each put out something."""
    rowless = others(network.net, names)
    if rowless:
        told = some([f"{name} ({type(layer).__name__})" for name, layer in rowless.items()])
        left = [name for name in names if name.rpartition(".")[0] not in rowless]
        kinds = "what.layers=[conv,linear] or " if len(left) > 1 else ""  # the last one left puts out the network's outputs
        return f"rows of {told} put out no activation of their own: choose {kinds}criterion=taylor"
    tied = tied_parameter(network.net, names)
    if tied:
        return f"{tied}, whose units put out one thing in each: choose criterion=taylor"
    with torch.no_grad(), calls(owners(network.net, names)) as seen:
        outputs = tensors_in(network.run(tensors_of(network.net), blank(network.net, network.shape)))
    memory = {output.untyped_storage().data_ptr() for output in outputs}  # outputs may be a view, as those of sequences are
    makes = {name: {call.passed.untyped_storage().data_ptr() for call in seen[name]} for name in names}
    layers = owners(network.net, names)
    hidden = [name for name in names if not _shows_units(layers[name], seen[name])]
    if hidden:
        uncalled = [f"{name.removesuffix('.weight')} ({type(layers[name]).__name__})" for name in hidden]
        skip = ",".join(name.removesuffix(".weight") for name in hidden)
        what = f"{some(uncalled)} is not called as a layer that puts out its units"
        return f"{what}: choose what.skip=[{skip}], or criterion=taylor"
    last = [name.removesuffix(".weight") for name in names if memory & makes[name]]
    if not last:
        return None
    instead = f"what.skip=[{last[0]}]" if len(names) > len(last) else "criterion=taylor"
    return f"what {last[0]} puts out are the network's outputs, and none is idle: choose {instead}"


def _shows_units(layer: nn.Module, seen: list[Call]) -> bool:
    """Return whether a layer was called, and each time put out one value, or image, for each row of its weight."""
    rows: int = len(layer.weight)  # type: ignore[arg-type]
    return bool(seen) and all(call.output.dim() > 1 and call.output.shape[dim_of_units(layer)] == rows for call in seen)


def dim_of_units(layer: nn.Module) -> int:
    """Return the dimension of a layer's outputs in which its units are."""
    return -1 if isinstance(layer, nn.Linear) else 1


def tensors_in(outputs: Any) -> list[Tensor]:
    """Return the tensors in what a network puts out: one, or those of a dict, a tuple or the like."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def batch_or(net: nn.Module) -> str:
    """Return the piece of advice `model.norm=batch or `, where the model has that key and that value of it."""
    return "model.norm=batch or " if offers(net, "batch") else ""


def offers(net: nn.Module, norm: str) -> bool:
    """Whether the key `norm` of the network's model takes this value: models of ours note on their networks what it takes."""
    return norm in getattr(net, "norms", ())


def some(parts: list[str], number: int = 3) -> str:
    """The first of a list, and how many more there are: for messages."""
    return ", ".join(parts[:number]) + (f" and {len(parts) - number} more" if len(parts) > number else "")


def normalised(network: Network, names: tuple[str, ...]) -> dict[str, str]:
    """The normalisation with a scale that takes in the outputs of the layer of each name; only the layers that have one."""
    names = tuple(name for name in names if not tied_parameter(network.net, (name,)))  # of several layers, nothing follows all
    layers = owners(network.net, names)
    norms = {name: norm for name, norm in normalisations(network.net).items() if is_plain(norm, SCALED)}
    with torch.no_grad(), calls(layers | norms) as seen:
        network.run(tensors_of(network.net), blank(network.net, network.shape))
    return followers(seen, names, tuple(norms))


def normalisations(net: nn.Module) -> dict[str, nn.Module]:
    """The layers that scale each unit by a parameter, by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, NORMS) and layer.weight is not None}


def followers(seen: Mapping[str, list[Call]], names: tuple[str, ...], norms: tuple[str, ...]) -> dict[str, str]:
    """Which of `norms` takes in just what the layer of a name puts out."""
    makers = {id(call.passed): name for name in names for call in seen[name]}
    pairs = ((makers.get(id(call.inputs)), norm) for norm in norms for call in seen[norm])
    return {name: norm for name, norm in pairs if name is not None}


def spread(units: Tensor, like: Tensor) -> Tensor:
    """One value per output unit, at every entry that produces it: [O] -> the shape [O, ...] of `like`."""
    return units.view(-1, *[1] * (like.dim() - 1)).expand(like.shape).clone()
