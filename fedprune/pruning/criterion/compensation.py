"""The steps of survivors that make up for removed weights, where survivors are not rewound: one formula per function.

A formula is pure: (evidence, by the names of its arguments) -> Params, **to be added to the weights that survive**; its values
at other entries do not matter. The evidence is about the network before the removal; evidence in OF_REMOVAL (pruning/evidence)
also depends on the mask after it.
"""

from __future__ import annotations

from fedprune.types import Params


def optimal_brain_surgeon(fisher_compensation: Params) -> Params:
    """F_SS^-1 F_SQ w_Q: the step to the minimum of the quadratic loss with the weights Q at zero and the others, S, free.

    Hassibi & Stork 1993; by the empirical Fisher matrix in blocks, Singh & Alistarh 2020, whose step for several weights is not
    this joint one: see pruning/evidence/fisher.py. It takes the gradient to be zero, as where training has converged. Several
    clients' steps are averaged.
    """
    return dict(fisher_compensation)
