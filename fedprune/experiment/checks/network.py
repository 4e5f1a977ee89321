"""Checks of this very network by trying it: under a mask, and for the evidence that is asked for."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fedprune.errors import ConfigError
from fedprune.experiment.checks.axes import evidence_of
from fedprune.experiment.checks.problems import Names
from fedprune.pruning import mask_effect
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.evidence import FROM_DATA, OF_LIVING, OF_REMOVAL
from fedprune.pruning.evidence.loss import Batch
from fedprune.pruning.evidence.network import Network, evaluated
from fedprune.pruning.mask import ones
from fedprune.pruning.what import What
from fedprune.types import Params, Plan

PER_ENTRY = ("hessian_diag", "fisher_inverse_diag", "fisher_compensation")
"""Evidence that takes a pass, or a matrix, for each of a few entries: it is tried on the smallest tensor."""

INSTEAD = {"sq_grads": "fisher_empirical", "grads": "taylor"}
"""Criteria to choose instead, by the evidence that they ask for."""


def masked(network: Network, what: What, prunes: bool) -> list[str]:
    """Return what is wrong with a mask on this network's weights. prunes: whether there will be one."""
    return mask_effect.problems(network, what.names, what.unit) if prunes else []


def rehearsal(
    plan: Plan, criterion: Criterion, module: nn.Module, params: Params, what: What, batch: Batch, names: Names
) -> list[str]:
    """Return which of the evidence that is asked for cannot be measured, with why and what to choose instead.

    module: in training mode. params: of its network, at which to measure. batch: two training examples.
    """
    asked = sorted(evidence_of(criterion) & FROM_DATA.keys()) if plan.events else []

    def trial(evidence: str) -> str | None:
        return _trial(evidence, module, params, what.names, batch)

    found = {evidence: problem for evidence in asked if (problem := trial(evidence)) is not None}
    if not found:
        return []
    instead = _instead(trial, exchanges=any(event.swap for event in plan.events))
    return [
        f"criterion={names['criterion']}: {problem if 'choose ' in problem else f'{problem}: choose criterion={instead}'}"
        for problem in found.values()
    ]


def _trial(evidence: str, module: nn.Module, params: Params, names: tuple[str, ...], batch: Batch) -> str | None:
    """Return why this evidence cannot be measured, or None."""
    about = (min(names, key=lambda name: params[name].numel()),) if evidence in PER_ENTRY else names
    alive = ones(params, about)
    arguments: tuple[object, ...] = (alive if evidence in OF_LIVING else about, [batch])
    arguments += (alive,) if evidence in OF_REMOVAL else ()
    modes = {part: part.training for part in module.modules()}
    with evaluated(module):  # which puts the modes back, whatever happens
        for part, training in modes.items():
            part.training = training
        try:
            FROM_DATA[evidence](module, params, *arguments)
        except ConfigError as error:
            return error.problems[0]
        except Exception as error:  # whatever the network or the loss raises would end the run at its first event
            told = str(error).strip().splitlines()[:1]
            return f"{evidence} cannot be measured of this network ({type(error).__name__}: {' '.join(told)})"
    return None


def _instead(trial: Callable[[str], str | None], exchanges: bool) -> str:
    """Return a criterion that works here."""
    if exchanges:
        return "rigl" if trial("grads") is None else "set"
    return next((criterion for evidence, criterion in INSTEAD.items() if trial(evidence) is None), "magnitude")
