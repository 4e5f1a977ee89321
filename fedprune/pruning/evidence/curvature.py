"""Evidence from second derivatives and their approximations.

A square of a mean is not a mean of squares: all of these look at examples one by one, so the network is in evaluation mode (a
single example has no batch statistics; nothing is dropped).

Every function is (module, params, names, batches) -> one tensor per name, a mean over the examples of `batches`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fedprune.errors import Incompatible
from fedprune.pruning.evidence.loss import (
    Batch,
    MoreThanOutputs,
    gathered,
    loss_at,
    loss_hessian,
    loss_slopes,
    net_of,
    over_examples,
    split,
)
from fedprune.pruning.evidence.network import Network, blank, differentiable, evaluated, reads_characters
from fedprune.pruning.evidence.per_example import per_example_losses, squares, summed
from fedprune.pruning.what.layers import prunable
from fedprune.tensors import tensors_of
from fedprune.types import Params

DIRECTIONS = 64  # of the exact Hessian, at once
EXACT = 20_000  # weights; with more, the exact Hessian takes minutes


def sq_grads(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return the mean of the examples' squared gradients: the diagonal of the *empirical* Fisher matrix, at the labels given.

    Where the loss is no function of one tensor of outputs, each example's gradient is that of its own training step.
    """
    wanted, others = split(params, names)
    net = net_of(module)

    def of_batch(batch: Batch) -> Params:
        try:
            return squares(net, wanted, others, batch[0], lambda outputs: loss_slopes(module, outputs, batch))
        except MoreThanOutputs:
            return summed(per_example_losses(module, wanted, others, batch))

    with evaluated(module):
        return over_examples(of_batch, gathered(batches), wanted)


def sq_grads_sampled(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return an unbiased estimate of the diagonal of the *true* Fisher matrix.

    As sq_grads, at labels drawn from the network's own softmax, one per example. For classifiers: batches (inputs, labels),
    outputs [B, classes], or [B, classes, T] of sequences, which get a label for each place.
    """

    def cotangents(outputs: Tensor, batch: Batch) -> Tensor:
        inputs, labels = batch
        _check_classes(outputs, labels)
        by_place = outputs.softmax(1).cpu().movedim(1, -1).flatten(0, -2)
        drawn = torch.multinomial(by_place, 1).view(labels.shape)
        return loss_slopes(module, outputs, (inputs, drawn.to(labels)))

    return _mean_squares(module, params, names, batches, cotangents)


def gauss_newton_diag(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return diag J' L J with J the outputs by the weights and L the loss's Hessian by the outputs. It is never negative.

    With L = S S', each example contributes the square of J' S r for one vector r of random signs. This is unbiased, and exact
    where L has rank one (one output, or two classes).
    """

    def cotangents(outputs: Tensor, batch: Batch) -> Tensor:
        values, vectors = torch.linalg.eigh(loss_hessian(module, outputs, batch))
        signs = torch.randint(2, values.shape).to(values) * 2 - 1
        slopes: Tensor = (vectors @ (values.clamp_min(0).sqrt() * signs).unsqueeze(-1)).squeeze(-1)
        return slopes.view(outputs.shape)

    return _mean_squares(module, params, names, batches, cotangents)


def hessian_diag(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return the exact diagonal of the Hessian, by one forward derivative of the gradient per entry. For small networks."""
    wanted, others = split(params, names)

    def slopes(at: Params, batch: Batch) -> Params:
        gradient: Params = torch.func.grad(lambda w: loss_at(module, w | others, batch))(at)
        return gradient

    def diagonal(batch: Batch) -> Params:
        return {name: len(batch[0]) * _diagonal(lambda at: slopes(at, batch), wanted, name) for name in wanted}

    with evaluated(module), differentiable():
        return over_examples(diagonal, batches, wanted)


def by_place(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why `gauss_newton_diag` cannot be measured in this network, or None."""
    if reads_characters(network.net, network.shape):
        return (
            "the Gauss-Newton matrix has a block of its own for each place of a sequence: choose criterion=fisher_true, "
            "which is the same on average"
        )
    with torch.no_grad():
        outputs = network.run(tensors_of(network.net), blank(network.net, network.shape))
    if not isinstance(outputs, Tensor):
        return f"a {type(outputs).__name__} of outputs has no Gauss-Newton matrix: choose criterion=fisher_empirical"
    if outputs.dim() > 2:
        return "the Gauss-Newton matrix has a block of its own for each place of an image: choose criterion=fisher_empirical"
    return None


def instead_of_hessian(network: Network, names: tuple[str, ...]) -> str:
    """Return the criterion that is nearest to the Hessian's diagonal among those that work in this network."""
    if reads_characters(network.net, network.shape):
        return "fisher_true"
    return "obd_gauss_newton" if by_place(network, names) is None else "fisher_empirical"


def too_large(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why `hessian_diag` cannot be measured in this network, or None."""
    recurrent = prunable(network.net, ("recurrent",))
    if recurrent:
        return f"there is no forward derivative through {', '.join(recurrent)}: choose criterion=fisher_true"
    params = tensors_of(network.net)
    weights = sum(params[name].numel() for name in names)
    if weights <= EXACT:
        return None
    return (
        f"the exact Hessian takes a pass per weight, here {weights:,}, and is for at most {EXACT:,}: "
        f"choose criterion={instead_of_hessian(network, names)}"
    )


def _mean_squares(
    module: nn.Module,
    params: Params,
    names: tuple[str, ...],
    batches: Iterable[Batch],
    cotangents: Callable[[Tensor, Batch], Tensor],
) -> Params:
    wanted, others = split(params, names)
    net = net_of(module)

    def of_batch(batch: Batch) -> Params:
        return squares(net, wanted, others, batch[0], lambda outputs: cotangents(outputs, batch))

    with evaluated(module):
        return over_examples(of_batch, gathered(batches), wanted)


def _check_classes(outputs: Tensor, labels: Tensor) -> None:
    """Raise Incompatible unless the labels are classes, one for each place of the outputs [B, classes, ...]."""
    fits = outputs.dim() > 1 and outputs.shape[:1] + outputs.shape[2:] == labels.shape
    if not fits or labels.is_floating_point():
        raise Incompatible(
            f"labels are drawn from a classifier's softmax, and here outputs {[*outputs.shape[1:]]} have labels "
            f"{[*labels.shape[1:]]} of {str(labels.dtype).removeprefix('torch.')}: choose criterion=fisher_empirical"
        )


def _diagonal(slopes: Callable[[Params], Params], wanted: Params, name: str) -> Tensor:
    """Return the derivative of each entry's slope by the entry itself."""
    shape = wanted[name].shape

    def along(direction: Tensor) -> Tensor:
        def slope(w: Tensor) -> Tensor:
            return slopes({**wanted, name: w})[name]

        tangent = direction.view(shape)
        change: Tensor = torch.func.jvp(slope, (wanted[name],), (tangent,))[1]
        return (change * tangent).sum()

    entries = torch.arange(shape.numel(), device=wanted[name].device).split(DIRECTIONS)
    basis = (nn.functional.one_hot(chunk, shape.numel()).to(wanted[name]) for chunk in entries)
    return torch.cat([torch.func.vmap(along)(directions) for directions in basis]).view(shape)
