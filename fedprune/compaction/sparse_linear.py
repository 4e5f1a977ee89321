"""A linear layer that holds, multiplies and trains nothing but its living weights.

Its parameter is their values. Their places are computed once, for the forward pass and, transposed, for the backward pass:

    outputs            sums of the inputs' rows, weighed:  y_r = sum over living (r, c) of w_rc x_c + b_r
    gradient by inputs      likewise, by the transposed structure
    gradient by values      a product of two rows for each living weight, and for no other

Examples are the columns there, so that a weight meets 32 of them at a time. On one core, with a batch of 32, a pass and a step
of 784 x 300 take 0.65 of the dense layer's time at a density of 0.2, 0.5 at 0.1 and 0.3 at 0.01; of 300 x 100 as long as dense.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor, nn

from fedprune.types import Ctx

DENSEST, LEAST = 0.2, 5e6
"""A sparse layer pays at this density or less, if the layer has so many weights times examples of a batch or more. Measured for
batches of 10, 32 and 128 (benchmarks/sparse.py). No worker measures it anew, because the choice decides about last bits."""


def pays(density: float, weights: int, batch: int) -> bool:
    """Return whether a layer of so many weights, dead ones too, is faster as a sparse one."""
    return density <= DENSEST and weights * batch >= LEAST


def remaining(density: float) -> float:
    """Return the fraction of the dense layer's time that the sparse one takes, about."""
    return 0.4 + 1.5 * density


class SparseLinear(nn.Module):
    """A linear layer of living weights only. Inputs are [B, inputs].

    layer: the dense layer that it replaces, whose bias it has. alive: the mask of its weight, [outputs, inputs].
    values: [living weights], in the order of rows; they must be loaded.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear, alive: Tensor):
        super().__init__()
        weight = layer.weight
        self.values = nn.Parameter(weight.detach().new_empty(int(alive.sum())), weight.requires_grad)
        self.register_parameter("bias", layer.bias)
        self.structure = Structure(alive, weight.dtype)

    def forward(self, inputs: Tensor, more: Tensor | None = None) -> Tensor:
        """Return [B, outputs]. more: [outputs], added to the bias."""
        product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # torch does not type it
            inputs, self.values, self.structure
        )
        if self.bias is None:
            bias: Tensor | None = more
        else:
            bias = self.bias if more is None else self.bias + more
        return product.t() if bias is None else product.t() + bias


class Structure:
    """The places of living weights: their columns, row after row, and where in that list each row begins and the last ends."""

    def __init__(self, alive: Tensor, dtype: torch.dtype):
        self.alive = alive
        self.columns, self.begins = _listed(alive)
        with warnings.catch_warnings():  # torch warns that its sparse tensors are in beta; their use here is tested
            warnings.simplefilter("ignore", UserWarning)
            nothing = torch.zeros(len(self.columns), dtype=dtype)
            self.pattern = torch.sparse_csr_tensor(self.begins, self.columns, nothing, alive.shape, check_invariants=False)

    @functools.cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same by columns: the rows, where each column begins, and the place of each entry among the values."""
        numbers = torch.zeros(self.alive.shape, dtype=torch.int64)
        numbers[self.alive] = torch.arange(len(self.columns))
        return *_listed(self.alive.t()), numbers.t()[self.alive.t()]


class _Product(torch.autograd.Function):
    """[B, inputs], [living weights] -> [outputs, B]."""

    @staticmethod
    def forward(ctx: Ctx, inputs: Tensor, values: Tensor, structure: Structure) -> Tensor:
        rows = inputs.t().contiguous()
        ctx.save_for_backward(rows, values)
        ctx.structure = structure
        return _weighed(rows, structure.columns, structure.begins, values)

    @staticmethod
    def backward(ctx: Ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, values = ctx.saved_tensors
        outputs = gradients[0].contiguous()
        by_inputs: Tensor | None = None
        by_values: Tensor | None = None
        if ctx.needs_input_grad[0]:
            columns, begins, order = ctx.structure.transposed
            by_inputs = _weighed(outputs, columns, begins, values.index_select(0, order)).t()
        if ctx.needs_input_grad[1]:
            by_values = torch.sparse.sampled_addmm(ctx.structure.pattern, outputs, rows.t(), beta=0.0).values()
        return by_inputs, by_values, None


def _weighed(rows: Tensor, which: Tensor, begins: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the rows of each list. which: the rows, list after list; begins: where each list begins."""
    return torch.embedding_bag(rows, which, begins, False, 0, False, weights, True)[0]


def _listed(alive: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of living entries, row after row, and where each row begins and the last ends."""
    counts = alive.sum(1)
    return alive.nonzero()[:, 1].contiguous(), torch.cat([counts.new_zeros(1), counts.cumsum(0)])
