"""Checks of options from outside the package: each function of a user's is called once, on the network of the start.

Every option of ours is tried by the tests of this project, and costs nothing here. What a function returns where it is called
later is looked at there, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.capabilities import from_outside, named
from fedprune.errors import RunError, in_user_code
from fedprune.experiment.checks.problems import Problems
from fedprune.federated.availability import Fate
from fedprune.federated.composition import Composition
from fedprune.federated.sampling import cohort
from fedprune.federated.server.accumulator import check as check_aggregate
from fedprune.federated.where import asked
from fedprune.local.regularisers.base import Regulariser, tried_term
from fedprune.pruning.criterion.scores import compensated, scored
from fedprune.pruning.evidence import FROM_SERVER, at_hand, needs
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.how_often import HowOften
from fedprune.pruning.mask import ones
from fedprune.pruning.rewind import Draws, rewound
from fedprune.pruning.when import When, Window
from fedprune.randomness import torch_stream
from fedprune.tensors import tensors_of, unlike
from fedprune.types import Mask, Params, Plan, Subnet


def window(when: When, rounds: int) -> Window:
    """Return the window of an option of `when`. Raises RunError if it gives something else."""
    with in_user_code(f"when, {named(when)}"):
        made: object = when(rounds)
    if isinstance(made, Window):
        return made
    instead = "return fedprune.pruning.when.Window(first, stop, rounds)"
    raise RunError(f"when, {named(when)}: it gives {made!r:.60}: {instead}")


def plan(how_often: HowOften, among: Window, density: float) -> Plan:
    """Return the plan of an option of `how_often`. Raises RunError if it gives something else."""
    with in_user_code(f"how_often, {named(how_often)}"):
        made: object = how_often(among, density)
    if isinstance(made, Plan):
        return made
    instead = "return window.plan((PruneEvent(round, density), ...)), with PruneEvent of fedprune.types"
    raise RunError(f"how_often, {named(how_often)}: it gives {made!r:.60}: {instead}")


def functions(composed: Composition, network: Network, unseen: tuple[int, ...], problems: Problems) -> None:
    """Note what is wrong with a user's functions among the options of this composition."""
    params, mask = tensors_of(composed.net), ones(tensors_of(composed.net), composed.what.names)
    trials = {
        _formulas: bool(composed.plan.events),
        _where: bool(composed.plan.events) and from_outside(composed.options.where),
        _rewind: bool(composed.plan.events) and from_outside(composed.options.rewind),
        _aggregate: from_outside(composed.options.aggregate),
        _server_step: from_outside(composed.options.server_step),
        _capacity: from_outside(composed.options.capacity),
        _fates: from_outside(composed.options.availability),
        _terms: True,
    }
    subnet = Subnet({name: tensor.detach().clone() for name, tensor in params.items()}, mask)
    for trial, there in trials.items():
        if there:
            problems.attempt(trial, composed, network, subnet, unseen)


def _formulas(composed: Composition, network: Network, subnet: Subnet, unseen: tuple[int, ...]) -> None:
    """Call the formulas of a criterion with evidence of the right shapes; what has to be measured is made up."""
    criterion, seed = composed.options.criterion, composed.config.seed
    for role, formula in criterion.formulas().items():
        if not from_outside(formula):
            continue
        names = needs(formula)
        evidence = at_hand(FROM_SERVER, network, subnet, subnet.params, lambda name: torch_stream(seed, f"tried {name}"))
        given = {name: evidence.get(name, _made_up(subnet.mask)) for name in names}
        if role == "compensate":
            compensated(formula, given, subnet.params)
        else:
            scored(formula, given, subnet.mask)


def _made_up(mask: Mask) -> Params:
    """Return numbers in the shapes of a mask, between 0 and 1 and all different."""
    return {name: torch.linspace(0.1, 0.9, alive.numel()).view(alive.shape) for name, alive in mask.items()}


def _where(composed: Composition, network: Network, subnet: Subnet, unseen: tuple[int, ...]) -> None:
    federated, seed = composed.config.federated, composed.config.seed
    drawn = cohort(seed, 0, federated.clients, federated.cohort, unseen)
    with in_user_code(f"where, {named(composed.options.where)}"):
        asked(composed.options.where, drawn, federated.clients, seed, unseen)


def _rewind(composed: Composition, network: Network, subnet: Subnet, unseen: tuple[int, ...]) -> None:
    rewind = composed.options.rewind
    anchors = {0 if rewind.anchor is None else rewind.anchor: subnet.params}
    draws = Draws(lambda: subnet.params, lambda name: torch_stream(composed.config.seed, f"tried {name}"))
    with in_user_code(f"rewind, {named(rewind)}"):
        rewound(rewind, subnet.mask, anchors, draws, subnet.params)


def _aggregate(composed: Composition, network: Network, subnet: Subnet, unseen: tuple[int, ...]) -> None:
    check_aggregate(composed.options.aggregate, subnet.params, subnet.mask)


def _server_step(composed: Composition, network: Network, subnet: Subnet, unseen: tuple[int, ...]) -> None:
    step, trained = composed.options.server_step, tuple(name for name, _ in composed.net.named_parameters())
    told = f"federated.server, {named(step)}"
    with in_user_code(told):
        made: object = step(subnet.params, subnet.params, {}, trained)
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[1], Mapping):
        raise RunError(f"{told}: it gives {made!r:.60}: return the server's new tensors and its momentum")
    if wrong := unlike(made[0], subnet.params):
        raise RunError(f"{told}: it {wrong}: return a tensor for each of the server's")


def _capacity(composed: Composition, network: Network, subnet: Subnet, unseen: tuple[int, ...]) -> None:
    made: object = composed.options.capacity(0, composed.config.seed)
    if not isinstance(made, (int, float)) or not 0 < made <= 1:
        told = f"federated.capacity, {named(composed.options.capacity)}: it gives {made!r:.60} for client 0"
        raise RunError(f"{told}: return a fraction of the network, above 0 and at most 1")


def _fates(composed: Composition, network: Network, subnet: Subnet, unseen: tuple[int, ...]) -> None:
    told = f"federated.availability, {named(composed.options.availability)}"
    with in_user_code(told):
        made: object = composed.options.fates(0, 0)
    if not isinstance(made, Fate):
        raise RunError(f"{told}: it gives {made!r:.60}: return fedprune.federated.availability.Fate.ANSWERS, SILENT or LATE")


def _terms(composed: Composition, network: Network, subnet: Subnet, unseen: tuple[int, ...]) -> None:
    """Call the formulas of local.penalty and local.dropout that are a user's."""
    for key, one in (("penalty", composed.options.penalty), ("dropout", composed.options.dropout)):
        if one.formula is not None and from_outside(one.formula):
            _term(f"local.{key}, {named(one.formula)}", one, composed, subnet.mask)


def _term(told: str, one: Regulariser, composed: Composition, mask: Mask) -> None:
    with in_user_code(told):
        made: object = tried_term(one, composed.net, mask)
    if not isinstance(made, Tensor) or made.numel() != 1:
        kind = f"a tensor of shape {list(made.shape)}" if isinstance(made, Tensor) else f"{made!r:.60}"
        raise RunError(f"{told}: it gives {kind}: return one number, a tensor, such as a sum over all layers")
