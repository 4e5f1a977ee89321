"""Evidence from the empirical Fisher matrix F, which relates weights to each other.

F = DAMPING on the diagonal + the mean over the examples of g g', g the gradient of one example's own loss. It is kept in blocks
of BLOCK entries that follow each other in a tensor. Dead entries relate to none.

As in curvature.py, the network is in evaluation mode. Every function is (module, params, alive, batches) -> one tensor per
name, `alive` the mask of these; a function about a removal also takes the mask that is left after it.

The results of several clients are averaged. Neither the mean of inverses nor the mean of solutions is that of the pooled
matrix, so this is an approximation, the closer the more alike the clients are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedprune.pruning.evidence.loss import Batch, MoreThanOutputs, gathered, loss_slopes, net_of, over_examples, split
from fedprune.pruning.evidence.network import evaluated
from fedprune.pruning.evidence.per_example import per_example, per_example_losses, total
from fedprune.types import Mask, Params

BLOCK = 32
DAMPING = 1e-4
AT_ONCE = 1024  # blocks: how many are solved in double precision at a time


def fisher_inverse_diag(module: nn.Module, params: Params, alive: Mask, batches: Iterable[Batch]) -> Params:
    """Return the diagonal of F^-1."""
    blocks = _blocks(module, params, alive, batches)
    return {name: _inverse_diagonal(block, params[name]) for name, block in blocks.items()}


def fisher_compensation(module: nn.Module, params: Params, alive: Mask, batches: Iterable[Batch], surviving: Mask) -> Params:
    """Return the steps of the weights that survive a removal, which make up for the removed ones.

    The step is F_SS^-1 F_SQ w_Q in each block, S the entries of `surviving` and Q the others, and zero at Q. It is the minimum
    of d' F d / 2 among the steps with d_Q = -w_Q, that is the *joint* step of Optimal Brain Surgeon, -[F^-1]_:Q ([F^-1]_QQ)^-1
    w_Q, after which the quadratic loss has risen by w_Q' ([F^-1]_QQ)^-1 w_Q / 2 (Hassibi & Stork 1993; for sets, Kurtic et al.
    2022).

    Singh & Alistarh 2020 (WoodFisher) add up the steps -w_q F^-1 e_q / [F^-1]_qq instead, each as if its q were the only one to
    go. That is the same if q is the only one of its block; else the sum does not make d_Q = -w_Q, and cutting the rest off may
    cost more than not to move at all.
    """
    blocks = _blocks(module, params, alive, batches)
    return {name: _step(block, params[name], surviving[name]) for name, block in blocks.items()}


def _blocks(module: nn.Module, params: Params, alive: Mask, batches: Iterable[Batch]) -> Params:
    """Return F without its damping, [blocks, BLOCK, BLOCK] per name; the last block of a tensor is padded with zeros."""
    wanted, others = split(params, alive)
    net = net_of(module)

    def outer_products(batch: Batch) -> Params:
        try:
            return products(per_example(net, wanted, others, batch[0], lambda outputs: loss_slopes(module, outputs, batch)))
        except MoreThanOutputs:
            return products(per_example_losses(module, wanted, others, batch))

    def products(parts: Iterable[Params]) -> Params:
        return total({name: _outer(torch.where(alive[name], g, 0)) for name, g in slopes.items()} for slopes in parts)

    like = {name: w.new_zeros(-(-w.numel() // BLOCK), BLOCK, BLOCK) for name, w in wanted.items()}
    with evaluated(module):
        return over_examples(outer_products, gathered(batches), like)


def _outer(slopes: Tensor) -> Tensor:
    """Return the sum over the examples of g g', by block: [B, ...] -> [blocks, BLOCK, BLOCK]."""
    padded = _in_blocks(slopes.flatten(1)).transpose(0, 1)
    return padded.transpose(1, 2) @ padded


def _inverse_diagonal(blocks: Tensor, like: Tensor) -> Tensor:
    damping = DAMPING * torch.eye(BLOCK, dtype=torch.float64, device=blocks.device)
    diagonals = [torch.linalg.inv(some.double() + damping).diagonal(dim1=1, dim2=2) for some in blocks.split(AT_ONCE)]
    return _in_shape(torch.cat(diagonals), like)


def _step(blocks: Tensor, weights: Tensor, surviving: Tensor) -> Tensor:
    survives = _in_blocks(surviving.flatten())
    removed = _in_blocks(torch.where(surviving, 0, weights).flatten())
    parts = zip(blocks.split(AT_ONCE), removed.split(AT_ONCE), survives.split(AT_ONCE), strict=True)
    steps = [_solved(fisher.double(), w.double(), stays) for fisher, w, stays in parts]
    return _in_shape(torch.cat(steps), weights)


def _solved(fisher: Tensor, removed: Tensor, survives: Tensor) -> Tensor:
    """Return F_SS^-1 F_SQ w_Q, zero outside S. fisher [blocks, BLOCK, BLOCK], undamped; w_Q [blocks, BLOCK], zero outside Q."""
    pull = torch.where(survives, (fisher @ removed.unsqueeze(-1)).squeeze(-1), 0)
    both = survives.unsqueeze(-1) & survives.unsqueeze(-2)
    diagonal = torch.where(survives, DAMPING, 1.0).to(fisher)  # an entry outside S is an equation of its own: 1 d = 0
    steps: Tensor = torch.linalg.solve(torch.where(both, fisher, 0) + torch.diag_embed(diagonal), pull)
    return steps


def _in_blocks(flat: Tensor) -> Tensor:
    """Return blocks of the entries, [..., entries] -> [..., blocks, BLOCK], padded with zeros."""
    blocks: Tensor = nn.functional.pad(flat, (0, -flat.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    return blocks


def _in_shape(blocks: Tensor, like: Tensor) -> Tensor:
    return blocks.flatten()[: like.numel()].view(like.shape).to(like)
