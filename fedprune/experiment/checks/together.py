"""All checks of the options against each other."""

from __future__ import annotations

import logging

from fedprune.experiment.checks.axes import blocks, composition, min_per_layer, obstacles, of_single_weights, scope
from fedprune.experiment.checks.candidates import of_candidates
from fedprune.experiment.checks.clients import (
    alone,
    answers,
    feedback,
    kept_back,
    of_one_mask,
    on_clients,
    outcomes_of_clients,
    regrown,
    validation,
)
from fedprune.experiment.checks.cost import of_cost
from fedprune.federated.composition import Composition
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence.network import Network
from fedprune.tensors import tensors_of

log = logging.getLogger(__name__)


def among_axes(composed: Composition, network: Network, error_feedback: bool) -> list[str]:
    """Return what is wrong with the axes together, on this network; a twin of a simpler composition is only pointed out."""
    plan, what, options, names = composed.plan, composed.what, composed.options, composed.names
    axes = Axes(what, options.criterion, composed.config.federated.regrown)
    _point_out(composed)
    return [
        *composition(plan, options.criterion, options.where, options.rewind, options.whose, names),
        *outcomes_of_clients(plan, options.whose, names),
        *blocks(plan, what, names),
        *of_single_weights(plan, axes, options.whose, names),
        *feedback(error_feedback, plan, options.whose, names),
        *regrown(axes.regrown, plan, options.whose, names),
        *on_clients(plan, options.whose, axes, options.where, options.rewind, names),
        *obstacles(plan, options.criterion, network, what.names, names),
        *of_candidates(composed),
        *of_cost(composed),
        *_of_all_plans(composed),
    ]


def among_clients(composed: Composition, own: tuple[str, ...], examples: int, unseen: tuple[int, ...] = ()) -> list[str]:
    """Return what is wrong with who does what among the clients. own: the tensors that they keep to themselves. examples: how
    many all of them have for validation. unseen: those that are in no cohort."""
    plan, options, names, config = composed.plan, composed.options, composed.names, composed.config
    return [
        *validation(plan, examples, names),
        *answers(options.fates, config, plan, options.criterion, options.where, options.whose, names, unseen),
        *kept_back(own, options.rewind, plan, names),
        *of_one_mask(config.federated, options.whose, options.upload, plan, names),
        *alone(composed, unseen),
    ]


def _point_out(composed: Composition) -> None:
    """Say which options change nothing because nothing grows."""
    names, regrows_from = composed.names, composed.config.federated.regrown
    if any(event.swap for event in composed.plan.events):
        return
    if composed.options.criterion.grow is not None:
        log.warning("criterion=%s never grows under how_often=%s; it only drops", names["criterion"], names["how_often"])
    if regrows_from != "zero":
        log.warning("federated.regrown=%s changes nothing: how_often=%s never grows", regrows_from, names["how_often"])


def _of_all_plans(composed: Composition) -> list[str]:
    """Return what is wrong with the counts of units in the plan, or in a client's own."""
    what, units = composed.what, composed.what.units(tensors_of(composed.net))
    plans = [composed.plan, *dict.fromkeys(composed.options.whose.plans)]
    problems = [
        problem for plan in plans for problem in (*min_per_layer(what, plan, units), *scope(what, plan, units, composed.names))
    ]
    return list(dict.fromkeys(problems))
