"""Evidence: the closed vocabulary that a formula may ask for by argument name, and how each piece is measured.

`params`, `generator`: anyone has them. `grads`: from batches of training data, on the client.
Measure where the data is, average the evidence, score once: with gradients averaged by example count, federated SNIP is SNIP on
the pooled data. Measuring has no side effects: module, buffers, random state and `.grad` are as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from fedprune.types import Params

Batch = tuple[Tensor, ...]
Loss = Callable[[Batch], Tensor]


class TrainingLoss(nn.Module):
    """A LightningModule's training loss as something that `functional_call` can evaluate at other parameters."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        loss = self.module.training_step(batch, 0)  # type: ignore[operator]
        return loss["loss"] if isinstance(loss, Mapping) else loss


def grads(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """The gradient of the mean loss over all examples of `batches`, at `params`, for the named tensors (of module.net).

    In the mode that the module is in (to score what will be trained: that of training), on copies of the buffers.
    """
    tensors = {f"module.net.{name}": value.detach().clone() for name, value in params.items()}
    wanted = [tensors[f"module.net.{name}"].requires_grad_() for name in names]
    total, examples = [torch.zeros_like(w) for w in wanted], 0
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global state
        for batch in batches:
            loss = torch.func.functional_call(TrainingLoss(module), tensors, (batch,))
            gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
            torch._foreach_add_(total, gradients, alpha=len(batch[0]))
            examples += len(batch[0])
    return {name: g / max(examples, 1) for name, g in zip(names, total, strict=True)}


FROM_SERVER = ("params", "generator")
FROM_DATA: dict[str, Callable[..., Params]] = {"grads": grads}
KNOWN = (*FROM_SERVER, *FROM_DATA)


def needs(formula: Callable) -> tuple[str, ...]:
    """The evidence that a formula asks for: its parameters without a default. Works on functools.partial, too."""
    parameters = inspect.signature(formula).parameters.values()
    return tuple(p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD)


def unknown(formula: Callable) -> list[str]:
    """What a formula asks for that nobody can measure."""
    return [name for name in needs(formula) if name not in KNOWN]


def mean(parts: Iterable[tuple[Params, int]]) -> Params:
    """Evidence of several clients, averaged by their example counts."""
    total: Params = {}
    examples = 0
    for evidence, weight in parts:
        total = {name: value * weight + total.get(name, 0) for name, value in evidence.items()}
        examples += weight
    return {name: value / examples for name, value in total.items()}
