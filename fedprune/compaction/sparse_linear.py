"""A linear layer that holds, multiplies and trains nothing but its living weights.

Its parameter is their values. Where they are is worked out once, for the forward pass and, transposed, for the backward pass:

    outputs            sums of the inputs' rows, weighed:  y_r = sum over living (r, c) of w_rc x_c + b_r
    gradient by inputs      likewise, by the transposed structure
    gradient by values      a product of two rows for each living weight, and for no other

Examples are columns meanwhile, so that a weight meets 32 of them in one go. On one core, with a batch of 32, a pass and a step
of 784 x 300 take 0.65 of the dense layer's time at a density of 0.2, 0.5 at 0.1 and 0.3 at 0.01; of 300 x 100 as long as dense.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

DENSEST, LEAST = 0.2, 5e6
"""A layer of at most this density is worth it, if it has so many weights times examples of a batch. Measured for batches of 10,
32 and 128 (benchmarks/sparse.py); fixed, and not found out anew by each worker, because the choice decides about last bits."""


def pays(density: float, weights: int, batch: int) -> bool:
    """Whether a layer of so many weights, dead ones too, is faster like this."""
    return density <= DENSEST and weights * batch >= LEAST


def remaining(density: float) -> float:
    """The fraction of the dense layer's time that it takes, about."""
    return 0.4 + 1.5 * density


class SparseLinear(nn.Module):
    """alive: [outputs, inputs], what lives of the layer that it replaces, whose bias it has. Inputs are [B, inputs].

    values: [living weights], in the order of rows; they are to be loaded.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear, alive: Tensor):
        super().__init__()
        weight = layer.weight
        self.values = nn.Parameter(weight.detach().new_empty(int(alive.sum())), weight.requires_grad)
        self.register_parameter("bias", layer.bias)
        self.structure = Structure(alive, weight.dtype)

    def forward(self, inputs: Tensor, more: Tensor | None = None) -> Tensor:
        """[B, outputs]. more: [outputs], added to the bias."""
        bias = more if self.bias is None else self.bias if more is None else self.bias + more
        outputs = _Product.apply(inputs, self.values, self.structure)
        return outputs.t() if bias is None else outputs.t() + bias


class Structure:
    """Where living weights are: of each row in turn their columns, and where in that list each row begins and the last ends."""

    def __init__(self, alive: Tensor, dtype: torch.dtype):
        self.alive = alive
        self.columns, self.begins = _listed(alive)
        with warnings.catch_warnings():  # torch says that its sparse tensors are not finished; what is used of them is tested
            warnings.simplefilter("ignore", UserWarning)
            nothing = torch.zeros(len(self.columns), dtype=dtype)
            self.pattern = torch.sparse_csr_tensor(self.begins, self.columns, nothing, alive.shape, check_invariants=False)

    @functools.cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same of columns: their rows, where each column begins, and the place of each entry among the values."""
        numbers = torch.zeros(self.alive.shape, dtype=torch.int64)
        numbers[self.alive] = torch.arange(len(self.columns))
        return *_listed(self.alive.t()), numbers.t()[self.alive.t()]


class _Product(torch.autograd.Function):
    """[B, inputs], [living weights] -> [outputs, B]."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, structure: Structure) -> Tensor:
        rows = inputs.t().contiguous()
        ctx.save_for_backward(rows, values)
        ctx.structure = structure
        return _weighed(rows, structure.columns, structure.begins, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, values = ctx.saved_tensors
        outputs, found = gradients[0].contiguous(), list[Tensor | None]([None, None])
        if ctx.needs_input_grad[0]:
            columns, begins, order = ctx.structure.transposed
            found[0] = _weighed(outputs, columns, begins, values.index_select(0, order)).t()
        if ctx.needs_input_grad[1]:
            found[1] = torch.sparse.sampled_addmm(ctx.structure.pattern, outputs, rows.t(), beta=0.0).values()
        return *found, None


def _weighed(rows: Tensor, which: Tensor, begins: Tensor, weights: Tensor) -> Tensor:
    """Of each list, the sum of the rows in it, weighed."""
    return torch.embedding_bag(rows, which, begins, False, 0, False, weights, True)[0]


def _listed(alive: Tensor) -> tuple[Tensor, Tensor]:
    counts = alive.sum(1)
    return alive.nonzero()[:, 1].contiguous(), torch.cat([counts.new_zeros(1), counts.cumsum(0)])
