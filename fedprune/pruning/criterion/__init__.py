"""The criteria: one formula per function.

A formula is pure: (evidence, by the names of its arguments) -> Scores; **higher = keep, -inf = never**. The argument names are
the dependency list (see pruning/evidence): `params` are the prunable tensors of the masked network, `grads` the gradient of the
mean loss at them, `generator` a seeded torch generator by layer name. Scores of dead entries do not matter when dropping,
scores of living ones do not matter when growing. Further parameters have defaults and are set in the yaml.

Here: weights, gradients and flow. curvature.py: second derivatives. structured.py: one score for a whole unit. learnt.py:
companions of weights that training has learnt. compensation.py: the steps of survivors that make up for removed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.types import Params, Scores

Formula = Callable[..., Scores]


@dataclass(frozen=True)
class Criterion:
    """The formula by which living units are dropped and, for methods that exchange units, the one by which dead ones grow.

    compensate: how survivors move to make up for dropped units, see Compensated (None: they stay). adjusts: whether the
    criterion also decides how many units live, by `times` and `base`, see Adjusted. candidates, noise, adapt: see Selected.
    """

    drop: Formula
    grow: Formula | None = None
    compensate: Callable[..., Params] | None = field(default=None, init=False, repr=False, compare=False)
    times: Mapping[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    base: float = field(default=0.0, init=False, repr=False, compare=False)
    candidates: int = field(default=1, init=False, repr=False, compare=False)
    noise: float = field(default=0.0, init=False, repr=False, compare=False)
    adapt: bool = field(default=False, init=False, repr=False, compare=False)
    adjusts: ClassVar[bool] = False

    @property
    def selects(self) -> bool:
        """True if an event takes the best of several candidate masks."""
        return self.candidates > 1

    def formulas(self) -> dict[str, Formula]:
        """Return all formulas, by role."""
        by_field = {role.name: getattr(self, role.name) for role in fields(self)}
        return {role: formula for role, formula in by_field.items() if callable(formula)}


@dataclass(frozen=True)
class Compensated(Criterion):
    """A criterion with a formula for the steps of survivors that make up for dropped weights, see compensation.py."""

    compensate: Callable[..., Params] = field(kw_only=True)


@dataclass(frozen=True)
class Adjusted(Criterion):
    """A criterion that also decides how many units live, see prunefl.py.

    An exchange questions the fraction `swap` of each layer's living, those with the lowest `drop`; `grow` is the gain of each
    entry, living or dead. times: the time of one weight in a round, by layer. base: the time of a round without weights, as a
    fraction of that of all weights of the dense network.
    """

    times: Mapping[str, float] = field(default_factory=dict)
    base: float = 0.14
    adjusts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.base <= 10:
            raise ConfigError(
                [
                    f"criterion.base={self.base} is a fraction of the time of all weights of the dense network: from 0 to 10: "
                    "choose criterion.base=0.14 or criterion.base=0.71, as in the paper's code"
                ]
            )


@dataclass(frozen=True)
class Selected(Criterion):
    """A criterion that makes several masks at an event without an exchange, and takes the one of the lowest loss on data.

    Huang et al. 2023 (FedTiny); see pruning/candidates.py. candidates: the number of masks, the one without noise among them;
    1 selects nothing. noise: a candidate multiplies the number of units of each layer by a factor between 1 - noise and
    1 + noise. adapt: whether the statistics of BatchNorm are measured anew under each candidate before its loss is.
    """

    candidates: int = 10
    noise: float = 0.5
    adapt: bool = True

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError([f"criterion.candidates={self.candidates} must be at least 1; 1 selects nothing"])
        if not 0 < self.noise <= 1:
            raise ConfigError(
                [
                    f"criterion.noise={self.noise} is a fraction of a layer's units: more than 0, at most 1; "
                    "for a mask without noise set criterion.candidates=1"
                ]
            )


def magnitude(params: Params) -> Scores:
    """|w|. Han et al. 2015; Frankle & Carbin 2019. Layers are not rescaled, so a global scope compares raw magnitudes."""
    return {name: w.abs() for name, w in params.items()}


def random(params: Params, generator: Callable[[str], torch.Generator]) -> Scores:
    """Uniform on [0, 1): the control. Each layer has a stream of its own, so the order of the layers does not matter."""
    return {name: torch.rand(w.shape, generator=generator(name)) for name, w in params.items()}


def gradient(grads: Params) -> Scores:
    """|g|, g the gradient of the mean loss: absolute value after averaging. RigL grows by it (Evci et al. 2020)."""
    return {name: g.abs() for name, g in grads.items()}


def squared_gradient(sq_grads_accumulated: Params) -> Scores:
    """The sum of g^2 over all rounds since the last event, g a round's summed gradient. Jiang et al. 2022 (PruneFL)."""
    return dict(sq_grads_accumulated)


