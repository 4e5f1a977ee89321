"""Dropout that prepares for pruning: noise in training on what is about to be pruned, or less noise where less is left.

Every option is a function of its keys that returns a Regulariser. Noise is drawn for each batch from torch's global generator,
which is seeded for each client and round. There is none outside of training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.local.regularisers.base import Forward, Forwards, Regulariser, as_defined, run, weight_and_bias
from fedprune.local.regularisers.check import require
from fedprune.pruning.evidence.gates import Companion, companion
from fedprune.pruning.mask import density
from fedprune.pruning.what.layer_order import LayerOrder, by_definition
from fedprune.pruning.what.layers import CHANNELLED, prunable
from fedprune.pruning.what.top_k import nearest
from fedprune.types import Mask, Params

K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""The constants of Molchanov et al. 2017, equation 14."""


def adjusted(rate: float) -> Regulariser:
    """Drop hidden units, fewer the more of their connections are pruned. Han et al. 2015, section 3.2.

    The inputs of a linear layer are dropped with probability rate sqrt(C_r / C_o). C_o counts all connections of the layer that
    makes these units, C_r the living ones; if several layers make them, C_o and C_r are sums over these. The network's own
    inputs, which no layer makes, are never dropped.
    """
    require({f"local.dropout.rate={rate} is a probability: at least 0, less than 1": 0 <= rate < 1})
    return Regulariser(layers=functools.partial(_adjusted, rate=rate), ordered=True, of_any_layer=True)


def adjusted_rates(net: nn.Module, mask: Mask, rate: float, order: LayerOrder | None = None) -> dict[str, float]:
    """Return the probability with which the inputs of each linear layer are dropped; layers outside the mask count as dense.
    order: None: layers run as they are defined."""
    layers, order = prunable(net, CHANNELLED), order or by_definition(prunable(net))
    before = {name: order.before(name, layers) for name in layers if isinstance(net.get_submodule(name), nn.Linear)}
    return {name: rate * math.sqrt(_density(net, mask, makers)) for name, makers in before.items() if makers}


def _density(net: nn.Module, mask: Mask, layers: Sequence[str]) -> float:
    """Return the fraction of the weights of these layers that is alive."""
    weights = {f"{name}.weight": net.get_parameter(f"{name}.weight") for name in layers}
    return density({name: mask.get(name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()})


def _adjusted(net: nn.Module, mask: Mask, rate: float, order: LayerOrder | None = None) -> Forwards:
    return {name: functools.partial(_dropped, p=p) for name, p in adjusted_rates(net, mask, rate, order).items()}


def _dropped(layer: nn.Module, inputs: Tensor, p: float) -> Tensor:
    return as_defined(layer, F.dropout(inputs, p))


def targeted(gamma: float, alpha: float) -> Regulariser:
    """Drop the smallest weights of each unit, so that the network learns to do without them. Gomez et al. 2019.

    gamma: the fraction of each output unit's weights that is targeted, those of least |w|. Dead weights are among them, so
    nothing more is dropped once at most 1 - gamma of a unit's weights live. alpha: the probability with which a targeted weight
    is dropped. As in the paper, the remaining weights are not scaled up.
    """
    rules = {"gamma": gamma, "alpha": alpha}
    require({f"local.dropout.{key}={value} must be from 0 to 1": 0 <= value <= 1 for key, value in rules.items()})
    return Regulariser(layers=functools.partial(_targeted, gamma=gamma, alpha=alpha))


def smallest(weight: Tensor, gamma: float) -> Tensor:
    """Return a mask that is True at the entries of least magnitude of each row [O, ...], gamma of the row to the nearest."""
    rows = weight.detach().abs().flatten(1)
    least = rows.topk(nearest(gamma * rows.shape[1]), largest=False, sorted=False).indices
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, least, True).view(weight.shape)


def _targeted(net: nn.Module, mask: Mask, gamma: float, alpha: float) -> Forwards:
    return {name.rpartition(".")[0]: functools.partial(_without_smallest, gamma=gamma, alpha=alpha) for name in mask}


def _without_smallest(layer: nn.Module, inputs: Tensor, gamma: float, alpha: float) -> Tensor:
    weight, bias = weight_and_bias(layer)
    dropped = smallest(weight, gamma) & (torch.rand_like(weight) < alpha)
    return run(layer, inputs, weight.masked_fill(dropped, 0), bias)


def variational(strength: float, log_sigma2: float) -> Regulariser:
    """Give every prunable weight a learnt variance, under a prior that favours noise. Molchanov et al. 2017.

    strength: multiplies the divergence from the prior; 1 in the paper, which raises it from 0, where here it is constant.
    log_sigma2: the log variances at the start. Noise is added to the outputs of layers, for each example its own (local
    reparametrisation, Kingma et al. 2015). In evaluation weights are their means.
    """
    require({f"local.dropout.strength={strength} must not be negative": strength >= 0})
    return Regulariser(divergence, strength, _variational, Companion("log_sigma2", log_sigma2))


def divergence(weights: Params, log_sigma2: Params, alive: Params, examples: int) -> Tensor:
    """Return the sum over living weights of KL(N(w, sigma^2) || log-uniform), divided by the number of training examples of all
    clients. Equation 14, with alpha = sigma^2 / w^2; it is 0 where a weight is all noise:

    KL = K1 - K1 sigmoid(K2 + K3 log alpha) + log(1 + 1 / alpha) / 2
    """
    terms = []
    for name, w in weights.items():
        log_alpha = log_sigma2[name] - (w.square() + 1e-8).log()
        kl = K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha) + F.softplus(-log_alpha) / 2
        terms.append((kl * alive[name]).sum())
    return torch.stack(terms).sum() / examples


def _variational(net: nn.Module, mask: Mask) -> Forwards:
    def noisy(name: str, alive: Tensor) -> Forward:
        variances = net.get_parameter(companion(name, "log_sigma2"))
        return functools.partial(_with_noise, log_sigma2=variances, alive=alive.to(variances))

    return {name.rpartition(".")[0]: noisy(name, alive) for name, alive in mask.items()}


def _with_noise(layer: nn.Module, inputs: Tensor, log_sigma2: Tensor, alive: Tensor) -> Tensor:
    mean = as_defined(layer, inputs)
    variance = run(layer, inputs.square(), log_sigma2.exp() * alive, None)
    return mean + (variance + 1e-8).sqrt() * torch.randn_like(mean)
