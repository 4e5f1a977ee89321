"""The clients' training, tried before any client trains: the module, its task, its batches and what is added to it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from fedprune.config.instantiate import make, maker
from fedprune.data.batches import Batches, first_examples
from fedprune.data.population import sizes
from fedprune.errors import ConfigError, RunError
from fedprune.experiment import checks
from fedprune.experiment.checks.problems import Problems
from fedprune.experiment.ground import Chosen, Ground
from fedprune.experiment.network import initial_net
from fedprune.experiment.options import VALUE, no_option
from fedprune.federated.metrics.costs import flops_per_example
from fedprune.local.frozen import frozen
from fedprune.local.lightning.job_trainer import Planned
from fedprune.local.lightning.schedules import configured
from fedprune.local.module import LocalModule
from fedprune.local.outcomes import TaskMetrics
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser, in_use
from fedprune.local.regularisers.check import check_together
from fedprune.local.state.scaffold import refuse
from fedprune.local.train import set_mode
from fedprune.precision import FUSED, asks_for_fused
from fedprune.pruning.criterion.prunefl import layer_times
from fedprune.pruning.evidence import FROM_DATA
from fedprune.tensors import tensors_of

log = logging.getLogger(__name__)

CLIENTS_TRIED = 3
"""The number of clients on whose batches a module is tried that leaves out batch after batch."""

MakeModule = Callable[[nn.Module], LocalModule]
"""Makes the client's module around a network. Each call makes another, which knows nothing of what was tried on the others."""


@dataclass(frozen=True)
class Training:
    """The clients' training. controlled: the parameters that SCAFFOLD corrects."""

    make_module: MakeModule
    module: LocalModule
    recipe: Recipe
    task: TaskMetrics
    regularisers: tuple[Regulariser, ...]
    controlled: tuple[str, ...]


def learn_training(chosen: Chosen, ground: Ground, problems: Problems) -> Training:
    """Make the client's module and try it on two examples. Stops at problems, also at those of the ground."""
    options, net, recipe = chosen.options, ground.net, chosen.recipe
    make_module: MakeModule | None = problems.attempt(_module_maker, chosen)
    module = problems.attempt(_checked_module, chosen, make_module, net) if make_module is not None else None
    problems.attempt(_check_fixed, net, recipe)
    controlled = problems.attempt(_controlled, chosen, module, net, ground.private or ()) if module is not None else ()
    task = problems.attempt(checks.task, module, ground.dataset, chosen.names) if module is not None else TaskMetrics()
    if ground.what is not None:
        problems.attempt(check_together, options.penalty, options.dropout, net, ground.what.names)
        problems.attempt(layer_times, options.criterion.times, ground.what.names, ground.what.ends)
    problems.add(checks.evidence(options.criterion, chosen.names))
    problems.stop_if_any()
    assert make_module is not None and module is not None, "what cannot be made is a problem"
    added = (options.penalty, options.dropout, *options.client.regularisers)
    regularisers = tuple(one.told(ground.order) for one in added if one.acts)
    recipe = replace(recipe, smallest=problems.attempt(checks.smallest, module, recipe, ground.dataset) or 1)
    return Training(make_module, module, recipe, task, regularisers, controlled)


def check_batches(chosen: Chosen, ground: Ground, training: Training, problems: Problems) -> None:
    """Check the sizes of all batches. Stops at problems."""
    where, recipe = chosen.options.where, training.recipe
    criterion = chosen.options.criterion
    on_data = bool(checks.evidence_of(criterion) & set(FROM_DATA)) or (criterion.selects and criterion.adapt)
    measures = bool(ground.plan.events) and on_data
    of_clients = sizes(ground.clients.train)
    partition = chosen.options.partition
    problems.add(checks.sizes_of_batches(training.module, recipe, ground.dataset, of_clients, partition, where, measures))
    problems.stop_if_any()


def try_first_step(chosen: Chosen, ground: Ground, training: Training) -> None:
    """Try a step of a module of one's own, on a network of its own and the first batch of a client; on more if it is left
    out."""
    if not checks.module.needs_trying(training.module):
        return
    module = training.make_module(initial_net(chosen.config, ground.dataset, 0))
    recipe, train, tried = training.recipe, ground.clients.train, 0
    of_clients = Batches(ground.dataset, ground.clients, module.device)
    for client, examples in itertools.islice((pair for pair in enumerate(sizes(train)) if pair[1]), CLIENTS_TRIED):
        planned = Planned(recipe.batches_of_a_pass(examples), recipe.batches(examples))
        batches = of_clients.of(train[client], recipe.batch_size, recipe.smallest)
        first, rest = next(batches), itertools.islice(batches, planned.total - 1)
        if checks.module.first_step(module, recipe, [first], planned, client):
            break
        tried += planned.total  # a module may leave out a batch, and even all those of one client
        if checks.module.first_step(module, recipe, rest, planned, client):
            break
    else:
        checks.module.refuse_idle(module, tried)
    checks.module.replayed(module, chosen.options.criterion)


