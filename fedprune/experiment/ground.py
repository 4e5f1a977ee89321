"""The first steps of a build: the options, and the network, the plan and the clients that follow from them."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, fields
from typing import TypeVar

from omegaconf import DictConfig
from torch import nn

from fedprune.capabilities import complete
from fedprune.config.instantiate import make
from fedprune.config.typed import misfits
from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients, federate
from fedprune.device import chosen
from fedprune.errors import ConfigError
from fedprune.execution import Choice as ExecutorChoice
from fedprune.experiment import checks
from fedprune.experiment.augment import check_augment
from fedprune.experiment.checks.problems import Names, Problems
from fedprune.experiment.network import initial_net
from fedprune.experiment.options import DATA, make_option, make_options
from fedprune.experiment.standardise import of_the_data_set, standardised
from fedprune.federated.client.batchnorm import private_names
from fedprune.federated.composition import Options
from fedprune.federated.sampling import unseen_clients
from fedprune.federated.server.accumulator import check as check_aggregate
from fedprune.local.recipe import Recipe
from fedprune.models.check import check_network
from fedprune.pruning.cost import counted
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.what import What
from fedprune.pruning.what.layer_order import LayerOrder
from fedprune.pruning.what.layer_trace import traced
from fedprune.pruning.what.layers import prunable
from fedprune.pruning.when import Window
from fedprune.ticket import InitFrom, StartFrom
from fedprune.types import Plan

log = logging.getLogger(__name__)

Start = TypeVar("Start", StartFrom, InitFrom)


@dataclass(frozen=True)
class Chosen:
    """The objects that the configuration alone gives. names: of the chosen options, by group. ticket: what the run starts from,
    a ticket or trained weights."""

    config: DictConfig
    names: Names
    options: Options
    recipe: Recipe
    ticket: StartFrom | InitFrom
    device: str


@dataclass(frozen=True)
class Ground:
    """The data, the network, the plan and the clients of a run. net: the network at its initialisation. private: the tensors
    that clients keep to themselves."""

    dataset: Dataset
    net: nn.Module
    order: LayerOrder
    window: Window
    plan: Plan
    what: What
    clients: Clients
    private: tuple[str, ...]

    @property
    def network(self) -> Network:
        """Return the network as the server has it."""
        return Network(self.net, self.dataset.shape, self.order)

    def axes(self, chosen: Chosen) -> Axes:
        """Return what is pruned, by which criterion, and what grown units start from."""
        return Axes(self.what, chosen.options.criterion, chosen.config.federated.regrown)


def choose(config: DictConfig, names: Names, problems: Problems) -> Chosen:
    """Make what takes neither data nor a network. Stops at problems."""
    problems.add(checks.ranges(config))
    options = make_options(config, problems)
    if options is not None:
        problems.attempt(check_aggregate, options.aggregate)
    recipe, ticket = problems.attempt(_recipe, config, options), problems.attempt(_start, config)
    device = problems.attempt(chosen, config.device)
    wrong = misfits(config.executor)
    problems.add(wrong)
    executor = None if wrong else problems.attempt(make, {**config.executor, "_partial_": True})
    problems.add(checks.executor(complete(executor, ExecutorChoice), device or config.device) if executor else [])
    problems.stop_if_any()
    assert options is not None, "what cannot be made is a problem"
    return Chosen(config, names, options, recipe, ticket, device)


def load_data(config: DictConfig, device: str, problems: Problems) -> Dataset:
    """Load the data set, which may have to be fetched first, and try its augmentation. Stops at problems."""
    dataset: Dataset = problems.attempt(make_option, config, DATA, of_the_data_set(config))
    problems.stop_if_any()
    dataset = problems.attempt(standardised, config, dataset) or dataset
    problems.add(checks.data(dataset))
    problems.stop_if_any()
    problems.attempt(check_augment, config, dataset, device)
    problems.stop_if_any()
    return dataset


def lay_ground(chosen: Chosen, dataset: Dataset, problems: Problems) -> Ground:
    """Make the network, the plan and the clients. Stops where nothing can go on; other problems are added to."""
    config, options = chosen.config, chosen.options
    net = problems.attempt(_network, config, dataset)
    window = problems.attempt(checks.window, options.when, config.rounds)
    problems.stop_if_any()
    order = _traced(net, dataset)
    federated = config.federated
    return Ground(
        dataset=dataset,
        net=net,
        order=order,
        window=window,
        plan=problems.attempt(checks.plan, options.how_often, window, config.density),
        what=problems.attempt(_what, chosen, net, order, dataset),
        private=problems.attempt(private_names, net, federated.batchnorm),
        clients=problems.attempt(_clients, chosen, dataset),
    )


def _what(chosen: Chosen, net: nn.Module, order: LayerOrder, dataset: Dataset) -> What:
    """Return what is pruned of the network, with what its density is a share of."""
    what = chosen.options.what.bind(net, order)
    return counted(chosen.config.density_of, what, net, dataset.shape, chosen.names["what"])


def _clients(chosen: Chosen, dataset: Dataset) -> Clients:
    """Return the clients' data, and who is in no cohort."""
    federated, seed, options = chosen.config.federated, chosen.config.seed, chosen.options
    unseen = unseen_clients(seed, federated.clients, federated.cohort, federated.unseen)
    numbers = (federated.clients, seed, options.where.proxy, federated.evaluated)
    return federate(dataset, options.partition, *numbers, unseen)


def _recipe(config: DictConfig, options: Options | None) -> Recipe:
    local = {field.name: config.local[field.name] for field in fields(Recipe) if field.name in config.local}
    federated = config.federated
    return Recipe(
        **local,
        freeze_batchnorm=federated.batchnorm == "frozen",
        keep_optimizer=federated.optimizer_state == "kept",
        keep_weights=options is not None and options.whose.uncommon == "own",
    )


def _start(config: DictConfig) -> StartFrom | InitFrom:
    """Return what the run starts from. Raises ConfigError if both a ticket and weights are given."""
    ticket, weights = _made(StartFrom, config.ticket, "ticket"), _made(InitFrom, config.init_from, "init_from")
    if ticket.path is not None and weights.path is not None:
        raise ConfigError(
            [f"ticket.path={ticket.path} and init_from.path={weights.path}: a run starts from one: set one of them to null"]
        )
    return ticket if weights.path is None else weights


def _made(start: type[Start], keys: DictConfig, group: str) -> Start:
    try:
        return start(**{str(key): value for key, value in keys.items()})
    except TypeError as error:
        known = ", ".join(f"{group}.{field}" for field in inspect.signature(start).parameters)
        raise ConfigError([f"{group}: {str(error).partition(') ')[2]}; its keys are {known}"]) from error


def _network(config: DictConfig, dataset: Dataset) -> nn.Module:
    return check_network(initial_net(config, dataset, 0), config.model["_target_"])


def _traced(net: nn.Module, dataset: Dataset) -> LayerOrder:
    """Return the order in which the network runs its layers; a warning says where it cannot be told."""
    order = traced(net, prunable(net), dataset.normalise(dataset.x[:1]))
    if order.problem:
        log.warning("which layers are first and last: %s", order.problem)
    return order
