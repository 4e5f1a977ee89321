"""Evidence that candidate masks are compared by (pruning/candidates.py): BatchNorm's statistics under a mask, and the loss.

A formula cannot ask for it. Huang et al. 2023 (FedTiny); statistics that are measured anew after pruning: Li et al. 2020
(EagleEye).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedprune.pruning.evidence.loss import Batch, loss_at, net_of, split
from fedprune.pruning.evidence.network import evaluated
from fedprune.types import Params

STATISTICS, LOSS = "batchnorm_statistics", "candidate_loss"

OF_CANDIDATES = (STATISTICS, LOSS)
"""Evidence about a candidate mask. Its tensors are others than those of the mask: STATISTICS has the running means and
variances of BatchNorm, by their names; LOSS has one number, by the name `loss`."""


class Moments:
    """The sums from which means and variances by channel follow: of numbers, of values and of their squares."""

    def __init__(self) -> None:
        self.number = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, inputs: Tensor) -> None:
        """Take in the inputs of a layer: [B, C, ...]."""
        channels = inputs.detach().double().transpose(0, 1).flatten(1)
        self.number += channels.shape[1]
        self.total = self.total + channels.sum(1)
        self.squares = self.squares + channels.square().sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Return the means, and the variances divided by n - 1, as torch keeps them."""
        total, squares = torch.as_tensor(self.total), torch.as_tensor(self.squares)
        mean = total / self.number
        return mean, ((squares - total * mean) / max(self.number - 1, 1)).clamp_min(0)


def tracking(net: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers that keep running statistics, by name."""
    norms = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    return {name: layer for name, layer in norms.items() if layer.running_mean is not None}


def statistics_names(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the running means and variances of BatchNorm."""
    return tuple(f"{name}.{of}" for name in tracking(net) for of in ("running_mean", "running_var"))


def batchnorm_statistics(module: nn.Module, params: Params, batches: Iterable[Batch]) -> Params:
    """Return the mean and the variance by channel of what each BatchNorm layer takes in, over all examples of the batches.

    Each batch is normalised by its own statistics, as in training, and nothing is dropped out. So the first layer's numbers do
    not depend on how examples are batched, and those of later ones do, a little. A layer that the forward pass does not call
    keeps its statistics. Nothing of the module is changed.
    """
    net = net_of(module)
    _, tensors = split(params, ())
    with torch.no_grad(), evaluated(module), _watched(tracking(net)) as moments:
        for batch in batches:
            loss_at(module, tensors, batch)  # whose BatchNorm updates the copies
    measured = {name: params[name] for name in statistics_names(net)}
    for name, moment in moments.items():
        if moment.number:
            measured[f"{name}.running_mean"], measured[f"{name}.running_var"] = moment.mean_and_variance()
    return measured


@contextmanager
def _watched(layers: dict[str, nn.Module]) -> Iterator[dict[str, Moments]]:
    """Put these layers into training mode, and sum up what they take in. Their modes are put back by `evaluated`, around it."""
    moments = {name: Moments() for name in layers}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: moments[name].add(next(iter([*args, *kwargs.values()]))), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    for layer in layers.values():
        layer.train()
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()
