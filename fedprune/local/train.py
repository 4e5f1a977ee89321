"""fit: (module, subnet, batches) -> what training made of the subnet. The module's own hooks in a lean loop.

A `pl.Trainer` per client and round costs several milliseconds against a step of one; nothing that it does is needed here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedprune.local.frozen import held
from fedprune.local.lightning import train_with_hooks
from fedprune.local.lightning.hooks import plain
from fedprune.local.lightning.job_trainer import Planned
from fedprune.local.lightning.schedules import configured, needs_closure
from fedprune.local.lightning.self_log import Logged
from fedprune.local.module import Batch, LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.state import optimizer_state, scaffold
from fedprune.local.step import Rules, Seen, Step, step_of
from fedprune.precision import wide, wide_zeros
from fedprune.tensors import load_tensors, tensors_of
from fedprune.types import Mask, Params, Subnet


class Trained(NamedTuple):
    """What training made of a subnet's parameters and buffers.

    loss: the mean over the examples seen. steps: of the optimizer. examples: seen, passes counted. optimizer: its state, if the
    recipe keeps it. reach: how far a gradient of one at every step would have moved each parameter, if training was corrected.
    gradients: of the tensors that were asked for, the sum over the steps, dead entries too. logged: what the module logged.
    """

    params: Params
    loss: float
    steps: int
    examples: int
    optimizer: Params
    reach: Mapping[str, float] = MappingProxyType({})
    gradients: Mapping[str, Tensor] = MappingProxyType({})
    logged: Logged = MappingProxyType({})


def fit(
    module: LocalModule,
    subnet: Subnet,
    batches: Iterable[Batch],
    recipe: Recipe,
    decay: float = 1.0,
    penalty: Callable[[], Tensor] | None = None,
    kept: Params | None = None,
    correction: Params | None = None,
    summed: tuple[str, ...] = (),
    planned: Planned | None = None,
) -> Trained:
    """Train `subnet` on `batches`. Dead entries are zero after every step, whatever the optimizer does to them; except under
    error feedback, where they are zero in every forward and backward pass, and what they come to is returned.

    `decay` multiplies the learning rate. `penalty`, a function of the module's parameters as they are, is added to each batch's
    loss, but is no part of the loss that is told. `kept` is the state that the optimizer goes on from. `correction`, by
    parameter, is added to the gradient of every batch, after clipping. `summed`: the tensors whose gradients (of loss and
    penalty, before all that is done to them) are added up. `planned`: how many batches there are (None: all are one pass), for
    modules with hooks or schedules. `subnet` is not changed.
    """
    load(module, subnet.params)
    set_mode(module, recipe)
    weights, masks = _masked(module, subnet)
    decay *= recipe.retrain_lr if masks else 1.0
    with held(module.net, recipe.fixed if masks else ()):
        sums = {name: wide_zeros(module.net.get_parameter(name).detach()) for name in summed}
        rules = Rules(recipe, (weights, masks), penalty, correction or {}, sums)
        optimizer = _alone(module)
        if optimizer is None:
            optimizer, seen = train_with_hooks.train(module, batches, planned, rules, decay, kept or {})
        else:
            optimizer_state.resume(slowed(optimizer, decay), kept or {})
            seen = _steps(module, optimizer, batches, step_of(module.net, optimizer, rules))
        reach = scaffold.reach(module.net, optimizer, seen.steps) if correction else {}
    losses, sizes = seen.losses, seen.sizes
    total = _weighted_sum(losses, sizes) if losses else 0.0
    state = optimizer_state.of(optimizer, dict(zip(weights, masks, strict=True))) if recipe.keep_optimizer else {}
    gradients = {name: g.detach().to("cpu", copy=True) for name, g in sums.items()}
    mean = total / max(sum(sizes), 1)
    return Trained(unload(module), mean, seen.steps, sum(sizes), state, reach, gradients, seen.logged)


def _weighted_sum(losses: list[Tensor], sizes: list[int]) -> float:
    """Return sum_b size_b loss_b, taken in float32 where the losses are of half precision."""
    stacked = wide(torch.stack(losses).flatten())
    return float(stacked @ torch.tensor(sizes, dtype=stacked.dtype, device=stacked.device))


def _alone(module: LocalModule) -> torch.optim.Optimizer | None:
    """Return the optimizer of a module that needs nothing but its steps; None if there are hooks, schedules or closures."""
    if not plain(module):
        return None
    optimizer, schedules = configured(module)
    return None if schedules or needs_closure(optimizer) else optimizer


def _steps(module: LocalModule, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], step: Step) -> Seen:
    """A step of the optimizer per batch, for modules that override nothing (others: train_with_hooks.py)."""
    losses, sizes = [], []
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        whole = step.prune()
        loss = module.training_step(batch, number)
        (loss if step.penalty is None else loss + step.penalty()).backward()
        step.after_backward()
        step.restore(whole)
        step.clip()
        step.correct()
        optimizer.step()
        step.keep_dead()
        losses.append(loss.detach())
        sizes.append(len(batch[0]))
    return Seen(losses, sizes, len(sizes))


def load(module: LocalModule, params: Params) -> None:
    """Copy `params` into the module's network: no storage is shared, so training leaves them as they are."""
    load_tensors(module.net, params)


def unload(module: LocalModule) -> Params:
    """A copy of the network's parameters and buffers, on the CPU."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors_of(module.net).items()}


def is_batchnorm(module: nn.Module) -> bool:
    """Whether this layer keeps running statistics of its batches."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def set_mode(module: LocalModule, recipe: Recipe) -> None:
    """Training mode; with frozen BatchNorm, those layers in evaluation mode."""
    module.train()
    if recipe.freeze_batchnorm:
        for layer in module.net.modules():
            if is_batchnorm(layer):
                layer.eval()


def slowed(optimizer: torch.optim.Optimizer, decay: float) -> torch.optim.Optimizer:
    """The same optimizer, each of its learning rates multiplied by this."""
    for group in optimizer.param_groups:
        group["lr"] *= decay
    return optimizer


def _masked(module: LocalModule, subnet: Subnet) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters in which something is dead, and their masks as numbers (multiplying by numbers is what fuses).

    Running statistics of channels that are dead are those of zeros: zero, and nothing has to hold them there.
    """
    parameters, holed = dict(module.net.named_parameters()), holes(module, subnet.mask)
    return [parameters[name] for name in holed], [number(alive, parameters[name]) for name, alive in holed.items()]


def holes(module: LocalModule, mask: Mask) -> Mask:
    """Of a mask, the parameters in which something is dead."""
    parameters = dict(module.net.named_parameters())
    return {name: alive for name, alive in mask.items() if name in parameters and not alive.numpy().all()}


@functools.lru_cache(maxsize=64)
def _number_as(alive: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return alive.to(device, dtype)


def number(alive: Tensor, like: Tensor) -> Tensor:
    """A mask as zeros and ones of the parameter's type, remembered from job to job."""
    return _number_as(alive, like.dtype, like.device)
