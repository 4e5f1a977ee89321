"""Regularisers: what `local.penalty` and `local.dropout` add to a client's training, so that weights get ready to be pruned.

A Regulariser can do four things: add a term to the loss of every batch; run layers in another way (with noise) in training;
give each prunable weight a companion, a parameter that is trained with it (see evidence/gates.py); and say which network is in
use between two steps. Only steps of training see the noise and the term. Evaluation and evidence see the network in use; where
layers run in another way that is no noise but part of the network (`permanent`), evaluation and evidence run them so, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.precision import WIDER, wide
from fedprune.pruning.evidence import needs
from fedprune.pruning.evidence.gates import CHOOSE, Companion, add, companion, fold
from fedprune.pruning.what.layer_order import LayerOrder
from fedprune.types import Mask, Params

Formula = Callable[..., Tensor]
"""Tensors by the names of its arguments (see PIECES) -> a scalar."""

Forward = Callable[[nn.Module, Tensor], Tensor]
"""(layer, its inputs) -> its outputs."""

Forwards = dict[str, Forward]
"""The forwards of some layers, by the layer's name; "" is the network itself."""

Term = Callable[[], Tensor]
"""-> the term of the loss, a scalar, for the network's parameters as they are when it is called."""


@dataclass(frozen=True)
class Regulariser:
    """The additions of one option to training. Whatever is None is not added.

    formula: its value times `strength` is added to the mean loss of each batch.
    layers: (net, mask) -> how some layers run in training; all others run as always.
    companion: the parameter that each prunable weight gets beside it.
    used: (parameters, names of the prunable) -> the parameters of the network that is in use between two steps.
    paired: like `layers`, together with a term of the loss about the batch that has just run.
    obstacle: net -> why this network cannot be trained so, or None.
    ordered: whether `layers` and `paired` take an argument `order`, the order in which the network runs its layers.
    steps, rounds: the strength rises from 0 in `steps` equal steps over `rounds` rounds; with steps = 0 it is constant.
    permanent: whether `layers` belongs to the network that is trained, and so holds in evaluation and evidence as well.
    of_any_layer: whether `layers` changes only the inputs or outputs of a layer, and so is right for any forward.
    of_classes: whether it takes labels that are classes.
    """

    formula: Formula | None = None
    strength: float = 0.0
    layers: Callable[..., Forwards] | None = None
    companion: Companion | None = None
    used: Callable[[Params, Iterable[str]], Params] | None = None
    paired: Callable[..., tuple[Forwards, Term]] | None = None
    obstacle: Callable[[nn.Module], str | None] | None = None
    ordered: bool = False
    steps: int = 0
    rounds: int = 1
    permanent: bool = False
    of_any_layer: bool = False
    of_classes: bool = False

    @property
    def acts(self) -> bool:
        """Return whether it changes anything; one that does not is left out when a run is built."""
        return any((self.formula, self.layers, self.companion, self.used, self.paired))

    def told(self, order: LayerOrder) -> Regulariser:
        """Return this regulariser for a network that runs its layers in this order."""
        if not self.ordered:
            return self
        layers = functools.partial(self.layers, order=order) if self.layers else None
        paired = functools.partial(self.paired, order=order) if self.paired else None
        return replace(self, layers=layers, paired=paired)

    def at(self, clock: int) -> Regulariser:
        """Return this regulariser with the strength that it has at `clock` (see State)."""
        if not self.steps:
            return self
        step = min(clock * self.steps // self.rounds, self.steps)
        return replace(self, strength=self.strength * step / self.steps)


def none() -> Regulariser:
    """Add nothing."""
    return Regulariser()


Piece = Params | int


def _weights(net: nn.Module, mask: Mask, examples: int) -> Params:
    return {name: net.get_parameter(name) for name in mask}


def _alive(net: nn.Module, mask: Mask, examples: int) -> Params:
    return {name: alive.to(net.get_parameter(name)) for name, alive in mask.items()}


def _scales(net: nn.Module, mask: Mask, examples: int) -> Params:
    return scales(net)


def _examples(net: nn.Module, mask: Mask, examples: int) -> int:
    return examples


def _companions(kind: str, net: nn.Module, mask: Mask, examples: int) -> Params:
    return {name: net.get_parameter(companion(name, kind)) for name in mask}


PIECES: dict[str, Callable[[nn.Module, Mask, int], Piece]] = {
    "weights": _weights,
    "alive": _alive,
    "scales": _scales,
    "examples": _examples,
    **{kind: functools.partial(_companions, kind) for kind in CHOOSE},
}
"""The values that a formula can ask for, by the name of its argument: the prunable weights (dead ones are 0), their mask (1 is
alive, 0 is dead), the scales of BatchNorm, the companions of a kind, and the number of training examples of all clients
together."""


def scales(net: nn.Module) -> Params:
    """Return the scales (gamma) of all BatchNorm layers."""
    layers = {n: layer for n, layer in net.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    return {f"{name}.weight": layer.weight for name, layer in layers.items() if layer.weight is not None}


def unknown(formula: Formula) -> list[str]:
    """Return the arguments of a formula that are not in PIECES."""
    return [name for name in needs(formula) if name not in PIECES]


def add_companions(
    net: nn.Module, names: Sequence[str], regularisers: Sequence[Regulariser], generator: torch.Generator
) -> None:
    """Give the network's prunable weights the companions of these regularisers, with values drawn from the generator."""
    for regulariser in regularisers:
        if regulariser.companion:
            add(net, names, regulariser.companion, generator)


def in_use(params: Params, names: Sequence[str], regularisers: Sequence[Regulariser]) -> Params:
    """Return the network that is in use between two steps: gates are folded into weights. names: the prunable tensors."""
    params = fold(params)
    for regulariser in regularisers:
        params = regulariser.used(params, names) if regulariser.used else params
    return params


@contextmanager
def regularised(net: nn.Module, mask: Mask, regularisers: Sequence[Regulariser], examples: int) -> Iterator[Term | None]:
    """Inside, layers run as these regularisers say. The value is the term to add to a batch's loss; None if there is none."""
    pairs = [regulariser.paired(net, mask) for regulariser in regularisers if regulariser.paired]
    changed = [regulariser.layers(net, mask) for regulariser in regularisers if regulariser.layers]
    changed += [forwards for forwards, _ in pairs]
    layers = {net.get_submodule(name): forward for forwards in changed for name, forward in forwards.items()}
    with _forwards_of(layers):
        weighted = [(r.strength, _term(net, mask, r.formula, examples)) for r in regularisers if r.formula and r.strength]
        weighted += [(1.0, term) for _, term in pairs]
        yield (lambda: torch.stack([strength * term() for strength, term in weighted]).sum()) if weighted else None


@contextmanager
def _forwards_of(layers: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside, these layers run so. Afterwards each has its own forward again, of its class or of its own."""
    replaced = {layer: layer.__dict__["forward"] for layer in layers if "forward" in layer.__dict__}
    for layer, forward in layers.items():
        layer.forward = functools.partial(forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        for layer, forward in replaced.items():
            layer.forward = forward


def _term(net: nn.Module, mask: Mask, formula: Formula, examples: int) -> Term:
    """Return the formula as a function of the network's parameters, taken in float32 if they are of half precision."""
    pieces = {name: PIECES[name](net, mask, examples) for name in needs(formula)}
    tensors = [tensor for piece in pieces.values() if isinstance(piece, dict) for tensor in piece.values()]
    if any(tensor.dtype in WIDER for tensor in tensors):
        return functools.partial(_wide_term, formula, pieces)
    return functools.partial(formula, **pieces)


def tried_term(regulariser: Regulariser, net: nn.Module, mask: Mask) -> object:
    """Return the value of the formula, which may be anybody's, for a network as it is."""
    assert regulariser.formula is not None, "only a regulariser with a formula has a term"
    with torch.no_grad():
        return _term(net, mask, regulariser.formula, 1)()


def _wide_term(formula: Formula, pieces: Mapping[str, Piece]) -> Tensor:
    """Return the value of a formula of half precision tensors, taken in float32."""
    widened = {name: _widened(piece) if isinstance(piece, dict) else piece for name, piece in pieces.items()}
    return formula(**widened)


def _widened(params: Params) -> Params:
    return {name: wide(tensor) for name, tensor in params.items()}


def run(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the outputs of a linear layer or convolution with another weight and bias; it pads as the layer does."""
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight, bias)
    return cast(nn.modules.conv._ConvNd, layer)._conv_forward(inputs, weight, bias)


def as_defined(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs of the forward that the layer's class defines, while another one stands in for it."""
    outputs: Tensor = type(layer).forward(layer, inputs)
    return outputs


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of a linear layer or convolution."""
    return cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
