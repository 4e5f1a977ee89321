"""fit_together: (module, what each of several clients trains) -> what `fit` makes of each, from one batched model.

Their parameters are stacked, [clients, ...]: one forward pass (torch.func.vmap), one backward pass and one step of the module's
own optimizer serve all of them. Clients leave the stack as they finish, so that no step is made for nobody; a batch that is
smaller than the others is filled up with examples that weigh nothing. The result is that of training one client after the
other, up to the rounding of sums in another order; where it would not be, federated/client/batched_check.py says so.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedprune.local.frozen import frozen
from fedprune.local.module import Batch, LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.step import pull
from fedprune.local.train import Trained, holes, number, set_mode, slowed
from fedprune.tensors import call, tensors_of
from fedprune.types import Mask, Params, Subnet


class Share(NamedTuple):
    """What one client trains, and on what. steps: how many batches there are, none of them empty."""

    subnet: Subnet
    batches: Iterable[Batch]
    steps: int


def fit_together(module: LocalModule, shares: Sequence[Share], recipe: Recipe, decay: float = 1.0) -> list[Trained]:
    """What `fit` makes of each, in their order, with a module and a recipe to which there is no obstacle. Something is dead in
    all of the networks, or in none: they have one learning rate.

    The module's network lends its layers; its parameters stay as they are.
    """
    set_mode(module, recipe)
    order = sorted(range(len(shares)), key=lambda place: -shares[place].steps)
    ordered = [shares[place] for place in order]
    masks = _masks(module, [share.subnet.mask for share in ordered])
    with frozen(module.net, recipe.fixed if masks else ()), sdpa_kernel(SDPBackend.MATH):  # the attention that goes under vmap
        decay *= recipe.retrain_lr if masks else 1.0
        stack = _stacked(module, [share.subnet.params for share in ordered], masks, recipe.proximal_mu, decay)
        trained = dict(zip(order, _trained(module, stack, ordered), strict=True))
    return [trained[place] for place in range(len(shares))]


@dataclass(frozen=True)
class _Stack:
    """The networks of several clients, end to end, and one optimizer for all. Every tensor is [clients, ...], and gets shorter.

    buffers: they do not change. masks: zeros and ones, of the parameters in which something is dead. sent: the parameters that
    are trained, as they came, if they are pulled there, with mu.
    """

    parameters: dict[str, nn.Parameter]
    buffers: Params
    masks: Params
    mu: float
    sent: list[Tensor]
    optimizer: torch.optim.Optimizer

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters.values() if parameter.requires_grad]

    def leaves(self) -> Params:
        """What is trained, in the same memory: of a tensor that gets shorter autograd remembers that it was longer."""
        return {name: p.detach().requires_grad_() for name, p in self.parameters.items() if p.requires_grad}

    def still(self) -> Params:
        return self.buffers | {name: p.detach() for name, p in self.parameters.items() if not p.requires_grad}


def _masks(module: LocalModule, masks: Sequence[Mask]) -> Params:
    parameters, holed = dict(module.net.named_parameters()), [holes(module, mask) for mask in masks]
    return {
        name: torch.stack(
            [number(own[name], parameters[name]) if name in own else torch.ones_like(parameters[name]) for own in holed]
        )
        for name in dict.fromkeys(itertools.chain(*holed))
    }


def _stacked(module: LocalModule, params: Sequence[Params], masks: Params, mu: float, decay: float) -> _Stack:
    state = tensors_of(module.net)
    rows = {name: torch.stack([own[name] for own in params]).to(tensor) for name, tensor in state.items()}
    parameters = {name: nn.Parameter(rows.pop(name), p.requires_grad) for name, p in module.net.named_parameters()}
    sent = [p.detach().clone() for p in parameters.values() if p.requires_grad] if mu else []
    return _Stack(parameters, rows, masks, mu, sent, slowed(module.optimizer([*parameters.values()]), decay))


def _trained(module: LocalModule, stack: _Stack, shares: Sequence[Share]) -> list[Trained]:
    """shares: of the clients in the stack, those with the most steps first."""
    loss = vmap(functools.partial(_loss, module))
    batches, there, done = [iter(share.batches) for share in shares], len(shares), 0
    losses, examples, params = torch.zeros(there, device=module.device), [0] * there, list[Params]()
    for steps, finished in itertools.groupby(reversed(shares), key=lambda share: share.steps):
        leaves, still = stack.leaves(), stack.still()
        for _ in range(done, steps):
            inputs, labels, sizes = _joined([next(one) for one in batches[:there]])
            means, sums = loss(leaves, still, inputs, labels, _real(sizes, inputs.device))
            # The gradient of the sum is that of each one's mean: nobody else's goes by a client's parameters.
            _step(stack, torch.autograd.grad(means.sum(), [*leaves.values()], allow_unused=True))
            losses[:there] += sums.detach()
            examples[:there] = [seen + size for seen, size in zip(examples, sizes, strict=False)]
        there, done = there - len(list(finished)), steps
        params = _leave(stack, there, [*tensors_of(module.net)]) + params
    ends = zip(params, losses.tolist(), shares, examples, strict=True)
    return [Trained(made, loss / max(seen, 1), share.steps, seen, {}) for made, loss, share, seen in ends]


def _loss(
    module: LocalModule, trained: Params, still: Params, inputs: Tensor, labels: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Of one client's batch: the mean loss over the examples that are real (1, and 0 for the others), and the sum."""
    outputs = call(module.net, {**trained, **still}, inputs)
    total = (module.loss(outputs, labels, "none") * real).sum()
    return total / real.sum(), total


def _step(stack: _Stack, gradients: Sequence[Tensor | None]) -> None:
    trained = stack.trained()
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.contiguous()  # as the parameter is, for fused optimizers
    if stack.sent:
        pull([*trained], stack.sent, stack.mu)
    stack.optimizer.step()
    if stack.masks:
        with torch.no_grad():
            torch._foreach_mul_([stack.parameters[name] for name in stack.masks], [*stack.masks.values()])


def _joined(batches: Sequence[Batch]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Inputs and labels, [clients, examples, ...], and how many examples each client has: more are its first one again."""
    sizes = tuple(len(labels) for _, labels in batches)
    inputs, labels = (torch.stack([_filled(part, max(sizes)) for part in parts]) for parts in zip(*batches, strict=True))
    return inputs, labels, sizes


def _filled(part: Tensor, size: int) -> Tensor:
    return part if len(part) == size else torch.cat([part, part[:1].expand(size - len(part), *part.shape[1:])])


@functools.lru_cache(maxsize=64)
def _real(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """[clients, examples]: 1 for as many examples as each has, then 0."""
    return (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).float().to(device)


def _leave(stack: _Stack, there: int, names: Sequence[str]) -> list[Params]:
    """The networks of the clients who have finished: all but the first `there`, with whom the stack goes on."""
    tensors = stack.parameters | stack.buffers
    gone = {name: tensors[name][there:].detach().to("cpu", copy=True) for name in names}
    for parameter in stack.parameters.values():
        state = stack.optimizer.state.get(parameter, {}).values()
        alike = [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]
        parameter.grad = None
        _shorten([parameter, *alike], there)
    _shorten([*stack.buffers.values(), *stack.masks.values(), *stack.sent], there)
    return [{name: row.clone() for name, row in zip(gone, rows, strict=True)} for rows in zip(*gone.values(), strict=True)]


def _shorten(tensors: Iterable[Tensor], there: int) -> None:
    for tensor in tensors:
        tensor.data = tensor.data[:there]
