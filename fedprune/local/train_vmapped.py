"""Train several clients as one batched model: `fit_together` returns for each of them what `fit` would return.

Their parameters are stacked, [clients, ...]: one forward pass (torch.func.vmap), one backward pass and one step of the module's
optimizer serve all of them. A client leaves the stack after its last step. A batch that is smaller than the others is filled up
with examples of weight zero. The result is that of training one client after the other, up to the rounding of sums in another
order; federated/client/batched_check.py finds the cases in which it would be different.
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
    """One client's subnet and batches. steps: the number of batches, none of which is empty."""

    subnet: Subnet
    batches: Iterable[Batch]
    steps: int


def fit_together(module: LocalModule, shares: Sequence[Share], recipe: Recipe, decay: float = 1.0) -> list[Trained]:
    """Return what `fit` would return for each client, in their order. The module's network only lends its layers: its
    parameters do not change.

    Something must be dead in all of the networks, or in none, since they share a learning rate; and batched_check.py must have
    found no obstacle to the module and the recipe.
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
    """The networks of several clients as stacked tensors, [clients, ...], and one optimizer for all. The tensors get shorter as
    clients finish.

    buffers: they do not change. masks: zeros and ones, of the parameters in which something is dead. mu: the strength of the
    proximal pull to `sent`, the trained parameters as the clients were sent them (empty: no pull).
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
        """Return fresh leaves that share the memory of what is trained: autograd would remember the length before a
        shortening."""
        return {name: p.detach().requires_grad_() for name, p in self.parameters.items() if p.requires_grad}

    def still(self) -> Params:
        return self.buffers | {name: p.detach() for name, p in self.parameters.items() if not p.requires_grad}


def _masks(module: LocalModule, masks: Sequence[Mask]) -> Params:
    parameters, of_clients = dict(module.net.named_parameters()), [holes(module, mask) for mask in masks]

    def row(mask: Mask, name: str) -> Tensor:
        return number(mask[name], parameters[name]) if name in mask else torch.ones_like(parameters[name])

    names = dict.fromkeys(itertools.chain(*of_clients))
    return {name: torch.stack([row(mask, name) for mask in of_clients]) for name in names}


def _stacked(module: LocalModule, params: Sequence[Params], masks: Params, mu: float, decay: float) -> _Stack:
    state = tensors_of(module.net)
    rows = {name: torch.stack([tensors[name] for tensors in params]).to(tensor) for name, tensor in state.items()}
    parameters = {name: nn.Parameter(rows.pop(name), p.requires_grad) for name, p in module.net.named_parameters()}
    sent = [p.detach().clone() for p in parameters.values() if p.requires_grad] if mu else []
    return _Stack(parameters, rows, masks, mu, sent, slowed(module.optimizer([*parameters.values()]), decay))


def _trained(module: LocalModule, stack: _Stack, shares: Sequence[Share]) -> list[Trained]:
    """Train the stack. shares: of its clients, those with the most steps first."""
    loss = vmap(functools.partial(_loss, module))
    batches, there, done = [iter(share.batches) for share in shares], len(shares), 0
    losses, examples, params = torch.zeros(there, device=module.device), [0] * there, list[Params]()
    for steps, leaving in itertools.groupby(reversed(shares), key=lambda share: share.steps):
        leaves, still = stack.leaves(), stack.still()
        for _ in range(done, steps):
            inputs, labels, sizes = _joined([next(one) for one in batches[:there]])
            means, sums = loss(leaves, still, inputs, labels, _real(sizes, inputs.device))
            # The gradient of the sum is that of each client's mean: no other mean depends on the client's parameters.
            _step(stack, torch.autograd.grad(means.sum(), [*leaves.values()], allow_unused=True))
            losses[:there] += sums.detach()
            examples[:there] = [seen + size for seen, size in zip(examples, sizes, strict=False)]
        there, done = there - len(list(leaving)), steps
        params = _leave(stack, there, [*tensors_of(module.net)]) + params
    finished = zip(params, losses.tolist(), shares, examples, strict=True)
    return [Trained(tensors, loss / max(seen, 1), share.steps, seen, {}) for tensors, loss, share, seen in finished]


def _loss(
    module: LocalModule, trained: Params, still: Params, inputs: Tensor, labels: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean and the sum of one client's losses over its real examples. real: 1 for these, 0 for the others."""
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
    """Return inputs and labels, [clients, examples, ...], filled up with first examples; and the number of real ones by
    client."""
    sizes = tuple(len(labels) for _, labels in batches)
    inputs, labels = (torch.stack([_filled(part, max(sizes)) for part in parts]) for parts in zip(*batches, strict=True))
    return inputs, labels, sizes


def _filled(part: Tensor, size: int) -> Tensor:
    return part if len(part) == size else torch.cat([part, part[:1].expand(size - len(part), *part.shape[1:])])


@functools.lru_cache(maxsize=64)
def _real(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return [clients, examples]: 1 for the real examples of each client, then 0."""
    return (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).float().to(device)


def _leave(stack: _Stack, there: int, names: Sequence[str]) -> list[Params]:
    """Return the networks of the clients who have finished; the stack goes on with the first `there` clients."""
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
