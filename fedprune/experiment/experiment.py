"""The objects of a run, checked; and how its workers, its loop and its networks are made."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedprune.capabilities import complete
from fedprune.config.instantiate import make, make_network
from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients
from fedprune.data.population import sizes
from fedprune.execution import Choice, Executor, Serial
from fedprune.experiment.augment import make_augment
from fedprune.experiment.network import fresh_params
from fedprune.federated.client.batched import Batched
from fedprune.federated.client.context import Context
from fedprune.federated.client.prune_event import OnClient
from fedprune.federated.client.round import Client, ClientRound
from fedprune.federated.composition import Options
from fedprune.federated.evaluate import Evaluation
from fedprune.federated.exchange import Exchange
from fedprune.federated.loop import FederatedLoop
from fedprune.federated.metrics.tuned import Tuned, chosen_clients
from fedprune.federated.server import scaffold
from fedprune.federated.update_check import UpdateCheck
from fedprune.local.memory_format import channels_last, in_own_memory
from fedprune.local.outcomes import TaskMetrics
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser, add_companions
from fedprune.precision import is_number
from fedprune.pruning.connectivity import effective_density, unfollowed
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence import FROM_TRAINING, needs
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.rewind import Keep
from fedprune.types import Json, Mask, Params, Plan, Subnet
from fedprune.wire.message import Wire

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """Everything that a configuration stands for, checked.

    net: the network at its initialisation. private: the tensors that never travel. flops: of training on one example, by layer
    of the dense network (empty: they could not be counted). ticket: the one that the run starts from (None: dense, from `net`).
    regularisers: what clients add to their training. controlled: the parameters whose training is corrected by SCAFFOLD. task:
    what the module measures. untrained: the tensors that are never trained, and travel once to each client.
    """

    config: DictConfig
    options: Options
    plan: Plan
    axes: Axes
    dataset: Dataset
    clients: Clients
    net: nn.Module
    recipe: Recipe
    wire: Wire
    private: tuple[str, ...]
    flops: Mapping[str, float]
    device: str
    ticket: Subnet | None = None
    regularisers: tuple[Regulariser, ...] = ()
    controlled: tuple[str, ...] = ()
    task: TaskMetrics = field(default_factory=TaskMetrics)
    untrained: Params = field(default_factory=dict)

    def worker(self) -> functools.partial[Client]:
        """Return what makes a worker's client."""
        return functools.partial(
            client_round,
            config=cast(Json, OmegaConf.to_container(self.config, resolve=True)),
            dataset=self.dataset,
            clients=self.clients,
            recipe=self.recipe,
            wire=self.wire,
            device=self.device,
            prunable=self.axes.what.names,
            regularisers=self.regularisers,
            event=self._on_client(),
            options=self.options,
            accumulates=self._accumulates,
            fresh=self._fresh,
            task=self.task,
            untrained=self.untrained,
        )

    def executor(self) -> Executor:
        """Start the workers."""
        worker = self.worker()
        choice = complete(make({**self.config.executor, "_partial_": True}), Choice)
        if self.device == "cpu" or not choice.one_cpu_each:
            executor: Executor = make(self.config.executor, worker)
            return executor
        if self.device.partition(":")[0] in choice.batches_on:
            log.info("on %s clients are trained as one batched model: executor=cuda, which has at_once", self.device)
            return Batched(worker)
        if not choice.batches_on:
            log.warning("on %s clients are trained one after the other: executor=serial", self.device)
        return Serial(worker)

    def _on_client(self) -> OnClient | None:
        """Return how clients carry out prune events; None if they carry out none."""
        whose, gate = self.options.whose, self.plan.gate
        if whose.at is None:
            return None
        opens = gate.opens if gate and not whose.global_mask else None
        rewind = Keep() if whose.global_mask else self.options.rewind  # where there is one mask for all, the server rewinds
        return OnClient(self.axes, rewind, opens, whose.at, self._fresh, self.ticket)

    @property
    def _accumulates(self) -> bool:
        """Return whether a formula asks for gradients that clients add up while they train."""
        formulas = self.axes.criterion.formulas().values() if self.plan.events else ()
        return any(name in FROM_TRAINING for formula in formulas for name in needs(formula))

    @property
    def _fresh(self) -> Callable[[int], Params]:
        fixed = (self.config, self.dataset, self.axes.what.names, self.regularisers, self.options.client, self.untrained)
        return functools.partial(fresh_params, *fixed)

    def loop(self, executor: Executor) -> FederatedLoop:
        """Return the federated loop over these workers."""
        config, federated, options = self.config, self.config.federated, self.options
        exchange = self._exchange(executor)
        return options.round.loop(
            seed=config.seed,
            plan=self.plan,
            axes=self.axes,
            network=Network(self.net, self.dataset.shape, self.axes.what.order),
            where=options.where,
            whose=options.whose,
            rewind=options.rewind,
            aggregate=options.aggregate,
            server_step=options.server_step,
            weighting=federated.weighting,
            clients=federated.clients,
            cohort=federated.cohort,
            eval_every=config.eval_every,
            exchange=exchange,
            evaluation=self._evaluation(exchange),
            tuned=self.tuned,
            unseen=self.clients.unseen,
            fresh=self._fresh,
            parameters=tuple(name for name, _ in self.net.named_parameters()),
            trainable=tuple(name for name, p in self.net.named_parameters() if p.requires_grad and is_number(p)),
            flops=self.flops,
            effective=self._effective,
            ticket=self.ticket,
            profile=bool(config.get("profile")),
        )

    def _exchange(self, executor: Executor) -> Exchange:
        """Return what goes between the server and these workers, and is counted."""
        return Exchange(
            wire=self.wire,
            executor=executor,
            seed=self.config.seed,
            examples=sizes(self.clients.train),
            private=self.private,
            broken=self.config.federated.broken,
            fates=self.options.fates,
            control=functools.partial(scaffold.sent, self.controlled) if self.controlled else None,
            upload=self.options.upload,
            check=UpdateCheck.of(self.clients, self.net, self.recipe, self.options.where, self.options.upload),
        )

    def _evaluation(self, exchange: Exchange) -> Evaluation:
        """Return what evaluates a state, on the workers of the exchange."""
        clients, whose, (val, local) = self.clients, self.options.whose, self._own_sizes
        return Evaluation(
            exchange=exchange,
            test=len(self.dataset.test_y),
            clients=clients.seen,
            val=val,
            local=local,
            client_mask=whose.client_mask,
            common_entries=whose.common_entries,
            task=self.task,
            unseen=clients.newcomers,
            newly=[len(clients.test[client]) for client in clients.newcomers],
        )

    @functools.cached_property
    def tuned(self) -> Tuned:
        """Return which clients are evaluated after one local training, and when. Log why there are none, if there should be."""
        federated, sizes_of_all = self.config.federated, self._own_sizes[1]
        number = federated.cohort if federated.tuned is None else federated.tuned
        chosen = chosen_clients([*zip(self.clients.seen, sizes_of_all, strict=True)], number, self.config.seed)
        reasons = {
            "clients have no test examples, type partition.test=0.1 for some": not any(sizes_of_all),
            "what federated/client trains cannot be evaluated": not self.options.client.tunes,
        }
        reason = next((why for why, holds in reasons.items() if holds), None)
        if number and reason:
            log.info("client/%s_tuned_mean, of clients after one local training, is left out: %s", self.task.metric, reason)
        only = self.plan.rounds if federated.tuned_at == "end" else None
        return Tuned((), (), self.task) if reason else Tuned(tuple(chosen), tuple(chosen.values()), self.task, only)

    @property
    def _own_sizes(self) -> tuple[list[int], list[int]]:
        """Return the sizes of the validation and test parts of the clients that are evaluated."""
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
    config: Json,
    dataset: Dataset,
    clients: Clients,
    recipe: Recipe,
    wire: Wire,
    device: str,
    prunable: tuple[str, ...],
    regularisers: tuple[Regulariser, ...],
    event: OnClient | None,
    options: Options,
    accumulates: bool,
    fresh: Callable[[int], Params],
    task: TaskMetrics,
    untrained: Params,
) -> Client:
    """Build a worker's own module, once, around data that it shares with the others."""
    with torch.random.fork_rng(devices=[]):
        net = in_own_memory(make_network(config["model"], dataset.shape, dataset.classes))
    add_companions(net, prunable, regularisers, torch.Generator())  # each job brings its own values
    module = make(config["local"]["module"], net, make(config["local"]["optimizer"])).to(device)
    channels_last(net, dataset.shape)
    augment = make_augment(config, module.device)
    context = Context(module, dataset, clients, recipe, wire, regularisers, task, untrained, augment)
    worker = ClientRound(context, event, options.upload, accumulates, options.where.examples, options.where.top)
    return options.client.client_round(worker, functools.partial(fresh, 0), config["seed"])
