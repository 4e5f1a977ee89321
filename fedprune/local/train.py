"""Train one client: `fit` takes a module, a subnet and batches, and returns what training made of the subnet.

`lean` is the loop of a module that overrides nothing; train_with_hooks.py has the loop that calls Lightning's hooks; `loop_of`
chooses between them. A `pl.Trainer` per client and round would cost several milliseconds, and a small step costs one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedprune.local import train_with_hooks
from fedprune.local.frozen import frozen
from fedprune.local.hooks import plain
from fedprune.local.lightning.job_trainer import Planned
from fedprune.local.lightning.schedules import needs_closure
from fedprune.local.lightning.self_log import Logged
from fedprune.local.module import Batch, LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.state import scaffold
from fedprune.local.state.optimizer_state import OptimizerState, resume, state_of
from fedprune.local.step import Rules, Seen, Step, step_of
from fedprune.precision import wide, wide_zeros
from fedprune.tensors import load_tensors, tensors_of
from fedprune.types import Mask, Params, Subnet

StepLoop = Callable[
    [LocalModule, Iterable[Batch], Planned | None, Rules, float, OptimizerState], tuple[torch.optim.Optimizer, Seen]
]
"""(module, batches, planned, rules, decay, optimizer_state) -> (the optimizer that trained the module in place, a record).

planned: the number of batches. rules: the settings of the steps. decay: factor of the learning rate."""


class Trained(NamedTuple):
    """A subnet's parameters and buffers after training, and what is reported of the training.

    loss: the mean over the examples seen. steps: the optimizer's. examples: how many were seen, each pass counted.
    optimizer: its state, if the recipe keeps it. reach: how far a gradient of one at every step would have moved each
    parameter, if gradients were corrected. gradients: of the tensors that were asked for, the sum over the steps, dead entries
    too. logged: what the module logged with `self.log`.
    """

    params: Params
    loss: float
    steps: int
    examples: int
    optimizer: OptimizerState
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
    optimizer_state: OptimizerState | None = None,
    correction: Params | None = None,
    summed: tuple[str, ...] = (),
    planned: Planned | None = None,
    loop: StepLoop | None = None,
) -> Trained:
    """Train `subnet` on `batches`; `subnet` is not changed. Dead entries are zero after every step, whatever the optimizer does
    to them. Under error feedback they are zero in every forward and backward pass instead, and their trained values are
    returned.

    decay: multiplies the learning rate. penalty: a function of the module's parameters; it is added to each batch's loss, but
    not to the loss that is reported. optimizer_state: the optimizer goes on from it. correction: by parameter, what is added
    to the gradient of every batch after clipping. summed: the tensors whose gradients (of loss and penalty, before clipping or
    masking) are added up. planned: how many batches there are (None: all are one pass), for modules with hooks or schedules.
    loop: what `loop_of` chose for the module (None: it is asked now).
    """
    load(module, subnet.params)
    set_mode(module, recipe)
    weights, masks = _masked(module, subnet)
    decay *= recipe.retrain_lr if masks else 1.0
    with frozen(module.net, recipe.fixed) if masks and recipe.fixed else contextlib.nullcontext():
        sums = {name: wide_zeros(module.net.get_parameter(name).detach()) for name in summed}
        rules = Rules(recipe, (weights, masks), penalty, correction or {}, sums)
        loop = loop or loop_of(module)
        optimizer, seen = loop(module, batches, planned, rules, decay, optimizer_state or {})
        reach = scaffold.reach(module.net, optimizer, seen.steps) if correction else {}
    state = state_of(optimizer, dict(zip(weights, masks, strict=True))) if recipe.keep_optimizer else {}
    gradients = {name: total.detach().to("cpu", copy=True) for name, total in sums.items()}
    return Trained(unload(module), _mean_loss(seen), seen.steps, sum(seen.sizes), state, reach, gradients, seen.logged)


def loop_of(module: LocalModule) -> StepLoop:
    """Return the loop that a module needs: `lean`, unless it has hooks, schedules, or an optimizer that calls a closure."""
    if not plain(module):
        return train_with_hooks.train
    optimizer: object = module.configure_optimizers()  # that of the user's `local.optimizer`, which may return anything
    lone = isinstance(optimizer, torch.optim.Optimizer) and not needs_closure(optimizer)
    return lean if lone else train_with_hooks.train


def lean(
    module: LocalModule,
    batches: Iterable[Batch],
    planned: Planned | None,
    rules: Rules,
    decay: float,
    optimizer_state: OptimizerState,
) -> tuple[torch.optim.Optimizer, Seen]:
    """Take a step of the optimizer per batch. This is the StepLoop of modules that override nothing."""
    optimizer = slowed(module.configure_optimizers(), decay)
    if optimizer_state:
        resume(optimizer, optimizer_state)
    return optimizer, _steps(module, optimizer, batches, step_of(module.net, optimizer, rules))


def _mean_loss(seen: Seen) -> float:
    """Return the mean loss, sum_b size_b loss_b / sum_b size_b, taken in float32 where the losses are of half precision; 0
    without batches."""
    if not seen.losses:
        return 0.0
    stacked = wide(torch.stack(seen.losses).flatten())
    total = float(stacked @ torch.tensor(seen.sizes, dtype=stacked.dtype, device=stacked.device))
    return total / max(sum(seen.sizes), 1)


def _steps(module: LocalModule, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], step: Step) -> Seen:
    losses, sizes = [], []
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        whole = step.hide_dead()
        loss = module.training_step(batch, number)
        (loss if step.penalty is None else loss + step.penalty()).backward()
        step.after_backward()
        step.show_dead(whole)
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
    """Return a copy of the network's parameters and buffers, on the CPU."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors_of(module.net).items()}


def is_batchnorm(module: nn.Module) -> bool:
    """Return whether a layer keeps running statistics of its batches."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def set_mode(module: LocalModule, recipe: Recipe) -> None:
    """Put the network into training mode, and its BatchNorm layers into evaluation mode if the recipe freezes them."""
    module.train()
    if recipe.freeze_batchnorm:
        for layer in module.net.modules():
            if is_batchnorm(layer):
                layer.eval()


def slowed(optimizer: torch.optim.Optimizer, decay: float) -> torch.optim.Optimizer:
    """Multiply each learning rate of the optimizer by `decay`, and return the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] *= decay
    return optimizer


def _masked(module: LocalModule, subnet: Subnet) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters in which something is dead, and their masks as zeros and ones (products of numbers can be fused).

    Running statistics need no mask: those of dead channels are statistics of zeros, and stay zero by themselves.
    """
    parameters, masks = dict(module.net.named_parameters()), holes(module, subnet.mask)
    return [parameters[name] for name in masks], [number(alive, parameters[name]) for name, alive in masks.items()]


def holes(module: LocalModule, mask: Mask) -> Mask:
    """Return the part of a mask that belongs to parameters in which something is dead."""
    parameters = dict(module.net.named_parameters())
    return {name: alive for name, alive in mask.items() if name in parameters and not alive.numpy().all()}


@functools.lru_cache(maxsize=64)
def _number_as(alive: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return alive.to(device, dtype)


def number(alive: Tensor, like: Tensor) -> Tensor:
    """Return a mask as zeros and ones of the parameter's type and device; cached from job to job."""
    return _number_as(alive, like.dtype, like.device)
