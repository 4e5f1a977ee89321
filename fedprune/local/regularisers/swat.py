"""SWAT: training with sparse weights and activations. Raihan & Aamodt 2020; in federated learning ZeroFL, Qiu et al. 2022.

In every prunable layer, with top() keeping the entries of greatest magnitude of a tensor and zeroing the others:

    forward             out = layer(x, top(w))
    gradient by x       of layer(., top(w)): by the sparse weights
    gradient by w       of layer(top(x), .): by the sparse activations, and dense, so that every weight moves

The network that is in use is the one with top(w): evaluated with all its weights it is another one, which nobody trained.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedprune.local.regularisers.base import Forward, Regulariser, require, run
from fedprune.pruning.what.top_k import nearest
from fedprune.types import Mask, Params


def swat(density: float) -> Regulariser:
    """density: the fraction of each layer's weights, and of the entries that go into it in a batch, that is kept."""
    require({f"local.dropout.density={density} is the fraction kept: more than 0, at most 1": 0 < density <= 1})
    return Regulariser(layers=functools.partial(_sparse, density=density), used=functools.partial(used, density=density))


def top(values: Tensor, density: float) -> Tensor:
    """Of these values, the nearest whole number to density times their number, those of greatest magnitude; 0 elsewhere.

    Ties, which images are full of, go to the lower flat index.
    """
    flat = values.reshape(-1)
    number = nearest(density * len(flat))
    if number >= len(flat):
        return values
    if number == 0:
        return torch.zeros_like(values)
    sizes = flat.abs()
    cut = sizes.topk(number, sorted=False).values.min()
    kept, ties = sizes > cut, sizes == cut
    kept |= ties & (ties.cumsum(0) <= number - kept.sum())
    return torch.where(kept, flat, 0).view(values.shape)


def used(params: Params, names: Iterable[str], density: float) -> Params:
    """The network that is in use: the named tensors with their greatest entries alone."""
    return params | {name: top(params[name], density) for name in names}


def _sparse(net: nn.Module, mask: Mask, density: float) -> dict[str, Forward]:
    return {name.rpartition(".")[0]: functools.partial(_run, density=density) for name in mask}


def _run(layer: nn.Module, inputs: Tensor, density: float) -> Tensor:
    return SparseLayer.apply(layer, inputs, layer.weight, layer.bias, density)


class SparseLayer(torch.autograd.Function):
    """The three passes of a linear layer or convolution, each on what is sparse in it."""

    @staticmethod
    def forward(ctx, layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None, density: float) -> Tensor:
        sparse = top(weight, density)
        ctx.layer, ctx.biased = layer, bias is not None
        ctx.save_for_backward(top(inputs, density), sparse)
        return run(layer, inputs, sparse, bias)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By the inputs through the sparse weight; by the weight through the sparse inputs, and dense; by the bias as ever."""
        (grad,) = grads
        inputs, weight = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        wanted = [tensor for tensor, needed in zip((inputs, weight), ctx.needs_input_grad[1:3], strict=True) if needed]
        # The layer is linear in its inputs and in its weight: the gradient by one is the other's, whatever the outputs were.
        with torch.enable_grad():
            found = dict(zip(map(id, wanted), _gradients(run(ctx.layer, inputs, weight, None), wanted, grad), strict=True))
        return None, found.get(id(inputs)), found.get(id(weight)), _of_bias(ctx, grad), None


def _gradients(outputs: Tensor, by: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, by, grad) if by else ()


def _of_bias(ctx, grad: Tensor) -> Tensor | None:
    """Outputs are [..., units] of a linear layer, [examples, channels, ...] of a convolution."""
    if not (ctx.biased and ctx.needs_input_grad[3]):
        return None
    units = -1 if isinstance(ctx.layer, nn.Linear) else 1
    return grad.movedim(units, 0).flatten(1).sum(1)
