"""What a configuration stands for, once it is checked; and how its workers, its loop and its networks are made."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedprune.config.instantiate import make, make_network
from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients
from fedprune.data.population import sizes
from fedprune.execution import Executor, Processes, Serial, auto
from fedprune.federated.client import Work
from fedprune.federated.client.batched import Batched
from fedprune.federated.client.prune_event import OnClient
from fedprune.federated.client.round import ClientRound
from fedprune.federated.client.upload import Upload
from fedprune.federated.evaluate import Evaluation
from fedprune.federated.exchange import Exchange
from fedprune.federated.loop import FederatedLoop
from fedprune.federated.server import scaffold
from fedprune.local.memory_format import channels_last, in_own_memory
from fedprune.local.outcomes import TaskMetrics
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser, add_companions
from fedprune.local.train import is_batchnorm
from fedprune.precision import is_number
from fedprune.pruning.connectivity import effective_density, unfollowed
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence import FROM_TRAINING, needs
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.rewind import Keep
from fedprune.randomness import torch_seed, torch_stream
from fedprune.tensors import tensors_of
from fedprune.types import Mask, Params, Plan, Subnet
from fedprune.wire.message import Wire

log = logging.getLogger(__name__)

ON_CPUS = (Processes.__name__, "Ray")
"""Executors whose workers have a CPU each; the latter's module is imported only where Ray is installed."""


@dataclass(frozen=True)
class Experiment:
    """Everything that a configuration stands for, checked.

    options: what each group of build.OBJECTS names, the data, the aggregate, the upload, what clients do, how a round goes, the
    server's step, and the fates of all answers. net: the network at its initialisation. own: the tensors that clients keep to
    themselves. flops: of training on one example, by layer of the dense network (empty: they could not be counted). begin: the
    ticket that the run starts from (None: dense, from `net`). regularisers: what clients add to their training. controlled: the
    parameters whose training is corrected by scaffold. task: what the module measures. untrained: what is never trained, and
    travels once to each client.
    """

    config: DictConfig
    options: Mapping[str, Any]
    plan: Plan
    axes: Axes
    dataset: Dataset
    clients: Clients
    net: nn.Module
    recipe: Recipe
    wire: Wire
    own: tuple[str, ...]
    flops: Mapping[str, float]
    device: str
    begin: Subnet | None = None
    regularisers: tuple[Regulariser, ...] = ()
    controlled: tuple[str, ...] = ()
    task: TaskMetrics = field(default_factory=TaskMetrics)
    untrained: Params = field(default_factory=dict)

    def executor(self) -> Executor:
        """Start the workers."""
        worker = functools.partial(
            client_round,
            *(_container(self.config), self.dataset, self.clients, self.recipe, self.wire, self.device),
            *(self.axes.what.names, self.regularisers, self._on_client(), self.options["upload"]),
            *(self._accumulates, self.options["client"], self._fresh),
            *(self.task, self.untrained),
        )
        option = self.config.executor["_target_"].rpartition(".")[2]
        if self.device == "cpu" or option not in (auto.__name__, *ON_CPUS):
            return make(self.config.executor, worker)
        if option == auto.__name__ and self.device.startswith("cuda"):
            log.info("on %s clients are trained as one batched model: executor=cuda, which has at_once", self.device)
            return Batched(worker)
        if option in ON_CPUS:
            log.warning("on %s clients are trained one after the other: executor=serial", self.device)
        return Serial(worker)

    def _on_client(self) -> OnClient | None:
        """How clients carry out prune events, if it is they who do."""
        whose, gate = self.options["whose"], self.plan.gate
        if whose.at is None:
            return None
        opens = gate.opens if gate and not whose.asks else None
        rewind = Keep() if whose.asks else self.options["rewind"]  # where there is one mask for all, the server rewinds
        return OnClient(self.axes, rewind, opens, whose.at, self._fresh, self.begin)

    @property
    def _accumulates(self) -> bool:
        """Whether a formula asks for what clients add up while they train."""
        formulas = self.axes.criterion.formulas().values() if self.plan.events else ()
        return any(name in FROM_TRAINING for formula in formulas for name in needs(formula))

    @property
    def _fresh(self) -> Callable[[int], Params]:
        fixed = (self.config, self.dataset, self.axes.what.names, self.regularisers, self.options["client"], self.untrained)
        return functools.partial(_fresh, *fixed)

    def loop(self, executor: Executor) -> FederatedLoop:
        """The federated loop over these workers."""
        config, federated, clients = self.config, self.config.federated, self.clients
        control = functools.partial(scaffold.sent, self.controlled) if self.controlled else None
        exchange = Exchange(self.wire, executor, config.seed, sizes(clients.train), self.own, federated.broken)
        exchange = replace(exchange, fates=self.options["fates"], control=control, upload=self.options["upload"])
        exchange = replace(exchange, feedback=self.recipe.error_feedback, learnt=self._learnt)
        return self.options["round"].loop(
            seed=config.seed,
            plan=self.plan,
            axes=self.axes,
            network=Network(self.net, self.dataset.shape, self.axes.what.order),
            **{name: self.options[name] for name in ("where", "whose", "rewind", "aggregate", "server_step")},
            weighting=federated.weighting,
            clients=federated.clients,
            cohort=federated.cohort,
            eval_every=config.eval_every,
            exchange=exchange,
            evaluation=Evaluation(
                *(exchange, len(self.dataset.test_y), clients.seen, *self._own_sizes),
                *(self.options["whose"].held, self.options["whose"].common, self.task),
            ),
            fresh=self._fresh,
            parameters=tuple(name for name, _ in self.net.named_parameters()),
            trained=tuple(name for name, p in self.net.named_parameters() if p.requires_grad and is_number(p)),
            flops=self.flops,
            effective=self._effective,
            begin=self.begin,
            profile=bool(config.get("profile")),
        )

    @property
    def _learnt(self) -> tuple[str, ...]:
        """The names of what training changes: parameters, and the statistics of BatchNorm."""
        norms = [name for name, layer in self.net.named_modules() if is_batchnorm(layer)]
        statistics = [f"{name}.{of}" for name in norms for of in ("running_mean", "running_var")]
        return *(name for name, p in self.net.named_parameters() if p.requires_grad), *statistics

    @property
    def _own_sizes(self) -> tuple[list[int], list[int]]:
        """How many examples the clients that are looked at have in their validation and test parts."""
        val, test = ([len(part[client]) for client in self.clients.seen] for part in (self.clients.val, self.clients.test))
        return val, test

    @property
    def _effective(self) -> Callable[[Mask], float] | None:
        problem = unfollowed(self.net, self.dataset.shape)
        if problem:
            log.info("density/effective is not reported: %s", problem)
            return None
        return functools.partial(effective_density, self.net, shape=self.dataset.shape)


