"""Config -> Experiment: every object of a run.

The whole composition is checked before the first batch, and all its problems are reported at once. What an option can
check by itself is checked where it is written; what only the composition can know is in check/.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedprune.config.instantiate import make
from fedprune.data.batches import Batches, first_examples
from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients, federate
from fedprune.data.population import sizes
from fedprune.device import chosen
from fedprune.errors import ConfigError
from fedprune.experiment import checks
from fedprune.experiment.experiment import Experiment, initial_net
from fedprune.federated.client import Composition
from fedprune.federated.client.batchnorm import own_names
from fedprune.federated.client.untrained import untrained_names
from fedprune.federated.costs import flops_per_example
from fedprune.federated.masks import PersonalMask, Whose
from fedprune.federated.masks.capacity import nobodys, of_all, personal
from fedprune.federated.masks.nested import Nested
from fedprune.federated.server.accumulator import check as check_aggregate
from fedprune.local.frozen import frozen
from fedprune.local.lightning.job_trainer import Planned
from fedprune.local.lightning.schedules import configured
from fedprune.local.module import LocalModule
from fedprune.local.outcomes import TaskMetrics
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser, add_companions, in_use
from fedprune.local.regularisers.check import check_together
from fedprune.local.state.scaffold import refuse
from fedprune.local.train import set_mode
from fedprune.precision import FUSED, asks_for_fused
from fedprune.pruning.criterion import Adjusted, Criterion
from fedprune.pruning.criterion.prunefl import layer_times
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence import FROM_DATA
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.what.layer_trace import traced
from fedprune.pruning.what.layers import prunable
from fedprune.randomness import torch_stream
from fedprune.tensors import tensors_of
from fedprune.ticket import StartFrom
from fedprune.types import Plan

log = logging.getLogger(__name__)

FEDERATED = ("aggregate", "upload", "client", "round", "capacity", "availability")
"""What is made of a key below `federated`."""

OBJECTS = ("what", "criterion", "when", "how_often", "where", "whose", "rewind", "partition", "wire", "logger")


def build(config: DictConfig, names: dict[str, str]) -> Experiment:
    """Every object of a run. `names`: the chosen option of each group.

    Raises ConfigError with all problems; Incompatible if each option is fine and only the combination is not.
    """
    problems = checks.Problems()
    problems.add(checks.ranges(config))
    options = {group: problems.attempt(make, config[group]) for group in OBJECTS}
    options |= {group: problems.attempt(make, config.federated[group]) for group in FEDERATED}
    options["server_step"] = problems.attempt(make, config.federated.server)
    recipe = problems.attempt(_recipe, config)
    added = tuple(problems.attempt(make, config.local[group]) for group in ("penalty", "dropout"))
    ticket = problems.attempt(_ticket, config)
    device = problems.attempt(chosen, config.device)
    problems.attempt(check_aggregate, options["aggregate"])
    problems.attempt(make, {**config.executor, "_partial_": True})
    problems.add(checks.executor(config.executor["_target_"], device or config.device))
    problems.stop_if_any()
    dataset = options["data"] = problems.attempt(make, config.data)  # after what costs nothing: it may have to be fetched
    problems.add(checks.data(dataset) if dataset is not None else [])
    problems.stop_if_any()

    criterion, where, work = (options[group] for group in ("criterion", "where", "client"))
    net = problems.attempt(_network, config, dataset)
    window = problems.attempt(options["when"], config.rounds)
    problems.stop_if_any()

    plan = problems.attempt(options["how_often"], window, config.density)
    order = traced(net, prunable(net), dataset.normalise(dataset.x[:1]))
    if order.problem:
        log.warning("which layers are first and last: %s", order.problem)
    what = problems.attempt(options["what"].bind, net, order)
    own = problems.attempt(own_names, net, config.federated.batchnorm)
    proxy = getattr(where, "proxy", 0)
    federation = (config.federated.clients, config.seed, proxy, config.federated.evaluated)
    clients = problems.attempt(federate, dataset, options["partition"], *federation)
    module = problems.attempt(_optimizer, config, net)
    problems.attempt(_fixed, net, recipe)
    controlled = problems.attempt(_controlled, config, net, own)
    task = problems.attempt(checks.task, module, dataset, names) if module is not None else TaskMetrics()
    if what is not None:
        problems.attempt(check_together, *added, net, what.names)
        if isinstance(criterion, Adjusted):
            problems.attempt(layer_times, criterion.times, what.names, what.ends)
    regularisers = tuple(one.told(order) for one in (*added, *work.regularisers) if one.acts)
    problems.add(checks.evidence(criterion, names))
    problems.stop_if_any()
    recipe = replace(recipe, smallest=problems.attempt(checks.smallest, module, recipe, dataset) or 1)
    measures = bool(plan.events) and bool(checks.evidence_of(criterion) & set(FROM_DATA))
    of_clients = sizes(clients.train)
    problems.add(checks.sizes_of_batches(module, recipe, dataset, of_clients, options["partition"], options["where"], measures))
    problems.stop_if_any()
    problems.attempt(_tried, config, dataset, clients, recipe, criterion)
    options["fates"] = options["availability"](config.seed, [recipe.batches(examples) for examples in of_clients])
    problems.add(checks.outcomes(plan, options["whose"], names))
    problems.add(checks.gate(plan, task, names) + checks.bounds(plan, task, names))
    problems.add_incompatible(checks.of_classes(task, plan, criterion, options["whose"], config.local.dropout, names))
    problems.stop_if_any()

    problems.attempt(work.begin, net, what.names)
    add_companions(net, what.names, regularisers, torch_stream(config.seed, "companions"))
    begin = problems.attempt(ticket, net, what, config.seed, names, OmegaConf.to_container(config.model, resolve=True))
    if begin is not None:
        problems.add_incompatible(checks.whole_units(begin.mask, what, plan, names))

    axes = Axes(what, criterion, config.federated.regrown)
    network, plan_to = Network(net, dataset.shape, order), functools.partial(options["how_often"], window)
    whose = problems.attempt(_parted, config, options, clients, network, axes, own, plan_to, names)
    options["whose"] = whose or options["whose"]
    problems.add_incompatible(_among_clients(config, plan, criterion, options, own, sum(sizes(clients.val)), names))
    problems.add_incompatible(_combination(plan, axes, options, recipe, network, names))
    composition = Composition(plan, what, net, options, names, config)
    for option in (work, options["round"]):
        problems.add_incompatible(problems.attempt(option.problems, composition) or [])
    problems.stop_if_any()
    prunes = bool(plan.events) or begin is not None or isinstance(options["whose"], Nested)
    problems.add_incompatible(checks.masked(network, what, prunes))
    problems.add_incompatible(_rehearsal(config, plan, axes, dataset, net, recipe, regularisers, names))
    problems.stop_if_any()
    wire = work.wire(options["wire"], {n: t for n, t in tensors_of(net).items() if n not in own}, what.names)
    covers = getattr(options["whose"], "covers", ())
    wire = replace(wire, own=covers).splitting(untrained_names(net, config.federated.batchnorm, {*own, *what.names, *covers}))
    start = tensors_of(net) if begin is None else begin.params
    untrained = {name: start[name].detach().clone() for name in wire.untrained.shapes}
    flops = _flops(config, net, dataset)
    made = (config, options, plan, axes, dataset, clients, net, recipe, wire, own, flops, device)
    return Experiment(*made, begin, regularisers, controlled, task, untrained)


def _rehearsal(
    config: DictConfig,
    plan: Plan,
    axes: Axes,
    dataset: Dataset,
    net: nn.Module,
    recipe: Recipe,
    regularisers: tuple[Regulariser, ...],
    names: dict[str, str],
) -> list[str]:
    """What goes wrong when the evidence that is asked for is measured, on two examples."""
    module = make(config.local.module, net, make(config.local.optimizer))
    batch = first_examples(dataset, 2)
    params = in_use(tensors_of(net), axes.what.names, regularisers)
    modes = {part: part.training for part in net.modules()}
    set_mode(module, recipe)
    found = checks.rehearsal(plan, axes.criterion, module, params, axes.what, batch, names)
    for part, training in modes.items():
        part.training = training
    return found


def _combination(
    plan: Plan, axes: Axes, options: Mapping[str, Any], recipe: Recipe, network: Network, names: dict[str, str]
) -> list[str]:
    """What is wrong with the axes together, on this network; a twin of a simpler composition is only pointed out."""
    what, criterion = axes.what, axes.criterion
    exchanges = any(event.swap for event in plan.events)
    if criterion.grow is not None and not exchanges:
        log.warning("criterion=%s never grows under how_often=%s; it only drops", names["criterion"], names["how_often"])
    if axes.regrown != "zero" and not exchanges:
        log.warning("federated.regrown=%s changes nothing: how_often=%s never grows", axes.regrown, names["how_often"])
    units = what.units(tensors_of(network.net))
    return [
        *checks.composition(plan, criterion, options["where"], options["rewind"], options["whose"], names),
        *checks.outcomes_of_clients(plan, options["whose"], names),
        *checks.blocks(plan, what, names),
        *checks.of_single_weights(plan, axes, options["whose"], names),
        *checks.feedback(recipe.error_feedback, plan, options["whose"], names),
        *checks.regrown(axes.regrown, plan, options["whose"], names),
        *checks.on_clients(plan, options["whose"], axes, options["where"], options["rewind"], names),
        *checks.obstacles(plan, criterion, network, what.names, names),
        *dict.fromkeys(
            problem
            for own in [plan, *dict.fromkeys(getattr(options["whose"], "plans", ()))]
            for problem in (*checks.min_per_layer(what, own, units), *checks.scope(what, own, units, names))
        ),
    ]


def _among_clients(
    config: DictConfig,
    plan: Plan,
    criterion: Criterion,
    options: Mapping[str, Any],
    own: tuple[str, ...],
    validation: int,
    names: dict[str, str],
) -> list[str]:
    """What is wrong with who does what among the clients. validation: how many examples all of them have for it."""
    whose, where = options["whose"], options["where"]
    return [
        *checks.validation(plan, validation, names),
        *checks.answers(options["fates"], config, plan, criterion, where, whose, names),
        *checks.kept_back(own, options["rewind"], plan, names),
        *checks.of_one_mask(config.federated, whose, plan, names),
        *checks.carried(config.federated, plan, whose, criterion, where, names),
        *checks.aggregate(options["aggregate"], options["client"]),
    ]


def _parted(
    config: DictConfig,
    options: Mapping[str, Any],
    clients: Clients,
    network: Network,
    axes: Axes,
    own: tuple[str, ...],
    plan_to: Callable[[float], Plan],
    names: dict[str, str],
) -> Whose:
    """The `whose` for clients of their capacities. plan_to: the plan that ends at a density."""
    whose, labels = options["whose"], options["data"].y
    capacities = of_all(options["capacity"], config.federated.clients, config.seed)
    if isinstance(whose, Nested):
        owned = [tuple(labels[part].unique().tolist()) for part in clients.train] if whose.labels == "own" else []
        return whose.bind(capacities, owned, network, axes.what, own)
    if isinstance(whose, PersonalMask):
        return personal(whose, capacities, plan_to, config.density)
    return nobodys(whose, capacities, names["whose"])


def _recipe(config: DictConfig) -> Recipe:
    local = {field.name: config.local[field.name] for field in fields(Recipe) if field.name in config.local}
    federated = config.federated
    return Recipe(
        **local,
        freeze_batchnorm=federated.batchnorm == "frozen",
        keep_optimizer=federated.optimizer_state == "kept",
        keep_weights=config.whose.get("uncommon") == "own",
    )


def _ticket(config: DictConfig) -> StartFrom:
    try:
        return StartFrom(**config.ticket)
    except TypeError as error:
        known = ", ".join(f"ticket.{field.name}" for field in fields(StartFrom))
        raise ConfigError([f"ticket: {str(error).partition(') ')[2]}; its keys are {known}"]) from error


def _optimizer(config: DictConfig, net: nn.Module) -> LocalModule:
    """Return the client's module; its optimizer is tried once: to find its mistakes, and to have torch's slow first import over
    before workers fork."""
    try:
        module = make(config.local.module, net, make(config.local.optimizer))
        if not isinstance(module, LocalModule):
            raise ConfigError([f"local.module is a {type(module).__name__}: subclass fedprune.local.module.LocalModule"])
        _check_fused(configured(module)[0], make(config.local.optimizer), net)
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError([f"local.optimizer or local.module: {error}"]) from error
    checks.module.overrides(module)
    return module


def _tried(config: DictConfig, dataset: Dataset, clients: Clients, recipe: Recipe, criterion: Criterion) -> None:
    """Try a step of a module of one's own, on a network of its own and the first batch of a client."""
    module = make(config.local.module, initial_net(config, dataset, 0), make(config.local.optimizer))
    if not checks.module.needs_trying(module):
        return
    client, examples = next((pair for pair in enumerate(sizes(clients.train)) if pair[1]), (0, 0))
    planned = Planned(recipe.batches_of_a_pass(examples), recipe.batches(examples))
    batches = Batches(dataset, clients, module.device).of(clients.train[client], recipe.batch_size, recipe.smallest)
    checks.module.first_step(module, recipe, next(batches), planned, client)
    checks.module.replayed(module, criterion)


