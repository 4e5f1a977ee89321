"""fit: (module, subnet, batches) -> what training made of the subnet. The module's own hooks in a lean loop.

A `pl.Trainer` per client and round costs several milliseconds against a step of one; nothing that it does is needed here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedprune.errors import ConfigError
from fedprune.local import optimizer_state
from fedprune.local.module import Batch, LocalModule
from fedprune.pruning.what import LAYERS
from fedprune.types import Params, Subnet


@dataclass(frozen=True)
class Recipe:
    """How a client trains in one round.

    epochs: passes over its training examples; or steps: that many batches, going on into further passes as needed.
    lr_decay: the learning rate is multiplied by it once per round. clip_norm: the gradient's greatest L2 norm (null: no
    clipping).
    proximal_mu: FedProx's pull to the weights that were sent, mu/2 |w - w_sent|^2. Li et al. 2020.
    retrain_lr: the learning rate is multiplied by it once anything is pruned. fixed: layers that stay as they are once anything
    is pruned, by kind (conv, linear) or name. Han et al. 2015.
    freeze_batchnorm: BatchNorm normalises with the running statistics it was sent, and does not change them.
    keep_optimizer: the optimizer goes on from what the client kept of it, and is kept again.
    """

    epochs: int | None = 1
    steps: int | None = None
    batch_size: int = 32
    lr_decay: float = 1.0
    clip_norm: float | None = None
    proximal_mu: float = 0.0
    retrain_lr: float = 1.0
    fixed: Sequence[str] = ()
    freeze_batchnorm: bool = False
    keep_optimizer: bool = False

    def __post_init__(self) -> None:
        rules = {
            f"local.epochs={self.epochs} and local.steps={self.steps}: give one and set the other to null": (
                (self.epochs is None) != (self.steps is None)
            ),
            f"local.epochs={self.epochs} must be at least 1": self.epochs is None or self.epochs >= 1,
            f"local.steps={self.steps} must be at least 1": self.steps is None or self.steps >= 1,
            f"local.batch_size={self.batch_size} must be at least 1": self.batch_size >= 1,
            f"local.lr_decay={self.lr_decay} multiplies the learning rate every round: more than 0": self.lr_decay > 0,
            f"local.clip_norm={self.clip_norm} must be positive; null for no clipping": self.clip_norm is None
            or self.clip_norm > 0,
            f"local.proximal_mu={self.proximal_mu} must not be negative": self.proximal_mu >= 0,
            f"local.retrain_lr={self.retrain_lr} multiplies the learning rate: more than 0": self.retrain_lr > 0,
        }
        problems = [problem for problem, fine in rules.items() if not fine]
        if problems:
            raise ConfigError(problems)


class Trained(NamedTuple):
    """What training made of a subnet's parameters and buffers.

    loss: the mean over the examples seen. steps: of the optimizer. examples: seen, passes counted. optimizer: its state, if the
    recipe keeps it.
    """

    params: Params
    loss: float
    steps: int
    examples: int
    optimizer: Params


def fit(
    module: LocalModule,
    subnet: Subnet,
    batches: Iterable[Batch],
    recipe: Recipe,
    decay: float = 1.0,
    kept: Params | None = None,
) -> Trained:
    """Train `subnet` on `batches`. Dead entries are zero after every step, whatever the optimizer does to them.

    `decay` multiplies the learning rate; `kept` is the state that the optimizer goes on from. `subnet` is not changed.
    """
    load(module, subnet.params)
    set_mode(module, recipe)
    weights, masks = _masked(module, subnet)
    with held(module.net, recipe.fixed if masks else ()):
        optimizer = _optimizer(module, decay * (recipe.retrain_lr if masks else 1.0))
        if kept:
            optimizer_state.resume(optimizer, kept)
        losses, sizes = _steps(module, optimizer, batches, recipe, weights, masks)
    total = float(torch.stack(losses) @ torch.tensor(sizes, dtype=losses[0].dtype, device=losses[0].device)) if losses else 0.0
    state = optimizer_state.of(optimizer, dict(zip(weights, masks, strict=True))) if recipe.keep_optimizer else {}
    return Trained(unload(module), total / max(sum(sizes), 1), len(sizes), sum(sizes), state)


def _steps(
    module: LocalModule,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    recipe: Recipe,
    weights: list[Tensor],
    masks: list[Tensor],
) -> tuple[list[Tensor], list[int]]:
    """A step of the optimizer per batch. Returns the batches' losses and sizes."""
    parameters: list[Tensor] = [p for p in module.net.parameters() if p.requires_grad]
    mask_gradients = bool(masks) and (recipe.clip_norm is not None or type(optimizer) not in ENTRYWISE)
    sent = [p.detach().clone() for p in parameters] if recipe.proximal_mu else []
    losses, sizes = [], []
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = _loss(module, batch, step)
        loss.backward()
        if sent:
            _pull(parameters, sent, recipe.proximal_mu)
        if mask_gradients:
            _mask_gradients(weights, masks)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        if masks:
            with torch.no_grad():
                torch._foreach_mul_(weights, masks)
        losses.append(loss.detach())
        sizes.append(len(batch[0]))
    return losses, sizes


