"""Penalties: what is added to the loss so that weights go to zero by themselves. One formula per function.

Every formula is (tensors by the names of its arguments) -> a scalar of at least 0, the smaller the sparser; `strength` times it
is added to the mean loss of each batch. The argument names say of which tensors (see PIECES in base.py): `weights` are
the prunable ones. What is dead is 0 and adds nothing.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedprune.local.regularisers.base import PIECES, Formula, Forward, Regulariser, require, run, unknown
from fedprune.pruning.evidence.gates import Companion, companion
from fedprune.pruning.evidence.hard_concrete import log_alpha_of, open_probability, sampled
from fedprune.types import Mask, Params


def l1(weights: Params) -> Tensor:
    """Sum of |w|. Its gradient is the sign of w, of equal size for small and large ones. Han et al. 2015."""
    return _sum(w.abs().sum() for w in weights.values())


def l2(weights: Params) -> Tensor:
    """Half the sum of w^2. Its gradient is w: `strength` is what weight_decay is in SGD, on the prunable weights alone."""
    return _sum(w.square().sum() for w in weights.values()) / 2


def group_lasso(weights: Params) -> Tensor:
    """Sum over output units (filters, neurons) of sqrt(entries) times the L2 norm: whole units go to zero. Wen et al. 2016.

    The factor of the root of the group's size (Yuan & Lin 2006) makes layers of different fan-in comparable; Wen et al. leave
    it out. A unit that is zero altogether has gradient zero, and stays.
    """
    rows = [w.flatten(1) for w in weights.values()]
    return _sum(row.shape[1] ** 0.5 * torch.linalg.vector_norm(row, dim=1).sum() for row in rows)


def bn_l1(scales: Params) -> Tensor:
    """Sum of |gamma| over the scales of BatchNorm: whole channels go to zero. Liu et al. 2017 (network slimming)."""
    return _sum(gamma.abs().sum() for gamma in scales.values())


def open_gates(log_alpha: Params, alive: Params) -> Tensor:
    """The expected number of gates that are not 0, of living weights: the expected L0 norm. Louizos et al. 2018."""
    return _sum((open_probability(a) * alive[name]).sum() for name, a in log_alpha.items())


def penalty(formula: Formula, strength: float) -> Regulariser:
    """A penalty that is no more than its formula. Raises ConfigError if it asks for what there is not."""
    require(
        {
            f"local.penalty asks for {', '.join(unknown(formula))}; known: {', '.join(PIECES)}": not unknown(formula),
            **_positive(strength),
        }
    )
    return Regulariser(formula, strength)


def incremental(formula: Formula, strength: float, steps: int, rounds: int) -> Regulariser:
    """`penalty`, rising with the rounds: i / steps of the strength in the i-th of `steps` equal parts of the run, i from 0.
    Long et al. 2023 (FedDIP).
    """
    rules = {"steps": steps, "rounds": rounds}
    require({f"local.penalty.{key}={value} must be at least 1": value >= 1 for key, value in rules.items()})
    return replace(penalty(formula, strength), steps=steps, rounds=rounds)


def l0(strength: float, drop_rate: float) -> Regulariser:
    """A hard concrete gate on every prunable weight, and the expected number of open ones as the penalty. Louizos et al. 2018.

    drop_rate: at whose odds gates lean to 0 at the start. In training each batch samples all gates anew; otherwise, weights are
    multiplied by the gate without noise. The paper shares a gate among all that reads one input of a layer (to gain speed),
    where here each weight has its own.
    """
    rule = f"local.penalty.drop_rate={drop_rate} is the share of gates that lean to 0: more than 0, less than 1"
    require({**_positive(strength), rule: 0 < drop_rate < 1})
    return Regulariser(open_gates, strength, _gated, Companion("log_alpha", log_alpha_of(drop_rate), 0.01))


def _gated(net: nn.Module, mask: Mask) -> dict[str, Forward]:
    gates = {name: net.get_parameter(companion(name, "log_alpha")) for name in mask}
    return {name.rpartition(".")[0]: functools.partial(_with_gates, log_alpha=gate) for name, gate in gates.items()}


def _with_gates(layer: nn.Module, inputs: Tensor, log_alpha: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    return run(layer, inputs, weight * sampled(log_alpha, torch.rand_like(log_alpha)), bias)  # type: ignore[arg-type, operator]


def _positive(strength: float) -> dict[str, bool]:
    return {f"local.penalty.strength={strength} must not be negative": strength >= 0}


def _sum(terms) -> Tensor:
    return torch.stack(list(terms)).sum()
