"""A check that a mask takes effect: that a zero in a weight is a zero in the factor that the network multiplies by.

A layer may compute its factors from its weight. One that divides a row by its norm (cosine similarity, weight normalisation)
leaves zeros where they are. One that standardises, (w - mean) / std, turns a zero into -mean / std: a mask on its weight
changes the others a little, and takes nothing away. No list of classes could tell, so the network is run once on weights of
which every other unit is dead, and each product that it computes is looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fedprune.pruning.evidence.network import Network, blank, first_few
from fedprune.pruning.mask import apply
from fedprune.pruning.what.unit import Unit, spread
from fedprune.tensors import tensors_of
from fedprune.types import Function

PRODUCTS = {
    *(
        "linear",
        "bilinear",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "mv",
        "addmm",
        "baddbmm",
        "einsum",
        "tensordot",
    ),
    *("conv1d", "conv2d", "conv3d", "convolution", "embedding", "embedding_bag"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "inner", "dot"),
    *("gru", "lstm", "rnn_tanh", "rnn_relu", "gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    *("multi_head_attention_forward", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
}
"""Functions that multiply activations by weights."""

ARRANGED = {
    *("t", "transpose", "permute", "movedim", "swapaxes", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("view_as", "reshape_as", "expand_as", "expand", "__getitem__", "chunk", "split", "unbind", "narrow", "select", "flip"),
}
"""Functions that rearrange entries, and leave their values as they are."""

TRANSPOSES = tuple(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH"))


def without_effect(network: Network, names: tuple[str, ...], unit: Unit) -> list[str]:
    """Return those of the named weights on which a mask of such units takes no effect, in their order."""
    params = tensors_of(network.net)
    alive = {name: every_other(params[name], unit) for name in names}
    masked = {name: value.detach().clone() for name, value in apply(params, alive).items()}
    with torch.no_grad(), _Products({id(masked[name]): (name, masked[name], ~alive[name]) for name in names}) as products:
        network.run(masked, blank(network.net, network.shape))
    return [name for name in names if name in products.found]


def problems(network: Network, names: tuple[str, ...], unit: Unit) -> list[str]:
    """Return the problems of pruning these weights by a mask, with the layers and what to choose instead."""
    astray = without_effect(network, names, unit)
    if not astray:
        return []
    layers = [name.removesuffix(".weight") for name in astray]
    instead = f"what.skip=[{','.join(layers)}]" if len(astray) < len(names) else "another model, or how_often=never"
    modules = [network.net.get_submodule(layer.rpartition(".weight")[0] or layer) for layer in layers]
    told = first_few([f"{layer} ({type(module).__name__})" for layer, module in zip(layers, modules, strict=True)])
    return [
        f"a mask takes no effect on {told}: where the weight is 0, what the network multiplies by is not (as where a forward "
        f"standardises its weights), or is no number: choose {instead}"
    ]


def every_other(weight: Tensor, unit: Unit) -> Tensor:
    """Return a mask of every other unit, as on a chessboard; the first lives."""
    grid = unit(weight.detach().abs())
    places = torch.meshgrid(*(torch.arange(size) for size in grid.shape), indexing="ij")
    return spread(torch.stack(places).sum(0) % 2 == 0, weight.shape)


class _Products(TorchFunctionMode):
    """A context that follows weights through the tensors that are computed from them.

    marks: by a tensor's id, (name of the weight, tensor, where it should be zero). found: the names of the weights that are not
    zero there when activations are multiplied by them.
    """

    def __init__(self, marks: dict[int, tuple[str, Tensor, Tensor]]):
        super().__init__()
        self.marks, self.found = dict(marks), set[str]()

    def __torch_function__(
        self, func: Function, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and id(leaf) in self.marks]
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if given and (name in PRODUCTS or self._is_broadcast(name, given[0], result)):
            self.found |= {self.marks[id(weight)][0] for weight in given if self._is_alive(weight)}
        elif given and (name in ARRANGED or func in TRANSPOSES) and args and args[0] is given[0]:
            dead = func(self.marks[id(given[0])][2], *args[1:], **kwargs)
            self._follow(given[0], tree_leaves(result), tree_leaves(dead))
        elif given and isinstance(result, Tensor) and result.shape == given[0].shape:
            self._follow(given[0], [result], [self.marks[id(given[0])][2]])
        return result

    def _is_alive(self, weight: Tensor) -> bool:
        """Return whether a weight is not zero where it should be."""
        return bool((weight[self.marks[id(weight)][2]] != 0).any())  # NaN is not 0 either

    def _is_broadcast(self, name: str, weight: Tensor, result: Tensor) -> bool:
        """Return whether activations are multiplied by a weight entry by entry, as in (x[:, None] * w).sum(2)."""
        return name in ("mul", "multiply", "__mul__", "__rmul__") and result.shape != weight.shape

    def _follow(self, weight: Tensor, results: list[Tensor], dead: list[Tensor]) -> None:
        for result, places in zip(results, dead, strict=True):
            # The result is held here, so that its id is given to no other.
            self.marks[id(result)] = (self.marks[id(weight)][0], result, places)
