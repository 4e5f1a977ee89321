"""Evidence: the closed vocabulary that a formula may ask for by argument name, the source of each piece, and its mean.

    params, mask            the prunable tensors of the masked network, and what is alive in them
    init_params             the prunable tensors as the run began
    generator               a seeded torch generator by layer name
    flow_grads, scales, filter_scales                    from the network itself: see data_free.py
    log_alpha, log_sigma2   companions of weights that training has learnt: see gates.py
    grads, abs_grads, hessian_grads, movement            from training data, by first derivatives: see gradients.py
    sq_grads, sq_grads_sampled, gauss_newton_diag, hessian_diag      by curvature: see curvature.py
    fisher_inverse_diag     the same by fisher.py
    hessian_sweep           the same by obd_sweep.py
    activations, activity   from the outputs of units: see activations.py
    sq_grads_accumulated    sums that clients have added up while they trained: see local/state/squared_gradients.py
    fisher_compensation     the steps of survivors that make up for a removal: see fisher.py; only once the removal is known

For gates only, outcomes of a round (gate.py):

    val_accuracy            the fraction of the clients' validation examples that the server's network has right
    mask_shift              how much the mask that the criterion would choose differs from the one of a round before; on a
                            client, from the one after the first epoch of its round
    pruned_accuracy         as val_accuracy, of the network that the event would leave a client (of clients only)
    val_metric, pruned_metric                            as these, by the metric that the task is judged by (LocalModule.metric)

Measure where the data is, average the evidence, score once: with gradients averaged by example count, federated SNIP is SNIP on
the pooled data. Evidence has the names and shapes of the mask: the value of a whole unit stands at each of its entries.
Measuring has no side effects: module, buffers, random state and `.grad` are as before. The network that is measured is the one
in use: weights are multiplied by their gates, if they have any, and local.penalty and local.dropout take no part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

import torch

from fedprune.precision import wide
from fedprune.pruning.evidence.activations import activations, activity, puts_out
from fedprune.pruning.evidence.curvature import by_place, gauss_newton_diag, hessian_diag, sq_grads, sq_grads_sampled, too_large
from fedprune.pruning.evidence.data_free import filter_scales, flow_grads, no_flow, scales, unscaled, unscaled_filters
from fedprune.pruning.evidence.fisher import fisher_compensation, fisher_inverse_diag
from fedprune.pruning.evidence.gates import fold, gated, log_alpha, log_sigma2, no_gates, no_variance
from fedprune.pruning.evidence.gradients import abs_grads, grads, hessian_grads, movement, uncopied
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.evidence.obd_sweep import hessian_sweep, no_sweep
from fedprune.types import Params, Subnet

FROM_SERVER = ("params", "mask", "init_params", "generator")

FROM_NETWORK: dict[str, Callable[[Network, Params, tuple[str, ...]], Params]] = {
    function.__name__: function for function in (flow_grads, scales, filter_scales, log_alpha, log_sigma2)
}

FROM_DATA: dict[str, Callable[..., Params]] = {
    function.__name__: function
    for function in (
        *(grads, abs_grads, hessian_grads, movement),
        *(sq_grads, sq_grads_sampled, gauss_newton_diag, hessian_diag, hessian_sweep, fisher_inverse_diag),
        *(activations, activity, fisher_compensation),
    )
}

FROM_TRAINING = ("sq_grads_accumulated",)
"""Evidence that clients have from training when an event asks; until then they keep it and do not send it."""

FROM_CLIENTS = (*FROM_DATA, *FROM_TRAINING)

OF_LIVING = ("hessian_grads", "movement", "fisher_inverse_diag", "fisher_compensation")
"""Evidence from data whose function takes the mask of the tensors to measure, where the others take their names."""

OF_REMOVAL = ("fisher_compensation",)
"""Evidence from data whose function also takes the mask that a removal leaves. It is for compensation only, since scores come
before any removal."""

OBSTACLES: dict[str, Callable[[Network, tuple[str, ...]], str | None]] = {
    "flow_grads": no_flow,
    "scales": unscaled,
    "filter_scales": unscaled_filters,
    "log_alpha": no_gates,
    "log_sigma2": no_variance,
    "movement": uncopied,
    "gauss_newton_diag": by_place,
    "hessian_diag": too_large,
    "hessian_sweep": no_sweep,
    "fisher_compensation": gated,
    "activations": puts_out,
    "activity": puts_out,
}
"""(network, names of prunable tensors) -> why the evidence cannot be measured there and what to choose instead, or None."""

OF_CLASSES = ("sq_grads_sampled",)
"""Evidence that needs labels which are classes."""

OUTCOMES = ("val_accuracy", "mask_shift", "val_metric")
OUTCOMES_OF_CLIENTS = (*OUTCOMES, "pruned_accuracy", "pruned_metric")

KNOWN = (*FROM_SERVER, *FROM_NETWORK, *FROM_CLIENTS)


def at_hand(
    names: Iterable[str], network: Network, subnet: Subnet, init: Params, generator: Callable[[str], torch.Generator]
) -> dict[str, object]:
    """Return those of the named pieces of evidence that take no data. init: the parameters as the run began."""
    params, start = fold(subnet.params), fold(init)
    now, begun = ({name: wide(tensors[name]) for name in subnet.mask} for tensors in (params, start))
    evidence: dict[str, object] = {"params": now, "init_params": begun, "mask": subnet.mask, "generator": generator}
    for name in FROM_NETWORK.keys() & {*names}:
        evidence[name] = FROM_NETWORK[name](network, params, tuple(subnet.mask))
    return evidence


def needs(formula: Callable[..., object]) -> tuple[str, ...]:
    """Return the evidence that a formula asks for: its parameters without a default. Works on functools.partial, too."""
    parameters = inspect.signature(formula).parameters.values()
    return tuple(p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD)


def needed_by(formulas: Iterable[Callable[..., object]]) -> set[str]:
    """Return all evidence that these formulas ask for."""
    return {name for formula in formulas for name in needs(formula)}


def known(role: str) -> tuple[str, ...]:
    """Return the evidence that a formula of this role may ask for."""
    if role == "compensate":
        return KNOWN
    return tuple(name for name in KNOWN if name not in OF_REMOVAL)


def unknown(formula: Callable[..., object], role: str = "drop") -> list[str]:
    """Return the names that a formula asks for and that are no evidence for its role."""
    return [name for name in needs(formula) if name not in known(role)]


def mean(parts: Iterable[tuple[Params, int]]) -> Params:
    """Return the mean of several clients' evidence, weighted by their example counts."""
    total: Params = {}
    examples = 0
    for evidence, weight in parts:
        total = {name: value * weight + total.get(name, 0) for name, value in evidence.items()}
        examples += weight
    return {name: value / examples for name, value in total.items()}
