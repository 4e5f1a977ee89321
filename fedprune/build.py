"""Config -> objects. With __main__.py and sweep.py the only file that knows Hydra.

The whole composition is checked before the first batch, and all its problems are reported at once. What an option can
check by itself is checked where it is written; what only the composition can know is in check.py.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedprune import check
from fedprune.data.client import Clients, federate
from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError, FedpruneError
from fedprune.federated.batchnorm import own_names
from fedprune.federated.client import ClientRound
from fedprune.federated.costs import flops_per_example
from fedprune.federated.evaluate import Evaluation
from fedprune.federated.exchange import Exchange
from fedprune.federated.executor import Executor, Processes, Serial
from fedprune.federated.loop import FederatedLoop
from fedprune.federated.where import Where
from fedprune.local.module import LocalModule
from fedprune.local.train import Recipe
from fedprune.pruning.cycle import Axes
from fedprune.randomness import torch_seed
from fedprune.types import Params, Plan
from fedprune.wire.codec import Layout
from fedprune.wire.message import Wire

log = logging.getLogger(__name__)

OBJECTS = ("what", "criterion", "when", "how_often", "where", "whose", "rewind", "partition", "data", "wire")


@dataclass(frozen=True)
class Experiment:
    """Everything that a configuration stands for, checked.

    executor: starts the workers. loop: the federated loop, given an executor. net: the network at its initialisation.
    """

    plan: Plan
    axes: Axes
    where: Where
    dataset: Dataset
    clients: Clients
    net: nn.Module
    wire: Wire
    flops: Mapping[str, float]
    device: str
    executor: Callable[[], Executor]
    loop: Callable[[Executor], FederatedLoop]


def build(config: DictConfig, names: dict[str, str]) -> Experiment:
    """Every object of a run. `names`: the chosen option of each group.

    Raises ConfigError with all problems; Incompatible if each option is fine and only the combination is not.
    """
    problems = check.Problems()
    problems.add(check.ranges(config))
    options = {group: problems.attempt(make, config[group]) for group in OBJECTS}
    recipe = problems.attempt(_recipe, config)
    device = problems.attempt(_device, config.device)
    server_step = problems.attempt(make, config.federated.server)
    problems.stop_if_any()

    dataset, criterion = options["data"], options["criterion"]
    net = problems.attempt(_net, config, dataset, 0)
    window = problems.attempt(options["when"], config.rounds)
    problems.stop_if_any()

    plan = problems.attempt(options["how_often"], window, config.density)
    what = problems.attempt(options["what"].bind, net)
    own = problems.attempt(own_names, net, config.federated.batchnorm)
    proxy = getattr(options["where"], "proxy", 0)
    clients = problems.attempt(federate, dataset, options["partition"], config.federated.clients, config.seed, proxy)
    problems.attempt(_optimizer, config, net)
    problems.add(check.evidence(criterion, names))
    problems.stop_if_any()

    problems.add_incompatible(check.composition(plan, criterion, options["where"], options["rewind"], names))
    problems.add_incompatible(check.min_per_layer(what, plan, what.units(net.state_dict())))
    problems.stop_if_any()

    if criterion.grow is not None and not any(event.swap for event in plan.events):
        log.warning(
            "criterion=%s never grows under how_often=%s: it is its drop formula", names["criterion"], names["how_often"]
        )
    layout = Layout.of({name: tensor for name, tensor in net.state_dict().items() if name not in own}, what.names)
    wire = Wire(options["wire"], layout)
    recipe_of_clients = functools.partial(client_round, _container(config), dataset, clients, recipe, wire, device)
    flops = flops_per_example(net, dataset.normalise(dataset.x[:2]))

    def loop(executor: Executor) -> FederatedLoop:
        exchange = Exchange(wire, executor, config.seed, _sizes(clients.train), own, config.federated.broken)
        return FederatedLoop(
            seed=config.seed,
            plan=plan,
            axes=Axes(what, criterion),
            where=options["where"],
            whose=options["whose"],
            rewind=options["rewind"],
            server_step=server_step,
            weighting=config.federated.weighting,
            clients=config.federated.clients,
            cohort=config.federated.cohort,
            eval_every=config.eval_every,
            exchange=exchange,
            evaluation=Evaluation(exchange, len(dataset.test_y), _sizes(clients.val), _sizes(clients.test)),
            fresh=functools.partial(_fresh, config, dataset),
            trained=tuple(name for name, _ in net.named_parameters()),
            flops=flops,
        )

    return Experiment(
        plan,
        Axes(what, criterion),
        options["where"],
        dataset,
        clients,
        net,
        wire,
        flops,
        device,
        functools.partial(_executor, config, device, recipe_of_clients),
        loop,
    )


def client_round(
    config: Mapping[str, Any], dataset: Dataset, clients: Clients, recipe: Recipe, wire: Wire, device: str
) -> ClientRound:
    """What a worker builds for itself, once: the module, around data that it shares with the others."""
    with torch.random.fork_rng(devices=[]):
        net = make(config["model"], shape=dataset.shape, classes=dataset.classes)
    module = make(config["local"]["module"], net, make(config["local"]["optimizer"])).to(device)
    return ClientRound(module, dataset, clients, recipe, wire, config["where"].get("examples"))


def _container(config: DictConfig) -> dict[str, Any]:
    return dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def make(config: Any, *args: Any, **kwargs: Any) -> Any:
    """The object that a config node names by `_target_`, called with these arguments too (a `_partial_` one is not called).

    Raises ConfigError for what the user can mend, instead of Hydra's traceback.
    """
    try:
        factory = _plain(instantiate(config, _partial_=True, _convert_="all"))
    except InstantiationException as error:
        raise _mendable(error.__cause__ or error, config) from error
    if config.get("_partial_"):
        return factory
    try:
        inspect.signature(factory).bind(*args, **kwargs)
    except TypeError as error:
        raise _mendable(error, config) from error
    return _plain(factory(*args, **kwargs))


def _mendable(cause: BaseException, config: Any) -> FedpruneError:
    if isinstance(cause, FedpruneError):
        return cause
    return ConfigError([f"{config.get('_target_', config)}: {' '.join(str(cause).split())}"])


def _plain(made: Any) -> Any:
    """Hydra's own partials cost 0.1 ms a call and need not pickle: plain ones instead, also in the fields of what was made."""
    if isinstance(made, functools.partial):
        bound = {name: _plain(value) for name, value in made.keywords.items()}
        return functools.partial(made.func, *made.args, **bound) if made.args or bound else made.func
    if is_dataclass(made) and not isinstance(made, type):
        values = {field.name: getattr(made, field.name) for field in fields(made)}
        changed = {name: _plain(value) for name, value in values.items() if isinstance(value, functools.partial)}
        return replace(made, **changed) if changed else made
    return made


