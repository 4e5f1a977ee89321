"""Training of networks that are cut by width: what clients of different widths need so that what they learn fits together.

Every option is (its keys) -> Regulariser, for `local.dropout`. A layer's units are counted by the rows of its weight that have
a living entry; the output layer keeps all of its own. Evaluation runs the network as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.local.regularisers.base import Forward, Regulariser, require, run
from fedprune.local.regularisers.width_slices import CUT, output_layers, sliced, width
from fedprune.pruning.plain_layers import is_plain
from fedprune.pruning.what.layer_order import LayerOrder
from fedprune.types import Mask

Widths = dict[str, int]
"""How many of the leading units of each hidden layer run, by the layer's name."""


def scaled() -> Regulariser:
    """What a hidden layer puts out is divided by the fraction of its units that are alive. Diao et al. 2021 (the Scaler).

    As with dropout, those who read it then see activations of the same size as in the whole network. (The paper divides by the
    nominal rate; where ceil(rate x units) rounds up, this is the rate that there is.)
    """
    return Regulariser(layers=_scaled, ordered=True, of_any_layer=True)


def _scaled(net: nn.Module, mask: Mask, order: LayerOrder | None = None) -> dict[str, Forward]:
    living = living_units(net, mask, order)
    rates = {name: units / len(net.get_parameter(f"{name}.weight")) for name, units in living.items()}
    return {name: functools.partial(_divided, rate=rate) for name, rate in rates.items() if 0 < rate < 1}


def _divided(layer: nn.Module, inputs: Tensor, rate: float) -> Tensor:
    return type(layer).forward(layer, inputs) / rate


def living_units(net: nn.Module, mask: Mask, order: LayerOrder | None = None) -> Widths:
    """Return the number of living units of each hidden layer; layers outside the mask have all of theirs."""
    outputs = output_layers(net, order)
    hidden = [name for name in sliced(net) if name not in outputs]
    whole = {name: len(net.get_parameter(name)) for name in hidden}
    alive = {name: int(mask[name].flatten(1).any(1).sum()) if name in mask else whole[name] for name in hidden}
    return {name.removesuffix(".weight"): units for name, units in alive.items()}


def ordered(levels: Sequence[float]) -> Regulariser:
    """Ordered dropout: each batch runs a width drawn among the `levels` below that of the client and the client's own, all
    equally likely; of a layer with n units the first ceil(p n) run. Horvath et al. 2021 (FjORD), section 3.

    So units are ordered by importance, and every leading part of the network is one that works.
    """
    _check(levels)
    return Regulariser(layers=functools.partial(_ordered, levels=levels), ordered=True, obstacle=_obstacle)


def ordered_distilled(levels: Sequence[float]) -> Regulariser:
    """Ordered dropout with self-distillation: the whole of what the client has learns from the labels, and the width that is
    drawn from the whole. Horvath et al. 2021, section 3.2, with alpha = T = 1.

    loss = CE(F_max, y) + CE(F_p, softmax F_max), the teacher held fixed; the second is the divergence of F_p from F_max but for
    a constant. The loss that is told is the first.
    """
    _check(levels)
    return Regulariser(paired=functools.partial(_distilled, levels=levels), ordered=True, obstacle=_obstacle)


def _check(levels: Sequence[float]) -> None:
    require(
        {
            f"local.dropout.levels={list(levels)}: give fractions of the width, above 0 and at most 1": bool(levels)
            and all(0 < level <= 1 for level in levels)
        }
    )


def choices(net: nn.Module, mask: Mask, levels: Sequence[float], order: LayerOrder | None = None) -> list[Widths]:
    """The widths that a batch may run: those of the levels that are less than the client has, and last what it has."""
    own = living_units(net, mask, order)
    units = {name: len(net.get_parameter(f"{name}.weight")) for name in own}
    found = [{name: width(number, level) for name, number in units.items()} for level in sorted(set(levels))]
    return [one for one in found if one != own and all(one[name] <= own[name] for name in own)] + [own]


@dataclass
class _Running:
    """One client's training: the widths that it may run, and those that it runs now. seen: what is left to do about the last
    batch, once the whole has run."""

    choices: list[Widths]
    now: Widths = field(default_factory=dict)
    seen: Callable[[], Tensor] | None = None

    def draw(self) -> Widths:
        """One of the choices, by torch's global generator."""
        return self.choices[int(torch.randint(len(self.choices), ()))]

    def layers(self) -> dict[str, Forward]:
        """Hidden layers that run as wide as it is now."""
        return {name: functools.partial(self._leading, name) for name in self.choices[-1]}

    def _leading(self, name: str, layer: nn.Module, inputs: Tensor) -> Tensor:
        weight, bias, wide = layer.weight, layer.bias, self.now[name]
        outputs = run(layer, inputs, weight[:wide], None if bias is None else bias[:wide])  # type: ignore[index,arg-type]
        last = outputs.dim() - 1 if isinstance(layer, nn.Linear) else 1
        return F.pad(outputs, [0, 0] * (outputs.dim() - 1 - last) + [0, len(weight) - wide])  # type: ignore[arg-type]

    def at(self, widths: Widths, net: nn.Module, inputs: Tensor) -> Tensor:
        """The network's outputs at these widths."""
        self.now = widths
        return type(net).forward(net, inputs)


def _ordered(net: nn.Module, mask: Mask, levels: Sequence[float], order: LayerOrder | None = None) -> dict[str, Forward]:
    running = _Running(choices(net, mask, levels, order))
    return {"": lambda net, inputs: running.at(running.draw(), net, inputs)} | running.layers()


def _distilled(
    net: nn.Module, mask: Mask, levels: Sequence[float], order: LayerOrder | None = None
) -> tuple[dict[str, Forward], Callable[[], Tensor]]:
    running = _Running(choices(net, mask, levels, order))

    def teach(net: nn.Module, inputs: Tensor) -> Tensor:
        drawn = running.draw()
        outputs = running.at(running.choices[-1], net, inputs)
        running.seen = functools.partial(_imitation, running, drawn, net, inputs, outputs.detach().softmax(1))
        return outputs

    def term() -> Tensor:
        assert running.seen is not None, "a batch's loss comes before its term"
        return running.seen()

    return {"": teach} | running.layers(), term


def _imitation(running: _Running, drawn: Widths, net: nn.Module, inputs: Tensor, taught: Tensor) -> Tensor:
    """The cross-entropy of a narrower network from what the whole one says."""
    return F.cross_entropy(running.at(drawn, net, inputs), taught)


def _obstacle(net: nn.Module) -> str | None:
    """Why a network cannot run at several widths, or None."""
    others = [
        f"{name} ({type(layer).__name__})"
        for name, layer in net.named_modules()
        if any(True for _ in layer.parameters(recurse=False))
        and not (is_plain(layer, CUT) and getattr(layer, "groups", 1) == 1)
    ]
    if not others:
        return None
    return (
        f"local.dropout runs layers at several widths, and {others[0]} would need one of its own for each: "
        "choose model=cnn_small, or local/dropout=none"
    )
