"""Criteria from curvature: the rise of the loss, to second order, if a weight were removed.

Rules as in criterion/__init__.py.
"""

from __future__ import annotations

from fedprune.types import Params, Scores


def obd_exact(params: Params, hessian_diag: Params) -> Scores:
    """h w^2 / 2 with the exact diagonal of the Hessian. LeCun, Denker & Solla 1990 (Optimal Brain Damage).

    Signed: where the training has not converged h may be negative, and such a weight goes first. The paper has no exact h.
    """
    return _saliency(params, hessian_diag)


def obd_sweep(params: Params, hessian_sweep: Params) -> Scores:
    """h w^2 / 2 with h by the paper's own backward sweep. LeCun, Denker & Solla 1990 (Optimal Brain Damage).

    Exact for one hidden layer and a loss whose Hessian by the outputs is diagonal (squares); neglects more with more layers and
    with softmax. The curvature term of tanh has the sign that makes it exact (see pruning/evidence/obd_sweep.py).
    """
    return _saliency(params, hessian_sweep)


def obd_gauss_newton(params: Params, gauss_newton_diag: Params) -> Scores:
    """h w^2 / 2 with the diagonal of the Gauss-Newton matrix, which is never negative; after LeCun et al. 1990.

    The paper's Levenberg-Marquardt variant, too, neglects the curvature of the network; this one neglects nothing else.
    """
    return _saliency(params, gauss_newton_diag)


def fisher_empirical(params: Params, sq_grads: Params) -> Scores:
    """w^2 mean(g_i^2) / 2, g_i the gradient of example i at its given label. Theis et al. 2018; Molchanov et al. 2019.

    The empirical Fisher matrix is not the Hessian, not even of a linear softmax model: it is small where the training fits.
    """
    return _saliency(params, sq_grads)


def fisher_true(params: Params, sq_grads_sampled: Params) -> Scores:
    """w^2 mean(g_i^2) / 2 with labels drawn from the network's own predictions, which makes it the Fisher matrix's diagonal.

    For softmax and cross-entropy that is the Gauss-Newton diagonal; one draw per example estimates it without bias.
    """
    return _saliency(params, sq_grads_sampled)


def taylor_second(params: Params, grads: Params, gauss_newton_diag: Params) -> Scores:
    """-w g + h w^2 / 2, signed: the predicted change of the loss when w is removed. After Molchanov et al. 2019, equation 6.

    Theirs has the whole row of the Hessian, and squares it. Ours has its Gauss-Newton diagonal and keeps the sign: a weight
    whose removal would lower the loss goes before one that does nothing.
    """
    return {name: saliency - params[name] * grads[name] for name, saliency in _saliency(params, gauss_newton_diag).items()}


def woodfisher(params: Params, fisher_inverse_diag: Params) -> Scores:
    """w^2 / (2 [F^-1]_qq): the rise of the loss if w is removed and all others move to make up for it, F the empirical Fisher.

    Singh & Alistarh 2020 (WoodFisher); Hassibi & Stork 1993 (Optimal Brain Surgeon). F is damped and block-diagonal; its
    inverse is taken block by block instead of by the Woodbury recursion (the same numbers). The steps of the others are in
    compensation.py.
    """
    return {name: w.square() / (2 * fisher_inverse_diag[name]) for name, w in params.items()}


def _saliency(params: Params, curvature: Params) -> Scores:
    return {name: curvature[name] * w.square() / 2 for name, w in params.items()}
