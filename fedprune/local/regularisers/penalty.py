"""Penalties: terms that are added to the loss so that weights go to zero by themselves. One formula per function.

A formula takes tensors by the names of its arguments (see PIECES in base.py) and returns a scalar of at least 0, the smaller
the sparser the network; `strength` times it is added to the mean loss of each batch. `weights` are the prunable ones; a dead
entry is 0 and adds nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedprune.local.regularisers.base import PIECES, Formula, Forwards, Regulariser, run, unknown, weight_and_bias
from fedprune.local.regularisers.check import require
from fedprune.pruning.evidence.gates import Companion, companion
from fedprune.pruning.evidence.hard_concrete import log_alpha_of, open_probability, sampled
from fedprune.types import Mask, Params


def l1(weights: Params) -> Tensor:
    """Return the sum of |w|. Its gradient is sign(w), equally large for small and large weights. Han et al. 2015."""
    return _sum(w.abs().sum() for w in weights.values())


def l2(weights: Params) -> Tensor:
    """Return sum of w^2 / 2. Its gradient is w, so `strength` acts as SGD's weight_decay, on the prunable weights alone."""
    return _sum(w.square().sum() for w in weights.values()) / 2


def group_lasso(weights: Params) -> Tensor:
    """Return the sum over output units (filters, neurons) of sqrt(entries) |w|_2: whole units go to zero. Wen et al. 2016.

    The factor sqrt(entries) (Yuan & Lin 2006) makes layers of different fan-in comparable; Wen et al. leave it out. A unit of
    which all weights are zero has gradient zero, and stays zero.
    """
    rows = [w.flatten(1) for w in weights.values()]
    return _sum(row.shape[1] ** 0.5 * torch.linalg.vector_norm(row, dim=1).sum() for row in rows)


def bn_l1(scales: Params) -> Tensor:
    """Return the sum of |gamma| over the scales of BatchNorm: whole channels go to zero. Liu et al. 2017 (network slimming)."""
    return _sum(gamma.abs().sum() for gamma in scales.values())


def open_gates(log_alpha: Params, alive: Params) -> Tensor:
    """Return the expected number of living weights whose gate is not 0: the expected L0 norm. Louizos et al. 2018."""
    return _sum((open_probability(a) * alive[name]).sum() for name, a in log_alpha.items())


def penalty(formula: Formula, strength: float) -> Regulariser:
    """Return a penalty that is its formula and nothing else. Raise ConfigError if the formula asks for an unknown piece."""
    require(
        {
            f"local.penalty asks for {', '.join(unknown(formula))}; known: {', '.join(PIECES)}": not unknown(formula),
            **_not_negative(strength),
        }
    )
    return Regulariser(formula, strength)


def incremental(formula: Formula, strength: float, steps: int, rounds: int) -> Regulariser:
    """Return a penalty that rises with the rounds. Long et al. 2023 (FedDIP).

    The strength is i / steps of `strength` in the i-th of `steps` equal parts of `rounds` rounds, i from 0.
    """
    rules = {"steps": steps, "rounds": rounds}
    require({f"local.penalty.{key}={value} must be at least 1": value >= 1 for key, value in rules.items()})
    return replace(penalty(formula, strength), steps=steps, rounds=rounds)


def l0(strength: float, drop_rate: float) -> Regulariser:
    """Give every prunable weight a hard concrete gate, and penalise the expected number of open gates. Louizos et al. 2018.

    drop_rate: the probability with which a gate leans to 0 at the start. In training, each batch samples all gates anew;
    otherwise weights are multiplied by the gate without noise. The paper shares a gate among all weights that read one input of
    a layer (to gain speed); here each weight has its own.
    """
    rule = f"local.penalty.drop_rate={drop_rate} is the share of gates that lean to 0: more than 0, less than 1"
    require({**_not_negative(strength), rule: 0 < drop_rate < 1})
    return Regulariser(open_gates, strength, _gated, Companion("log_alpha", log_alpha_of(drop_rate), 0.01))


def _gated(net: nn.Module, mask: Mask) -> Forwards:
    gates = {name: net.get_parameter(companion(name, "log_alpha")) for name in mask}
    return {name.rpartition(".")[0]: functools.partial(_with_gates, log_alpha=gate) for name, gate in gates.items()}


def _with_gates(layer: nn.Module, inputs: Tensor, log_alpha: Tensor) -> Tensor:
    weight, bias = weight_and_bias(layer)
    return run(layer, inputs, weight * sampled(log_alpha, torch.rand_like(log_alpha)), bias)


def _not_negative(strength: float) -> dict[str, bool]:
    return {f"local.penalty.strength={strength} must not be negative": strength >= 0}


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