def _recipe(config: DictConfig) -> Recipe:
    local = {field.name: config.local[field.name] for field in fields(Recipe) if field.name in config.local}
    return Recipe(**local, freeze_batchnorm=config.federated.batchnorm == "frozen")


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError([f"device={name}: {str(error).splitlines()[0]}; choose device=auto or device=cpu"]) from error
    return str(device)


def _net(config: DictConfig, dataset: Dataset, number: int) -> nn.Module:
    """The network at its `number`-th independent initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.seed, "initialisation", number))
        return make(config.model, shape=dataset.shape, classes=dataset.classes)


def _fresh(config: DictConfig, dataset: Dataset, number: int) -> Params:
    return {name: tensor.detach().clone() for name, tensor in _net(config, dataset, number).state_dict().items()}


def _optimizer(config: DictConfig, net: nn.Module) -> None:
    """Try the client's optimizer once: to find its mistakes, and to have torch's slow first import over before workers fork."""
    module = make(config.local.module, net, make(config.local.optimizer))
    if not isinstance(module, LocalModule):
        raise ConfigError([f"local.module is a {type(module).__name__}: subclass fedprune.local.module.LocalModule"])
    try:
        module.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise ConfigError([f"local.optimizer: {error}"]) from error


def _executor(config: DictConfig, device: str, factory: Callable[[], ClientRound]) -> Executor:
    if device != "cpu" and config.executor["_target_"].endswith(f".{Processes.__name__}"):
        log.warning("on %s clients are trained one after the other: executor=serial", device)
        return Serial(factory)
    return make(config.executor, factory)


def _sizes(parts: tuple[torch.Tensor, ...]) -> list[int]:
    return [len(part) for part in parts]
