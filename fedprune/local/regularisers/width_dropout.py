"""Training of networks that are cut by width, so that what clients of different widths learn fits together.

Every option is a function of its keys that returns a Regulariser, for `local.dropout`. The living units of a layer are the
rows of its weight with a living entry; the output layer keeps all of its units. Evaluation runs all living units, and
HeteroFL's Scaler as in training: without it, it would be of a network that nobody has trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.local.regularisers.base import Forwards, Regulariser, as_defined, run, weight_and_bias
from fedprune.local.regularisers.check import require
from fedprune.local.regularisers.width_slices import CUT, output_layers, sliced, ungrouped, width
from fedprune.plain_layers import is_plain
from fedprune.pruning.what.layer_order import LayerOrder
from fedprune.types import Mask

Widths = dict[str, int]
"""The number of leading units of each hidden layer that run, by the layer's name."""


def scaler() -> Regulariser:
    """Divide the outputs of a hidden layer by the fraction of its units that are alive. Diao et al. 2021 (the Scaler).

    As with dropout, the next layer then sees activations of the same size as in the whole network. It holds in training and in
    evaluation; in the whole network, where all units are alive, it changes nothing. (The paper divides by the nominal rate;
    ceil(rate x units) may be more than that, and here the outputs are divided by the actual fraction.)
    """
    return Regulariser(layers=_scaled, ordered=True, permanent=True, of_any_layer=True)


def _scaled(net: nn.Module, mask: Mask, order: LayerOrder | None = None) -> Forwards:
    living = living_units(net, mask, order)
    rates = {name: units / len(net.get_parameter(f"{name}.weight")) for name, units in living.items()}
    return {name: functools.partial(_divided, rate=rate) for name, rate in rates.items() if 0 < rate < 1}


def _divided(layer: nn.Module, inputs: Tensor, rate: float) -> Tensor:
    return as_defined(layer, inputs) / rate


def living_units(net: nn.Module, mask: Mask, order: LayerOrder | None = None) -> Widths:
    """Return the number of living units of each hidden layer; layers outside the mask have all of theirs."""
    outputs = output_layers(net, order)
    hidden = [name for name in sliced(net) if name not in outputs]
    whole = {name: len(net.get_parameter(name)) for name in hidden}
    alive = {name: int(mask[name].flatten(1).any(1).sum()) if name in mask else whole[name] for name in hidden}
    return {name.removesuffix(".weight"): units for name, units in alive.items()}


def ordered(levels: Sequence[float]) -> Regulariser:
    """Run each batch at a width drawn among the `levels` below the client's width and that width itself, all equally likely: of
    a layer with n units the first ceil(p n) run at level p. Horvath et al. 2021 (FjORD), section 3: ordered dropout.

    So units are ordered by importance, and every leading part of the network works by itself.
    """
    _check(levels)
    return Regulariser(layers=functools.partial(_ordered, levels=levels), ordered=True, obstacle=_obstacle)


def ordered_distilled(levels: Sequence[float]) -> Regulariser:
    """Train the client's whole width on the labels, and the width that is drawn on the outputs of the whole one. Horvath et al.
    2021, section 3.2, with alpha = T = 1: ordered dropout with self-distillation.

    loss = CE(F_max, y) + CE(F_p, softmax F_max), the teacher held fixed; the second is the divergence of F_p from F_max plus a
    constant. The loss that is reported is the first.
    """
    _check(levels)
    distilled = functools.partial(_distilled, levels=levels)
    return Regulariser(paired=distilled, ordered=True, obstacle=_obstacle, of_classes=True)


def _check(levels: Sequence[float]) -> None:
    valid = bool(levels) and all(0 < level <= 1 for level in levels)
    require({f"local.dropout.levels={list(levels)}: give fractions of the width, above 0 and at most 1": valid})


def choices(net: nn.Module, mask: Mask, levels: Sequence[float], order: LayerOrder | None = None) -> list[Widths]:
    """Return the widths that a batch may run at: the levels below the client's width, and last that width itself."""
    living = living_units(net, mask, order)
    units = {name: len(net.get_parameter(f"{name}.weight")) for name in living}
    at_levels = [{name: width(number, level) for name, number in units.items()} for level in sorted(set(levels))]
    below = [widths for widths in at_levels if widths != living and all(widths[name] <= living[name] for name in living)]
    return [*below, living]


@dataclass
class _Running:
    """One client's training. choices: the widths that it may run at. now: those that it runs at. term: the term of the
    loss about the last batch; None before the first batch has run."""

    choices: list[Widths]
    now: Widths = field(default_factory=dict)
    term: Callable[[], Tensor] | None = None

    def draw(self) -> Widths:
        """Draw one of the choices, by torch's global generator."""
        return self.choices[int(torch.randint(len(self.choices), ()))]

    def layers(self) -> Forwards:
        """Return how hidden layers run at the width of the moment."""
        return {name: functools.partial(self._leading, name) for name in self.choices[-1]}

    def _leading(self, name: str, layer: nn.Module, inputs: Tensor) -> Tensor:
        (weight, bias), units = weight_and_bias(layer), self.now[name]
        outputs = run(layer, inputs, weight[:units], None if bias is None else bias[:units])
        channels = outputs.dim() - 1 if isinstance(layer, nn.Linear) else 1
        return F.pad(outputs, [0, 0] * (outputs.dim() - 1 - channels) + [0, len(weight) - units])

    def at(self, widths: Widths, net: nn.Module, inputs: Tensor) -> Tensor:
        """Return the network's outputs at these widths."""
        self.now = widths
        return as_defined(net, inputs)


def _ordered(net: nn.Module, mask: Mask, levels: Sequence[float], order: LayerOrder | None = None) -> Forwards:
    running = _Running(choices(net, mask, levels, order))
    return {"": lambda net, inputs: running.at(running.draw(), net, inputs)} | running.layers()


def _distilled(
    net: nn.Module, mask: Mask, levels: Sequence[float], order: LayerOrder | None = None
) -> tuple[Forwards, Callable[[], Tensor]]:
    running = _Running(choices(net, mask, levels, order))

    def teach(net: nn.Module, inputs: Tensor) -> Tensor:
        drawn = running.draw()
        outputs = running.at(running.choices[-1], net, inputs)
        running.term = functools.partial(_imitation, running, drawn, net, inputs, outputs.detach().softmax(1))
        return outputs

    def term() -> Tensor:
        assert running.term is not None, "a batch's loss comes before its term"
        return running.term()

    return {"": teach} | running.layers(), term


def _imitation(running: _Running, drawn: Widths, net: nn.Module, inputs: Tensor, taught: Tensor) -> Tensor:
    """Return the cross-entropy of the network at the drawn width from the probabilities of the whole one."""
    return F.cross_entropy(running.at(drawn, net, inputs), taught)


def _obstacle(net: nn.Module) -> str | None:
    """Return why a network cannot run at several widths, or None."""
    for name, layer in net.named_modules():
        owns_parameters = next(layer.parameters(recurse=False), None) is not None
        if owns_parameters and not (is_plain(layer, CUT) and ungrouped(layer)):
            return (
                f"local.dropout runs layers at several widths, and {name} ({type(layer).__name__}) would need one of its own "
                "for each: choose model=cnn_small, or local/dropout=none"
            )
    return None
