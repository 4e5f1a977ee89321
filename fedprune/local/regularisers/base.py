"""What a client adds to its training so that weights get ready to be pruned: `local.penalty` and `local.dropout`.

Both are a Regulariser. Each may do four things: add a term to the loss of every batch, run layers in another way (with noise)
while they are trained, give each prunable weight a companion that is learnt (see evidence/gates.py), and say which network
is in use between two steps. Otherwise only steps of training know of it: evaluation, and evidence that clients measure, see the
network in use without noise and without the term.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.errors import ConfigError, Incompatible
from fedprune.precision import WIDER, wide
from fedprune.pruning.evidence import needs
from fedprune.pruning.evidence.gates import CHOOSE, Companion, add, companion, fold
from fedprune.pruning.plain_layers import is_plain
from fedprune.pruning.what import CHANNELLED, LAYERS, kind_of, others
from fedprune.pruning.what.layer_order import LayerOrder
from fedprune.tensors import shared
from fedprune.types import Mask, Params

Formula = Callable[..., Tensor]
Forward = Callable[[nn.Module, Tensor], Tensor]
"""(layer, its inputs) -> its outputs."""


@dataclass(frozen=True)
class Regulariser:
    """formula: (what its arguments name, see PIECES) -> a scalar; `strength` times it is added to the mean loss of each batch.
    layers: (net, mask) -> how the layers of these names ("": the network) run in training; all others run as always.
    companion: what each prunable weight gets beside it. used: (parameters, names of the prunable) -> those of the network that
    is in use; None: as they are. paired: as `layers`, with a term of the loss that goes by what has run. obstacle: why a
    network cannot be trained so, or None. ordered: whether `layers` and `paired` have an argument `order`, the order in
    which the network runs its layers. steps, rounds: the strength rises in `steps` equal steps over so many rounds, from 0;
    with steps = 0 it stays. of_any_layer: whether `layers` only changes what goes into a layer or comes out of it, and so is
    right whatever the forward of the layer's class is.
    """

    formula: Formula | None = None
    strength: float = 0.0
    layers: Callable[..., dict[str, Forward]] | None = None
    companion: Companion | None = None
    used: Callable[[Params, Iterable[str]], Params] | None = None
    paired: Callable[..., tuple[dict[str, Forward], Callable[[], Tensor]]] | None = None
    obstacle: Callable[[nn.Module], str | None] | None = None
    ordered: bool = False
    steps: int = 0
    rounds: int = 1
    of_any_layer: bool = False

    @property
    def acts(self) -> bool:
        """Whether it changes anything; what does not is left out when a run is built."""
        return any((self.formula, self.layers, self.companion, self.used, self.paired))

    def told(self, order: LayerOrder) -> Regulariser:
        """Return this one for a network that runs its layers in this order."""
        if not self.ordered:
            return self
        layers = functools.partial(self.layers, order=order) if self.layers else None
        paired = functools.partial(self.paired, order=order) if self.paired else None
        return replace(self, layers=layers, paired=paired)

    def at(self, clock: int) -> Regulariser:
        """This one in the round that follows `clock`: with the strength that it has then."""
        if not self.steps:
            return self
        done = min(clock * self.steps // self.rounds, self.steps)
        return replace(self, strength=self.strength * done / self.steps)


def none() -> Regulariser:
    """Nothing is added."""
    return Regulariser()


def _weights(net: nn.Module, mask: Mask, examples: int) -> Params:
    return {name: net.get_parameter(name) for name in mask}


def _alive(net: nn.Module, mask: Mask, examples: int) -> Params:
    return {name: alive.to(net.get_parameter(name)) for name, alive in mask.items()}


def _scales(net: nn.Module, mask: Mask, examples: int) -> Params:
    return scales(net)


def _companions(kind: str, net: nn.Module, mask: Mask, examples: int) -> Params:
    return {name: net.get_parameter(companion(name, kind)) for name in mask}


PIECES: dict[str, Callable[[nn.Module, Mask, int], Any]] = {
    "weights": _weights,
    "alive": _alive,
    "scales": _scales,
    "examples": lambda net, mask, examples: examples,
    **{kind: functools.partial(_companions, kind) for kind in CHOOSE},
}
"""What a formula may ask for, by the names of its arguments: the prunable weights (the dead are 0), what is alive of them (1 or
0), the scales of BatchNorm, companions, and the number of training examples of all clients."""


def scales(net: nn.Module) -> Params:
    """The scales of all BatchNorm layers."""
    layers = {n: layer for n, layer in net.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    return {f"{name}.weight": layer.weight for name, layer in layers.items() if layer.weight is not None}


def unknown(formula: Formula) -> list[str]:
    """What a formula asks for that nobody has."""
    return [name for name in needs(formula) if name not in PIECES]


def add_companions(
    net: nn.Module, names: Sequence[str], regularisers: Sequence[Regulariser], generator: torch.Generator
) -> None:
    """Give the network's prunable weights what these regularisers learn about them, drawn anew."""
    for regulariser in regularisers:
        if regulariser.companion:
            add(net, names, regulariser.companion, generator)


def in_use(params: Params, names: Sequence[str], regularisers: Sequence[Regulariser]) -> Params:
    """The network that is in use, with its gates folded into its weights. names: the prunable tensors."""
    params = fold(params)
    for regulariser in regularisers:
        params = regulariser.used(params, names) if regulariser.used else params
    return params