def rehearse_evidence(chosen: Chosen, ground: Ground, training: Training) -> list[str]:
    """Return what goes wrong when the evidence that is asked for is measured, on two examples."""
    net, what = ground.net, ground.what
    module, batch = training.make_module(net), first_examples(ground.dataset, 2)
    params = in_use(tensors_of(net), what.names, training.regularisers)
    modes = {part: part.training for part in net.modules()}
    set_mode(module, training.recipe)
    problems = checks.rehearsal(ground.plan, chosen.options.criterion, module, params, what, batch, chosen.names)
    for part, was_training in modes.items():
        part.training = was_training
    return problems


def count_flops(ground: Ground, training: Training) -> Mapping[str, float]:
    """Return what training costs, by layer; nothing, and a warning, if the training step cannot be counted by itself."""
    module = training.make_module(ground.net)
    try:
        return flops_per_example(module, first_examples(ground.dataset, 2))
    except Exception as error:  # whatever the step does, it may not arise with more examples, or where nobody counts
        text = "the operations of %s.training_step cannot be counted on two examples (%s: %s): there will be no flops/train"
        log.warning(text, type(module).__name__, type(error).__name__, str(error).partition("\n")[0])
        return {}


def _module_maker(chosen: Chosen) -> MakeModule:
    local = chosen.config.local
    if isinstance(local.optimizer, VALUE):
        raise ConfigError([no_option(chosen.config, "local.optimizer", local.optimizer)])
    if isinstance(local.module, VALUE):
        named = local.module or "my_task.Mine"
        raise ConfigError(
            [f"local.module={local.module or 'null'}: type local.module._target_={named}, a LocalModule of yours"]
        )
    try:
        module, optimizer = maker(local.module), make(local.optimizer)
    except ConfigError as error:
        raise _of_local(error) from error
    return lambda net: module(net, optimizer)


def _checked_module(chosen: Chosen, make_module: MakeModule, net: nn.Module) -> LocalModule:
    """Return the client's module; its optimizer is tried once: to find its mistakes, and to have torch's slow first import over
    before workers fork."""
    try:
        module = make_module(net)
        if not isinstance(module, LocalModule):
            raise ConfigError([f"local.module is a {type(module).__name__}: subclass fedprune.local.module.LocalModule"])
        _check_fused(configured(module)[0], make(chosen.config.local.optimizer), net)
    except (ConfigError, RunError, TypeError, ValueError, AttributeError) as error:
        raise _of_local(error) from error
    checks.module.overrides(module)
    return module


def _of_local(error: Exception) -> ConfigError:
    return ConfigError([f"local.optimizer or local.module: {error}"])


def _check_fused(made: torch.optim.Optimizer, asked: Callable[..., object], net: nn.Module) -> None:
    """Say that `fused` is off where parameters are of types that it was not compared on. asked: local.optimizer.

    Raises ConfigError if a module's own optimizer has it on all the same.
    """
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in net.parameters() if p.dtype not in FUSED})
    if kinds and asks_for_fused(asked):
        text = "local.optimizer.fused=true is for float32 and float64, and the network has %s: it is off"
        log.warning(text, ", ".join(kinds))
    fused = [p for group in made.param_groups if group.get("fused") for p in group["params"]]
    if any(p.dtype not in FUSED for p in fused):
        raise ConfigError(
            [
                "configure_optimizers of local.module makes an optimizer with fused=True, which is not to be trusted with "
                f"{', '.join(kinds)}: leave fused out, or return self.optimizer(self.net.parameters())"
            ]
        )


def _check_fixed(net: nn.Module, recipe: Recipe) -> None:
    """Raise ConfigError if nothing is left to train."""
    with frozen(net, recipe.fixed):
        if any(parameter.requires_grad for parameter in net.parameters()):
            return
    if recipe.fixed:
        raise ConfigError(
            [f"local.fixed={list(recipe.fixed)} leaves nothing to train: choose local.fixed=[] or a shorter list"]
        )
    raise ConfigError(["the network has nothing to train: set requires_grad=True for some of its parameters"])


def _controlled(chosen: Chosen, module: LocalModule, net: nn.Module, own: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parameters that are trained with controls: under SCAFFOLD all that travel."""
    federated = chosen.config.federated
    if federated.control == "none":
        return ()
    checks.module.one_rate(module)
    refuse(module.one_optimizer(), federated.optimizer_state == "kept")
    return tuple(name for name, parameter in net.named_parameters() if name not in own and parameter.requires_grad)
