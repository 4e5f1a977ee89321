"""Evidence from the network itself. It needs no data, so that the server can measure it whatever `where` says.

Every function is (network, params, names) -> one tensor per name; `params` are all of the network's parameters and buffers.
"""

from __future__ import annotations

import torch

from fedprune.pruning.evidence.network import Network, batch_or, first_few, reads_characters, tensors_in
from fedprune.pruning.evidence.normalisation import NORMS, normalised
from fedprune.pruning.what.unit import per_row
from fedprune.tensors import tensors_of
from fedprune.types import Params


def flow_grads(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """Return dR / d|w|, R the sum of all outputs for an input of ones. Tanaka et al. 2020 (SynFlow).

    Every weight, bias and buffer is replaced by its absolute value. In float64, since flows grow with every layer. BatchNorm
    normalises with its running statistics.
    """
    state = {name: value.abs().double() if value.is_floating_point() else value for name, value in params.items()}
    wanted = [state[name].requires_grad_() for name in names]
    outputs = tensors_in(network.run(state, torch.ones(1, *network.shape, dtype=torch.float64)))
    flow = torch.stack([output.sum() for output in outputs if output.is_floating_point()]).sum()
    return dict(zip(names, torch.autograd.grad(flow, wanted, materialize_grads=True), strict=True))


def scales(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """Return |gamma| of the normalisation that takes in a layer's outputs directly, at every entry of the row of each output.

    It is zero for layers that no normalisation follows, which a run refuses to score.
    """
    gammas = {name: params[f"{norm}.weight"].abs() for name, norm in normalised(network, names).items()}
    return {name: per_row(gammas[name], params[name]) if name in gammas else torch.zeros_like(params[name]) for name in names}


def filter_scales(network: Network, params: Params, names: tuple[str, ...]) -> Params:
    """Return `scales`, for criteria that use them in convolutions alone, so that linear layers need no normalisation."""
    return scales(network, params, names)


def unscaled(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why `scales` of these layers cannot be measured, or None."""
    scaled = normalised(network, names)
    without = [name.removesuffix(".weight") for name in names if name not in scaled]
    if not without:
        return None
    if len(without) == len(names):
        return "no layer that may be pruned is followed by a normalisation: choose model=resnet20, or criterion=filter_norm"
    return f"no normalisation follows {', '.join(without)}: choose what.skip=[{','.join(without)}], or criterion=filter_norm"


def unscaled_filters(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why `filter_scales` of these layers cannot be measured, or None."""
    state, scaled = tensors_of(network.net), normalised(network, names)
    without = [name.removesuffix(".weight") for name in names if name not in scaled and state[name].dim() > 2]
    if not without:
        return None
    return (
        f"no normalisation follows {first_few(without)}: choose {batch_or(network.net)}model=resnet20, or criterion=magnitude"
    )


def no_flow(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why `flow_grads` mean nothing in this network, or None."""
    if reads_characters(network.net, network.shape):
        return "flow starts from an input of ones, and characters are no numbers to add up: choose criterion=snip"
    stuck = [
        f"{name} ({type(layer).__name__})"
        for name, layer in network.net.named_modules()
        if isinstance(layer, NORMS) and getattr(layer, "running_mean", None) is None
    ]
    if not stuck:
        return None
    return f"{first_few(stuck)} would divide the flow by itself: choose {batch_or(network.net)}criterion=snip"