def client_round(
    config: Mapping[str, Any],
    dataset: Dataset,
    clients: Clients,
    recipe: Recipe,
    wire: Wire,
    device: str,
    prunable: tuple[str, ...],
    regularisers: tuple[Regulariser, ...],
    event: OnClient | None,
    upload: Upload,
    accumulates: bool,
    work: Work,
    fresh: Callable[[int], Params],
    task: TaskMetrics,
    untrained: Params,
) -> ClientRound:
    """What a worker builds for itself, once: the module, around data that it shares with the others."""
    with torch.random.fork_rng(devices=[]):
        net = in_own_memory(make_network(config["model"], dataset.shape, dataset.classes))
    add_companions(net, prunable, regularisers, torch.Generator())  # each job brings its own values
    module = make(config["local"]["module"], net, make(config["local"]["optimizer"])).to(device)
    channels_last(net, dataset.shape)
    examples, top = (config["where"].get(key) for key in ("examples", "top"))
    worker = ClientRound(module, dataset, clients, recipe, wire, examples, regularisers, event, upload, accumulates, top, task)
    worker = replace(worker, untrained=untrained)
    return work.client_round(worker, functools.partial(fresh, 0), config["seed"])


def initial_net(config: DictConfig, dataset: Dataset, number: int) -> nn.Module:
    """The network at its `number`-th independent initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.seed, "initialisation", number))
        return in_own_memory(make_network(config.model, dataset.shape, dataset.classes))


def _fresh(
    config: DictConfig,
    dataset: Dataset,
    prunable: tuple[str, ...],
    regularisers: tuple[Regulariser, ...],
    work: Work,
    untrained: Params,
    number: int,
) -> Params:
    """The parameters and buffers of the `number`-th initialisation; what nobody trains is as the run began."""
    net = initial_net(config, dataset, number)
    work.begin(net, prunable)
    add_companions(net, prunable, regularisers, torch_stream(config.seed, "companions", number))
    return {name: tensor.clone() for name, tensor in tensors_of(net).items()} | untrained


def _container(config: DictConfig) -> dict[str, Any]:
    return dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
