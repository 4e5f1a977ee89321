"""Evidence from first derivatives: gradients, the Hessian times the gradient, and movement along a training pass.

Every function is (module, params, names, batches) -> one tensor per name, a mean over the examples of `batches`: derivatives of
the module's loss at `params` (all of module.net) by the named tensors. `batches` is read once or more. Functions whose result
depends on which entries are dead take the mask of the named tensors instead of their names: a value of zero may be alive.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from fedprune.precision import wide, wide_zeros
from fedprune.pruning.evidence.loss import Batch, OneOptimizer, TrainingLoss, loss_at, net_of, over_examples, split
from fedprune.pruning.evidence.network import Network, blank, differentiable
from fedprune.tensors import copies, load_tensors
from fedprune.types import Mask, Params


def grads(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return the gradient of the mean loss over all examples.

    The mode is the one that the module is in (training mode, to score a network that will be trained). Buffers are copies.
    """
    wanted, others = split(params, names)
    tensors = [w.requires_grad_() for w in wanted.values()]

    def gradient(batch: Batch) -> Params:
        slopes = torch.autograd.grad(loss_at(module, wanted | others, batch), tensors, materialize_grads=True)
        widened = [wide(slope).detach() for slope in slopes]  # zeros for what is not reached may ask for gradients
        torch._foreach_mul_(widened, len(batch[0]))
        return dict(zip(wanted, widened, strict=True))

    return over_examples(gradient, batches, wanted)


def abs_grads(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return |g|, g the gradient of the mean loss over a client's examples; over clients, absolute values are averaged."""
    return {name: g.abs() for name, g in grads(module, params, names, batches).items()}


def hessian_grads(module: nn.Module, params: Params, alive: Mask, batches: Iterable[Batch]) -> Params:
    """Return H g: the Hessian of the mean loss times its gradient, over the living of the named tensors. GraSP asks for it.

    Both passes see the same batches (and the same dropout), in the mode that the module is in. The gradient of dead entries is
    left out, since they will not be trained. Over several clients this is the mean of each one's H g, which is not H g of the
    pooled data: a product of means is not the mean of products.
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
            second = torch.autograd.grad(cast(Tensor, slope), tensors, materialize_grads=True)
        return {name: len(batch[0]) * wide(hg) for name, hg in zip(wanted, second, strict=True)}

    return over_examples(product, batches, wanted)


def uncopied(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why `movement` cannot be measured in this network, which is trained as a copy, or None."""
    network.run(copies(network.net), blank(network.net, network.shape))  # computed weights are there only after a run
    try:
        copy.deepcopy(network.net)
    except Exception as error:
        reason = str(error).partition(".")[0]
        return f"{type(network.net).__name__} cannot be copied ({reason}), and a copy is trained: choose criterion=taylor"
    return None


def movement(module: nn.Module, params: Params, alive: Mask, batches: Iterable[Batch]) -> Params:
    """Return -sum_t w_t g_t over the steps of one pass over `batches`. Sanh, Wolf & Rush 2020.

    A copy of the module is trained from `params` with the module's optimizer, and then forgotten. Dead entries stay zero. g_t
    is the gradient of a batch; the learning rate is the optimizer's, before any decay by round.
    """
    replica = copy.deepcopy(module)
    net = net_of(replica)
    weights = dict(net.named_parameters())
    load_tensors(net, params)
    optimizer, loss = cast(OneOptimizer, replica).one_optimizer(), TrainingLoss(replica)
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
                    weights[name].mul_(alive[name])
    return moved
