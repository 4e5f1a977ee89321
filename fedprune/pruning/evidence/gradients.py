"""Evidence from first derivatives: how gradients, their curvature along themselves, and the way of weights are measured.

Every function is (module, params, names, batches) -> one tensor per name, a mean over the examples of `batches`: the module's
loss at `params` (all of module.net), about the named tensors. `batches` is gone through once or more. Those to which it matters
what is dead take the mask of the named tensors in the place of their names: a value of zero may be alive.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from fedprune.precision import wide, wide_zeros
from fedprune.pruning.evidence.loss import Batch, TrainingLoss, loss_at, over_examples, split
from fedprune.pruning.evidence.network import Network, blank, differentiable
from fedprune.tensors import copies, load_tensors
from fedprune.types import Mask, Params


def grads(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """The gradient of the mean loss over all examples.

    In the mode that the module is in (to score what will be trained: that of training), on copies of the buffers.
    """
    wanted, others = split(params, names)
    tensors = [w.requires_grad_() for w in wanted.values()]

    def gradient(batch: Batch) -> Params:
        found = torch.autograd.grad(loss_at(module, wanted | others, batch), tensors, materialize_grads=True)
        widened = [wide(gradient) for gradient in found]
        torch._foreach_mul_(widened, len(batch[0]))
        return dict(zip(wanted, widened, strict=True))

    return over_examples(gradient, batches, wanted)


def abs_grads(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """|g|, g the gradient of the mean loss over a client's examples: of several clients, the mean of absolute values."""
    return {name: g.abs() for name, g in grads(module, params, names, batches).items()}


def hessian_grads(module: nn.Module, params: Params, alive: Mask, batches: Iterable[Batch]) -> Params:
    """H g: the Hessian of the mean loss times its gradient, over the living of the named tensors. What GraSP asks for.

    Both passes see the same batches (and the same dropout), in the mode that the module is in. g of the dead is no part of it:
    they will not be trained. Of several clients this is the mean of each one's H g, which is not H g of the pooled data: a
    product of means is not the mean of products.
    """
    along = grads(module, params, tuple(alive), batches)
    along = {name: torch.where(alive[name], g, 0) for name, g in along.items()}
    wanted, others = split(params, alive)
    tensors = [w.requires_grad_() for w in wanted.values()]

    def product(batch: Batch) -> Params:
        with differentiable():
            loss = loss_at(module, wanted | others, batch)
            first = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
            slope = sum((g * along[name]).sum() for name, g in zip(wanted, first, strict=True))
            second = torch.autograd.grad(slope, tensors, materialize_grads=True)  # type: ignore[arg-type]
        return {name: len(batch[0]) * wide(hg) for name, hg in zip(wanted, second, strict=True)}

    return over_examples(product, batches, wanted)


def uncopied(network: Network, names: tuple[str, ...]) -> str | None:
    """Why `movement` is not to be had of this network, or None: it is trained as a copy."""
    network.run(copies(network.net), blank(network.net, network.shape))  # which leaves weights behind that are computed
    try:
        copy.deepcopy(network.net)
    except Exception as error:
        reason = str(error).partition(".")[0]
        return f"{type(network.net).__name__} cannot be copied ({reason}), and a copy is trained: choose criterion=taylor"
    return None


def movement(module: nn.Module, params: Params, alive: Mask, batches: Iterable[Batch]) -> Params:
    """-sum_t w_t g_t over the steps of one pass over `batches`, trained with the module's optimizer and then forgotten.

    A replay: a copy of the module is trained from `params`, which stay as they are. The dead stay zero. g_t is a batch's
    gradient; the learning rate is the optimizer's, before any decay by round.
    """
    replica = copy.deepcopy(module)
    weights = dict(replica.net.named_parameters())  # type: ignore[union-attr, operator]
    load_tensors(replica.net, params)  # type: ignore[arg-type]
    optimizer, loss = replica.one_optimizer(), TrainingLoss(replica)  # type: ignore[operator]
    moved = {name: wide_zeros(params[name]) for name in alive}
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global state
        for batch in batches:
            optimizer.zero_grad()
            loss(batch).backward()
            with torch.no_grad():
                for name in alive:
                    gradient = weights[name].grad
                    moved[name] -= 0 if gradient is None else wide(weights[name]) * gradient
                optimizer.step()
                for name in alive:
                    weights[name] *= alive[name]
    return moved
