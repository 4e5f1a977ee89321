"""SWAT: training with sparse weights and activations. Raihan & Aamodt 2020; in federated learning ZeroFL, Qiu et al. 2022.

In every prunable layer, with top() keeping the entries of greatest magnitude of a tensor and zeroing the others:

    forward             out = layer(x, top(w))
    gradient by x       of layer(., top(w)): by the sparse weights
    gradient by w       of layer(top(x), .): by the sparse activations, and dense, so that every weight moves

The network that is in use is the one with top(w). With all its weights it is a different network, which was never trained.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedprune.local.regularisers.base import Forwards, Regulariser, run, weight_and_bias
from fedprune.local.regularisers.check import require
from fedprune.pruning.what.top_k import nearest
from fedprune.types import Ctx, Mask, Params


def swat(density: float) -> Regulariser:
    """Run prunable layers sparse. density: the fraction that is kept of each layer's weights, and of its inputs in a batch."""
    require({f"local.dropout.density={density} is the fraction kept: more than 0, at most 1": 0 < density <= 1})
    return Regulariser(layers=functools.partial(_sparse, density=density), used=functools.partial(used, density=density))


def top(values: Tensor, density: float) -> Tensor:
    """Keep the entries of greatest magnitude, as many as the nearest whole number to density x entries; 0 elsewhere.

    Ties, which images are full of, go to the lower flat index.
    """
    flat = values.reshape(-1)
    number = nearest(density * len(flat))
    if number >= len(flat):
        return values
    if number == 0:
        return torch.zeros_like(values)
    sizes = flat.abs()
    least = sizes.topk(number, sorted=False).values.min()
    kept, ties = sizes > least, sizes == least
    kept |= ties & (ties.cumsum(0) <= number - kept.sum())
    return torch.where(kept, flat, 0).view(values.shape)


def used(params: Params, names: Iterable[str], density: float) -> Params:
    """Return the network that is in use: of the named tensors only the greatest entries."""
    return params | {name: top(params[name], density) for name in names}


def _sparse(net: nn.Module, mask: Mask, density: float) -> Forwards:
    return {name.rpartition(".")[0]: functools.partial(_run, density=density) for name in mask}


def _run(layer: nn.Module, inputs: Tensor, density: float) -> Tensor:
    weight, bias = weight_and_bias(layer)
    outputs: Tensor = SparseLayer.apply(layer, inputs, weight, bias, density)  # type: ignore[no-untyped-call]  # torch's
    return outputs


class SparseLayer(torch.autograd.Function):
    """The three passes of a linear layer or convolution, each with its sparse operands. ctx: torch's, to which any attribute
    can be set."""

    @staticmethod
    def forward(ctx: Ctx, layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None, density: float) -> Tensor:
        sparse = top(weight, density)
        ctx.layer, ctx.biased = layer, bias is not None
        ctx.save_for_backward(top(inputs, density), sparse)
        return run(layer, inputs, sparse, bias)

    @staticmethod
    def backward(ctx: Ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients: by the inputs (of the sparse weight), by the weight (of the sparse inputs), by the bias."""
        (grad,) = grads
        inputs, weight = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        wanted = [tensor for tensor, needed in zip((inputs, weight), ctx.needs_input_grad[1:3], strict=True) if needed]
        # The layer is linear in its inputs and in its weight, so each gradient depends on the other operand alone.
        with torch.enable_grad():
            gradients = _gradients(run(ctx.layer, inputs, weight, None), wanted, grad)
        by_operand = dict(zip(map(id, wanted), gradients, strict=True))
        return None, by_operand.get(id(inputs)), by_operand.get(id(weight)), _of_bias(ctx, grad), None


def _gradients(outputs: Tensor, by: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, by, grad) if by else ()


def _of_bias(ctx: Ctx, grad: Tensor) -> Tensor | None:
    """Sum over all but the units: outputs are [..., units] of a linear layer, [examples, channels, ...] of a convolution."""
    if not (ctx.biased and ctx.needs_input_grad[3]):
        return None
    units = -1 if isinstance(ctx.layer, nn.Linear) else 1
    return grad.movedim(units, 0).flatten(1).sum(1)
