"""Config -> Experiment: every object of a run.

The whole composition is checked before the first batch, and all its problems are reported at once. What an option can
check by itself is checked where it is written; what only the composition can know is in checks/.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import cast

from omegaconf import DictConfig, OmegaConf

from fedprune.data.population import sizes
from fedprune.experiment import checks
from fedprune.experiment.checks.problems import Names, Problems
from fedprune.experiment.experiment import Experiment
from fedprune.experiment.ground import Chosen, Ground, choose, lay_ground, load_data
from fedprune.experiment.training import (
    Training,
    check_batches,
    count_flops,
    learn_training,
    rehearse_evidence,
    try_first_step,
)
from fedprune.federated.composition import Composition, Options
from fedprune.federated.masks.capacity import of_all
from fedprune.federated.masks.whose import Federation, Whose
from fedprune.federated.untrained import untrained_names
from fedprune.local.regularisers.base import add_companions
from fedprune.pruning.evidence.batchnorm import statistics_names
from fedprune.randomness import torch_stream
from fedprune.tensors import tensors_of
from fedprune.types import Json, Subnet
from fedprune.wire.message import Wire

log = logging.getLogger(__name__)


def build(config: DictConfig, names: Names, wanted: str | None = None) -> Experiment:
    """Return every object of a run. names: the chosen option of each group. wanted: the metric that the run is to have.

    Raises ConfigError with all problems; Incompatible if each option is fine and only the combination is not.
    """
    problems = Problems()
    chosen = choose(config, names, problems)
    dataset = load_data(config, chosen.device, problems)
    ground = lay_ground(chosen, dataset, problems)
    training = learn_training(chosen, ground, problems)
    check_batches(chosen, ground, training, problems)
    chosen = replace(chosen, options=_with_fates(chosen, ground, training))
    problems.attempt(checks.objective, wanted, training.task, any(sizes(ground.clients.val)))
    _check_task(chosen, ground, training, problems)
    ticket = _initialise(chosen, ground, training, problems)
    whose = problems.attempt(_bound, chosen, ground)
    chosen = replace(chosen, options=replace(chosen.options, whose=whose or chosen.options.whose))
    _check_composition(chosen, ground, training, problems)
    _rehearse(chosen, ground, training, ticket, problems)
    return _experiment(chosen, ground, training, ticket)


def _with_fates(chosen: Chosen, ground: Ground, training: Training) -> Options:
    """Return the options that know who answers in which round."""
    work = [training.recipe.batches(examples) for examples in sizes(ground.clients.train)]
    return replace(chosen.options, fates=chosen.options.availability(chosen.config.seed, work))


def _check_task(chosen: Chosen, ground: Ground, training: Training, problems: Problems) -> None:
    """Try the first step, and check gates and criteria against the task. Stops at problems."""
    options, plan, task, names = chosen.options, ground.plan, training.task, chosen.names
    problems.attempt(try_first_step, chosen, ground, training)
    problems.add(checks.outcomes(plan, options.whose, names))
    problems.add(checks.gate(plan, task, names))
    problems.add(checks.bounds(plan, task, names))
    problems.add_incompatible(checks.of_classes(task, plan, options.criterion, options.whose, options.dropout, names))
    problems.stop_if_any()


def _initialise(chosen: Chosen, ground: Ground, training: Training, problems: Problems) -> Subnet | None:
    """Complete the network's initialisation, and return the ticket that the run starts from, if one is given."""
    config, net, what = chosen.config, ground.net, ground.what
    problems.attempt(chosen.options.client.prepare, net, what.names)
    add_companions(net, what.names, training.regularisers, torch_stream(config.seed, "companions"))
    model = cast(Json, OmegaConf.to_container(config.model, resolve=True))
    ticket: Subnet | None = problems.attempt(chosen.ticket, net, what, config.seed, chosen.names, model)
    if ticket is not None:
        problems.add_incompatible(checks.whole_units(ticket.mask, what, ground.plan, chosen.names))
    return ticket


def _bound(chosen: Chosen, ground: Ground) -> Whose:
    """Return the `whose` for clients of their capacities."""
    options, config, labels, train = chosen.options, chosen.config, ground.dataset.y, ground.clients.train
    federation = Federation(
        capacities=of_all(options.capacity, config.federated.clients, config.seed),
        labels=lambda: [tuple(labels[part].unique().tolist()) for part in train],
        network=ground.network,
        what=ground.what,
        private=ground.private,
        plan_to=functools.partial(options.how_often, ground.window),
        density=config.density,
        name=chosen.names["whose"],
    )
    return options.whose.bound(federation)


def _check_composition(chosen: Chosen, ground: Ground, training: Training, problems: Problems) -> None:
    """Try the functions of a user's, and check the options against each other. Stops at problems."""
    options = chosen.options
    composition = Composition(ground.plan, ground.what, ground.net, options, chosen.names, chosen.config)
    checks.functions(composition, ground.network, ground.clients.unseen, problems)
    problems.stop_if_any()
    of_clients = (ground.private, sum(sizes(ground.clients.val)), ground.clients.unseen)
    problems.add_incompatible(checks.among_clients(composition, *of_clients))
    problems.add_incompatible(checks.among_axes(composition, ground.network, training.recipe.error_feedback))
    problems.add_incompatible(options.aggregate.problems(options.client.sends))
    for option in (options.whose, options.client, options.round):
        problems.add_incompatible(problems.attempt(option.problems, composition) or [])
    problems.stop_if_any()


def _rehearse(chosen: Chosen, ground: Ground, training: Training, ticket: Subnet | None, problems: Problems) -> None:
    """Try the network under a mask, and the evidence that is asked for. Stops at problems."""
    prunes = bool(ground.plan.events) or ticket is not None or chosen.options.whose.masks_always
    problems.add_incompatible(checks.masked(ground.network, ground.what, prunes))
    problems.add_incompatible(rehearse_evidence(chosen, ground, training))
    problems.stop_if_any()


def _wire(chosen: Chosen, ground: Ground) -> Wire:
    """Return how the network travels: without what clients keep to themselves, and what is never trained once."""
    net, private, what, mask_names = ground.net, ground.private, ground.what, chosen.options.whose.mask_names
    travels = {name: tensor for name, tensor in tensors_of(net).items() if name not in private}
    wire = replace(chosen.options.client.wire(chosen.options.wire, travels, what.names), mask_names=mask_names)
    wire = replace(wire, statistics=statistics_names(net))
    return wire.splitting(untrained_names(net, chosen.config.federated.batchnorm, {*private, *what.names, *mask_names}))


def _experiment(chosen: Chosen, ground: Ground, training: Training, ticket: Subnet | None) -> Experiment:
    wire = _wire(chosen, ground)
    start = tensors_of(ground.net) if ticket is None else ticket.params
    return Experiment(
        config=chosen.config,
        options=chosen.options,
        plan=ground.plan,
        axes=ground.axes(chosen),
        dataset=ground.dataset,
        clients=ground.clients,
        net=ground.net,
        recipe=training.recipe,
        wire=wire,
        private=ground.private,
        flops=count_flops(ground, training),
        device=chosen.device,
        ticket=ticket,
        regularisers=training.regularisers,
        controlled=training.controlled,
        task=training.task,
        untrained={name: start[name].detach().clone() for name in wire.untrained.shapes},
    )
