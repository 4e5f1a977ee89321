"""The layers of a network whose weights can be pruned, by their kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from fedprune.tensors import other_names

LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "linear": (nn.Linear,),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "attention": (nn.MultiheadAttention,),
    "embedding": (nn.Embedding,),
}
"""The kinds of layer. Recurrent weights are `weight_ih_l0`, `weight_hh_l0`, ...; attention's are `in_proj_weight`
(or `q_proj_weight`, `k_proj_weight`, `v_proj_weight`) and `out_proj.weight`."""

CHANNELLED = ("conv", "linear")
"""Kinds whose weight is [outputs, inputs, ...], and whose forward does no more than apply it."""


def prunable(net: nn.Module, kinds: Sequence[str] = tuple(LAYERS)) -> dict[str, tuple[str, ...]]:
    """Return the weights of the layers of these kinds, by the layer's name, in the order of definition.

    The order in which the network runs its layers is another one, see layer_order.py. A weight that two layers share (tied
    weights) is that of the first.
    """
    further = other_names(net)
    weights_by_layer = {
        layer: tuple(weight for weight in weights if weight not in further) for layer, weights in weights_of(net, kinds).items()
    }
    return {layer: weights for layer, weights in weights_by_layer.items() if weights}


def weights_of(net: nn.Module, kinds: Sequence[str] = tuple(LAYERS)) -> dict[str, tuple[str, ...]]:
    """Return the weights of the layers of these kinds, by the layer's name. A weight that two layers share is under both."""
    projections = {id(layer.out_proj) for layer in net.modules() if isinstance(layer, nn.MultiheadAttention)}
    return {
        name: tuple(f"{name}.{weight}".removeprefix(".") for weight in _weights(layer))
        for name, layer in net.named_modules()
        if id(layer) not in projections and kind_of(layer) in kinds
    }


def kind_of(layer: nn.Module) -> str | None:
    """Return the kind of a layer, or None."""
    return next((kind for kind, types in LAYERS.items() if isinstance(layer, types)), None)


def others(net: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the layers of these weights that are neither convolutions nor linear, by name."""
    layers = [name for name, weights in prunable(net).items() if set(weights) & set(names)]
    modules = {name: net.get_submodule(name) for name in layers}
    return {name: layer for name, layer in modules.items() if kind_of(layer) not in CHANNELLED}


def computed(net: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the problems of weights that are no parameters, but computed from others at every call, so that no mask holds."""
    parameters, problems = dict(net.named_parameters()), []
    for name in (name for name in names if name not in parameters):
        layer = name.rpartition(".")[0]
        sources = [source for source in parameters if source.startswith(f"{layer}.") and source != f"{layer}.bias"]
        kind = type(net.get_submodule(layer)).__name__
        problems.append(
            f"layer {layer} ({kind}) computes its weight from {' and '.join(sources)} at every call (weight_norm and such), "
            f"so no mask of it holds: choose what.skip=[{layer}], or a model without"
        )
    return problems


def _weights(layer: nn.Module) -> Iterator[str]:
    """Yield the names of a layer's weights, without the layer's own."""
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        yield from (name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight_"))
    elif isinstance(layer, nn.MultiheadAttention):
        yield from (name for name, _ in layer.named_parameters(recurse=False) if name.endswith("proj_weight"))
        yield "out_proj.weight"
    else:
        yield "weight"