def snip(params: Params, grads: Params) -> Scores:
    """|w g| / sum |w g|: the connection sensitivity. Lee, Ajanthan & Torr 2019, equation 5 and algorithm 1.

    g is the gradient of the mean loss at the very weights that will be trained. The sum runs over all prunable layers, so it
    does not change the order; it makes scores comparable between clients and rounds.
    """
    return _normalised({name: (w * grads[name]).abs() for name, w in params.items()})


def snip_of_clients(params: Params, abs_grads: Params) -> Scores:
    """|w| sum_k p_k |g_k| / its sum: the mean over clients of each one's |w g_k|. Ohib et al. 2023 (SalientGrads).

    Unlike `snip`, where gradients of different signs cancel before the absolute value is taken. p_k: the client's share of the
    examples that were scored on.
    """
    return _normalised({name: w.abs() * abs_grads[name] for name, w in params.items()})


def magnitude_gradient(params: Params, grads: Params, alpha: float = 1.0, beta: float = 1.0) -> Scores:
    """|w|^alpha |g|^beta: magnitude times gradient sensitivity; (1, 0) is magnitude, (0, 1) gradient, (1, 1) the order of SNIP.

    A reconstruction of Levai & Zombori 2020 from its abstract; meant for use inside a train-score-prune-rewind loop.
    """
    return {name: w.abs().pow(alpha) * grads[name].abs().pow(beta) for name, w in params.items()}


def grasp(params: Params, hessian_grads: Params) -> Scores:
    """w (H g), signed: high where removing the weight costs the most gradient norm. Wang, Zhang & Grosse 2020 (GraSP).

    To first order, |g|^2 changes by -2 w (H g) when w is removed. The paper writes S(-w) = -w (H g) and removes the *highest*;
    ours is its negative, to be kept high, and never an absolute value. Their code divides logits by 200; ours does not.
    """
    return {name: w * hessian_grads[name] for name, w in params.items()}


def synflow(params: Params, flow_grads: Params) -> Scores:
    """|w dR/d|w||, R the flow through the network of absolute weights. Tanaka et al. 2020 (SynFlow); meant to be iterated.

    With when=before_training and 100 steps of how_often=iterative it is the paper's; one shot can empty a layer. As in their
    code, biases and BatchNorm are absolute values too, so layers' sums are equal only where there are none.
    """
    return {name: (w * flow_grads[name]).abs() for name, w in params.items()}


def taylor(params: Params, grads: Params, signed: bool = False) -> Scores:
    """|w g|: the change of the loss, to first order, when w is removed. Molchanov et al. 2017, 2019.

    signed: -w g instead, so that a unit that sums its entries has its own first-order change. There, the 2017 paper takes the
    absolute value of the sum and the 2019 one its square; of single weights, all orders are those of |w g|.
    """
    scores = {name: -w * grads[name] for name, w in params.items()}
    return scores if signed else {name: score.abs() for name, score in scores.items()}


def movement(movement: Params) -> Scores:
    """-sum_t w_t g_t over training steps: weights that grow away from zero score high. Sanh, Wolf & Rush 2020.

    The paper collects the sum over the whole run, with pruned weights still receiving gradients; here it is one pass over a
    client's data from the weights at the event, and the dead stay dead. At the first step it is -w g.
    """
    return dict(movement)


def large_final_same_sign(params: Params, init_params: Params) -> Scores:
    """|w| where w still has the sign it began with, 0 elsewhere. Zhou et al. 2019 ("Deconstructing lottery tickets").

    Their mask criterion: max(0, w_final sign(w_init)). Where nothing began (an initial 0), it is 0.
    """
    return {name: (w * init_params[name].sign()).clamp_min(0) for name, w in params.items()}


def magnitude_increase(params: Params, init_params: Params) -> Scores:
    """|w_final| - |w_init|, signed: how much a weight has grown. Zhou et al. 2019 ("Deconstructing lottery tickets")."""
    return {name: w.abs() - init_params[name].abs() for name, w in params.items()}


def lamp(params: Params) -> Scores:
    """w_u^2 / sum of w_v^2 over the v of the same layer with w_v^2 >= w_u^2. Lee et al. 2021 (LAMP).

    Equal magnitudes are ordered by flat index, the lower counting as the larger, so that scores within a layer are a strict
    order. The largest of each layer scores 1: a global scope never empties a layer before all others are down to one.
    """
    return {name: _lamp(w) for name, w in params.items()}


def _lamp(w: Tensor) -> Tensor:
    squared, order = w.flatten().double().square().sort(descending=True, stable=True)
    scores = torch.zeros_like(squared)
    scores[order] = squared / squared.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return scores.view(w.shape)


def _normalised(scores: Scores) -> Scores:
    total = sum(float(score.double().sum()) for score in scores.values())
    return {name: score.double() / total for name, score in scores.items()} if total > 0 else scores
