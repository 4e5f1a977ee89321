"""The training loss as a function of parameters or of the network's outputs, and means over examples: for all measurements."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from fedprune.precision import wide_zeros
from fedprune.pruning.evidence.network import differentiable
from fedprune.tensors import call
from fedprune.types import Params

Batch = tuple[Tensor, ...]

T = TypeVar("T", Tensor, Params)


class HasLoss(Protocol):
    """A module with a loss of a batch, such as LocalModule."""

    def step_loss(self, batch: Batch) -> Tensor:
        """Return the loss of one training step."""
        ...


class OneOptimizer(Protocol):
    """A module that makes its own optimizer, such as LocalModule."""

    def one_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer, without its schedules."""
        ...


def net_of(module: nn.Module) -> nn.Module:
    """Return the network of a LocalModule."""
    return module.get_submodule("net")


class TrainingLoss(nn.Module):
    """A LocalModule's training loss as a module that `call` can evaluate at other parameters."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return cast(HasLoss, self.module).step_loss(batch)


class MoreThanOutputs(AttributeError):
    """The loss is no function of one tensor of outputs: the network puts out several, or the training step needs more."""


def one_tensor(outputs: object) -> Tensor:
    """Return the outputs of a network if they are one tensor. Raises MoreThanOutputs if not."""
    if not isinstance(outputs, Tensor):
        raise MoreThanOutputs(f"its network puts out a {type(outputs).__name__}")
    return outputs


class _Given(nn.Module):
    """A network that returns given outputs for given inputs, once. Raises MoreThanOutputs on anything else."""

    outputs: Tensor
    inputs: Tensor
    asked: bool

    def __init__(self, outputs: Tensor, inputs: Tensor):
        super().__init__()
        self.__dict__.update(outputs=outputs, inputs=inputs, asked=False)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        if self.asked or kwargs or len(args) != 1 or args[0] is not self.inputs:
            raise MoreThanOutputs("its training step calls the network on something else than the batch's inputs, or twice")
        self.asked = True
        return self.outputs

    def named_modules(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: parameters and layers are found through this."""
        raise MoreThanOutputs("its training step looks at the network's layers or parameters")

    def __getattr__(self, name: str) -> NoReturn:
        raise MoreThanOutputs(f"its training step asks for the network's {name}")


def loss_at(module: nn.Module, tensors: Params, batch: Batch) -> Tensor:
    """Return the training loss of a batch with the network's parameters and buffers at `tensors`."""
    return loss_of(TrainingLoss(module), tensors, batch)


def loss_of(whole: TrainingLoss, tensors: Params, batch: Batch) -> Tensor:
    """Return the same as `loss_at`, of a module that is wrapped already."""
    loss: Tensor = call(whole, {f"module.net.{name}": tensor for name, tensor in tensors.items()}, batch)
    return loss


def loss_of_outputs(module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    """Return the training loss of a batch as a function of the network's outputs for it.

    Raises MoreThanOutputs if the training step uses its `net` for anything else: then the loss is no function of the outputs.
    """
    head = copy.copy(module)
    head.__dict__["_modules"] = {**module._modules, "net": _Given(outputs, batch[0])}
    return cast(HasLoss, head).step_loss(batch)


def loss_slopes(module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    """Return the derivatives of each example's own loss by its outputs, in their shape: [B, C], of sequences [B, C, T]."""
    outputs = outputs.detach().requires_grad_()
    return torch.autograd.grad(len(outputs) * loss_of_outputs(module, outputs, batch), outputs)[0]


def loss_hessian(module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    """Return the second derivatives of each example's loss by its outputs: [B, K, K], K the number of outputs of an example."""
    shape = outputs.shape[1:]

    def loss_of_one(output: Tensor, *example: Tensor) -> Tensor:
        return loss_of_outputs(module, output.view(1, *shape), tuple(part[None] for part in example))

    hessian: Tensor = each(torch.func.hessian(loss_of_one), outputs.detach().reshape(len(outputs), -1), *batch)
    return hessian


def each(function: Callable[..., T], *parts: Tensor, singly: Callable[..., T] | None = None) -> T:
    """Return the results of a function of one example, stacked: a tensor, or a dict of them. parts: [B, ...] each.

    All examples go at once by vmap, or one after the other if the network or the loss cannot be batched, as with GRU.
    singly: the same function without torch.func, which does not work with every network, either.
    """
    with differentiable(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # LSTM goes one example after the other
        try:
            return torch.func.vmap(function)(*parts)
        except MoreThanOutputs:
            raise
        except Exception:  # vmap has many reasons to fail; an error of an example itself is raised again below
            results = [(singly or function)(*example) for example in zip(*parts, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def split(params: Params, names: Iterable[str]) -> tuple[Params, Params]:
    """Return (copies of the named tensors, copies of the others)."""
    wanted = {name: params[name].detach().clone() for name in names}
    return wanted, {name: value.detach().clone() for name, value in params.items() if name not in wanted}


def over_examples(measure: Callable[[Batch], Params], batches: Iterable[Batch], like: Params) -> Params:
    """Return the mean over all examples. measure: a batch -> the sum over its examples."""
    total, examples = {name: wide_zeros(value) for name, value in like.items()}, 0
    with torch.random.fork_rng(devices=[]):  # dropout and measurements draw from the global state
        for batch in batches:
            for name, value in measure(batch).items():
                total[name] += value.detach()
            examples += len(batch[0])
    return {name: value / max(examples, 1) for name, value in total.items()}


def gathered(batches: Iterable[Batch], number: int = 256) -> Iterator[Batch]:
    """Yield the same examples in batches of `number` or a little more.

    For measurements that look at each example by itself, which would spend most of their time on the overhead of small batches.
    """
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(part[0]) for part in waiting) >= number:
            yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
            waiting = []
    if waiting:
        yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