ENTRYWISE = {
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop, torch.optim.ASGD, torch.optim.Rprop),
}
"""Optimizers that treat each entry by itself: what the dead do cannot reach the living, so masking weights after the step is
enough. For any other, and before clipping, gradients are masked first: neither state nor norm then knows of the dead."""


@contextmanager
def held(net: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """Inside, the parameters of these layers are not trained. Raises ConfigError on a layer that is not there."""
    fixed = [p for name in layers for layer in of_kind(net, name) for p in layer.parameters() if p.requires_grad]
    try:
        for parameter in fixed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)


def of_kind(net: nn.Module, name: str) -> list[nn.Module]:
    """The layers of a kind (conv, linear), or the layer of a name."""
    found = [layer for own, layer in net.named_modules() if own == name or isinstance(layer, LAYERS.get(name, ()))]
    if not found:
        names = ", ".join(own for own, layer in net.named_modules() if isinstance(layer, sum(LAYERS.values(), ())))
        raise ConfigError([f"local.fixed: no layer {name!r}; the kinds are {', '.join(LAYERS)}, the layers {names}"])
    return found


def load(module: LocalModule, params: Params) -> None:
    """Copy `params` into the module's network: no storage is shared, so training leaves them as they are."""
    with torch.no_grad():
        for name, tensor in module.net.state_dict().items():
            tensor.copy_(params[name])


def unload(module: LocalModule) -> Params:
    """A copy of the network's parameters and buffers, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.net.state_dict().items()}


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


def _optimizer(module: LocalModule, decay: float) -> torch.optim.Optimizer:
    optimizer = module.configure_optimizers()
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            [f"{type(module).__name__}.configure_optimizers returned {type(optimizer).__name__}: return one torch optimizer"]
        )
    for group in optimizer.param_groups:
        group["lr"] *= decay
    return optimizer


def _masked(module: LocalModule, subnet: Subnet) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters in which something is dead, and their masks as numbers (multiplying by numbers is what fuses)."""
    holes = {name: alive for name, alive in subnet.mask.items() if not alive.numpy().all()}
    parameters = dict(module.net.named_parameters())
    return [parameters[name] for name in holes], [_number(alive, parameters[name]) for name, alive in holes.items()]


@functools.lru_cache(maxsize=64)
def _number_as(alive: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return alive.to(device, dtype)


def _number(alive: Tensor, like: Tensor) -> Tensor:
    """A mask as zeros and ones of the parameter's type, remembered from job to job."""
    return _number_as(alive, like.dtype, like.device)


def _loss(module: LocalModule, batch: Batch, step: int) -> Tensor:
    loss = module.training_step(batch, step)
    return loss["loss"] if isinstance(loss, Mapping) else loss


def _mask_gradients(weights: list[Tensor], masks: list[Tensor]) -> None:
    for weight, mask in zip(weights, masks, strict=True):
        if weight.grad is not None:
            weight.grad.mul_(mask)


def _pull(parameters: list[Tensor], sent: list[Tensor], mu: float) -> None:
    """Add the gradient of mu/2 |w - w_sent|^2."""
    with torch.no_grad():
        for parameter, start in zip(parameters, sent, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=mu)