@contextmanager
def regularised(
    net: nn.Module, mask: Mask, regularisers: Sequence[Regulariser], examples: int
) -> Iterator[Callable[[], Tensor] | None]:
    """Inside, layers run as these regularisers say; the value is the term to add to a batch's loss (None: nothing)."""
    pairs = [one.paired(net, mask) for one in regularisers if one.paired]
    changed = [one.layers(net, mask) for one in regularisers if one.layers] + [forwards for forwards, _ in pairs]
    layers = {net.get_submodule(name): forward for forwards in changed for name, forward in forwards.items()}
    own = {layer: layer.__dict__["forward"] for layer in layers if "forward" in layer.__dict__}
    for layer, forward in layers.items():
        layer.forward = functools.partial(forward, layer)
    try:
        terms = _terms(net, mask, [one for one in regularisers if one.formula and one.strength], examples)
        terms += [(1.0, term) for _, term in pairs]
        yield (lambda: torch.stack([strength * term() for strength, term in terms]).sum()) if terms else None
    finally:
        for layer in layers:
            del layer.forward
        for layer, forward in own.items():
            layer.forward = forward


def _terms(
    net: nn.Module, mask: Mask, regularisers: Sequence[Regulariser], examples: int
) -> list[tuple[float, Callable[[], Tensor]]]:
    """(strength, term), functions of the network's parameters as they are when they are called."""
    terms: list[tuple[float, Callable[[], Tensor]]] = []
    for one in regularisers:
        assert one.formula is not None, "regularisers without a formula have no term"
        pieces = {name: PIECES[name](net, mask, examples) for name in needs(one.formula)}
        term = functools.partial(one.formula, **pieces)
        if any(tensor.dtype in WIDER for piece in pieces.values() if isinstance(piece, dict) for tensor in piece.values()):
            term = functools.partial(_wide_term, one.formula, pieces)
        terms.append((one.strength, term))
    return terms


def _wide_term(formula: Formula, pieces: dict[str, Any]) -> Tensor:
    """Return the formula of half precision tensors as they are now, worked out in float32."""
    widened = {
        name: {key: wide(tensor) for key, tensor in piece.items()} if isinstance(piece, dict) else piece
        for name, piece in pieces.items()
    }
    return formula(**widened)


def run(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a linear layer or convolution makes of its inputs with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight, bias)
    return layer._conv_forward(inputs, weight, bias)  # type: ignore[operator]  # pads as the layer does


def together(penalty: Regulariser, dropout: Regulariser, net: nn.Module, names: Sequence[str]) -> None:
    """Raises Incompatible if these two do not go together, or not with this network. names: of its prunable weights."""
    problems = [found for one in (penalty, dropout) if one.obstacle and (found := one.obstacle(net))]
    rerun = [key for key, one in (("local.penalty", penalty), ("local.dropout", dropout)) if one.layers]
    if rerun and others(net, names):
        told = ", ".join(f"{name} ({type(layer).__name__})" for name, layer in others(net, names).items())
        problems.append(
            f"{' and '.join(rerun)} brings noise into conv and linear layers, and {told} may be pruned without: "
            "choose what.layers=[conv,linear], or local/penalty=l1 and local/dropout=none"
        )
    for key, one in (("local.penalty", penalty), ("local.dropout", dropout)):
        astray = unruly(net, names, one)
        if astray:
            problems.append(
                f"{key} runs layers by the formula of their class, and {', '.join(astray)} has a forward or a hook of its own: "
                f"choose what.skip=[{','.join(astray)}], or {key.replace('.', '/')}=none"
            )
    tied = shared(net, names)
    if tied and (rerun or dropout.paired):
        key = rerun[0] if rerun else "local.dropout"
        problems.append(f"{key} changes how one layer runs, and {tied}: choose {key.replace('.', '/')}=none")
    if penalty.layers and (dropout.layers or dropout.paired):
        problems.append(
            "local.penalty samples gates, and local.dropout is another noise on the same weights: "
            "choose local/dropout=none, or local/penalty=none"
        )
    if penalty.formula is not None and "scales" in needs(penalty.formula) and not scales(net):
        problems.append(
            "local.penalty is on the scales of BatchNorm, and the network has none: "
            "choose model=resnet20 with model.norm=batch, or local/penalty=group_lasso"
        )
    if problems:
        raise Incompatible(*problems)


def unruly(net: nn.Module, names: Sequence[str], regulariser: Regulariser) -> list[str]:
    """Return the layers of these weights that a regulariser would run in another way than they are written, by name."""
    if not regulariser.layers:
        return []
    layers = {name.removesuffix(".weight"): net.get_submodule(name.rpartition(".")[0]) for name in names}
    if regulariser.of_any_layer:  # by the forward of their class, which an object may have replaced
        return [name for name, layer in layers.items() if "forward" in layer.__dict__]
    known = [kind for group in CHANNELLED for kind in LAYERS[group]]
    return [name for name, layer in layers.items() if kind_of(layer) in CHANNELLED and not is_plain(layer, known)]


def require(rules: dict[str, bool]) -> None:
    """Raises ConfigError with the rules that are broken."""
    problems = [problem for problem, fine in rules.items() if not fine]
    if problems:
        raise ConfigError(problems)