def _check_fused(made: Any, asked: Callable[..., Any], net: nn.Module) -> None:
    """Say that `fused` is off where parameters are of types that it was not compared on.

    Raises ConfigError if a module's own optimizer has it on all the same. asked: local.optimizer.
    """
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in net.parameters() if p.dtype not in FUSED})
    if kinds and asks_for_fused(asked):
        log.warning(
            "local.optimizer.fused=true is for float32 and float64, and the network has %s: it is off", ", ".join(kinds)
        )
    fused = [p for group in made.param_groups if group.get("fused") for p in group["params"]]
    if any(p.dtype not in FUSED for p in fused):
        raise ConfigError(
            [
                "configure_optimizers of local.module makes an optimizer with fused=True, which is not to be trusted with "
                f"{', '.join(kinds)}: leave fused out, or return self.optimizer(self.net.parameters())"
            ]
        )


def _network(config: DictConfig, dataset: Dataset) -> nn.Module:
    return checks.network(initial_net(config, dataset, 0), config.model["_target_"])


def _flops(config: DictConfig, net: nn.Module, dataset: Dataset) -> Mapping[str, float]:
    """What training costs, by layer; nothing, and a warning, if the training step cannot be counted by itself."""
    module = make(config.local.module, net, make(config.local.optimizer))
    try:
        return flops_per_example(module, first_examples(dataset, 2))
    except Exception as error:  # whatever the step does, it may not arise with more examples, or where nobody counts
        text = "the operations of %s.training_step cannot be counted on two examples (%s: %s): there will be no flops/train"
        log.warning(text, type(module).__name__, type(error).__name__, str(error).partition("\n")[0])
        return {}


def _controlled(config: DictConfig, net: nn.Module, own: tuple[str, ...]) -> tuple[str, ...]:
    """The parameters that are trained with controls: under SCAFFOLD all that travel."""
    if config.federated.control == "none":
        return ()
    module = make(config.local.module, net, make(config.local.optimizer))
    checks.module.one_rate(module)
    refuse(module.one_optimizer(), config.federated.optimizer_state == "kept")
    return tuple(name for name, parameter in net.named_parameters() if name not in own and parameter.requires_grad)


def _fixed(net: nn.Module, recipe: Recipe) -> None:
    with frozen(net, recipe.fixed):
        if any(parameter.requires_grad for parameter in net.parameters()):
            return
    if recipe.fixed:
        raise ConfigError(
            [f"local.fixed={list(recipe.fixed)} leaves nothing to train: choose local.fixed=[] or a shorter list"]
        )
    raise ConfigError(["the network has nothing to train: set requires_grad=True for some of its parameters"])
