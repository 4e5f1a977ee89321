"""What every measurement is made of: the loss as a function of parameters or of outputs, and a look inside a forward pass.

Nothing here leaves a trace: networks are called at copies of parameters and buffers, flags and hooks are put back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedprune.types import Params

Batch = tuple[Tensor, ...]


class TrainingLoss(nn.Module):
    """A LightningModule's training loss as something that `functional_call` can evaluate at other parameters."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        loss = self.module.training_step(batch, 0)  # type: ignore[operator]
        return loss["loss"] if isinstance(loss, Mapping) else loss


class _Given(nn.Module):
    """A network whose outputs are known."""

    def __init__(self, outputs: Tensor):
        super().__init__()
        self.outputs = outputs

    def forward(self, *_: object) -> Tensor:
        return self.outputs


def loss_at(module: nn.Module, tensors: Params, batch: Batch) -> Tensor:
    """The training loss of a batch with the network's parameters and buffers at `tensors`."""
    return torch.func.functional_call(TrainingLoss(module), {f"module.net.{n}": t for n, t in tensors.items()}, (batch,))


def loss_of_outputs(module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    """The training loss of a batch as a function of the network's outputs; the training step must ask its `net` once."""
    head = copy.copy(module)
    head.__dict__["_modules"] = {**module._modules, "net": _Given(outputs)}
    return TrainingLoss(head)(batch)


def loss_slopes(module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    """The derivatives of each example's own loss by its outputs, shaped as they are: [B, C], of sequences [B, C, T]."""
    return torch.func.grad(lambda z: len(z) * loss_of_outputs(module, z, batch))(outputs)


def loss_hessian(module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    """The second derivatives of each example's loss by its outputs, [B, C, C] for outputs [B, C]."""

    def one(output: Tensor, *example: Tensor) -> Tensor:
        return loss_of_outputs(module, output[None], tuple(part[None] for part in example))

    return torch.func.vmap(torch.func.hessian(one))(outputs.detach(), *batch)


def split(params: Params, names: Iterable[str]) -> tuple[Params, Params]:
    """(the named tensors, the others), all of them copies."""
    wanted = {name: params[name].detach().clone() for name in names}
    return wanted, {name: value.detach().clone() for name, value in params.items() if name not in wanted}


def over_examples(measure: Callable[[Batch], Params], batches: Iterable[Batch], like: Params) -> Params:
    """The mean over all examples. measure: a batch -> the sum over its examples."""
    total, examples = {name: torch.zeros_like(value) for name, value in like.items()}, 0
    with torch.random.fork_rng(devices=[]):  # dropout, and whatever a measurement draws, come from the global state
        for batch in batches:
            for name, value in measure(batch).items():
                total[name] += value.detach()
            examples += len(batch[0])
    return {name: value / max(examples, 1) for name, value in total.items()}


def gathered(batches: Iterable[Batch], number: int = 256) -> Iterator[Batch]:
    """The same examples in batches of `number` or a little more: for measurements that look at each example by itself, and
    would spend most of their time on the overhead of small batches."""
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(part[0]) for part in waiting) >= number:
            yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
            waiting = []
    if waiting:
        yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every part's own flag again afterwards."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


class Call(NamedTuple):
    """One call of a layer: what went in, what came out, and the copy of it that was passed on (which may be written to)."""

    inputs: Tensor
    output: Tensor
    passed: Tensor


@contextmanager
def calls(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Inside, every call of one of these layers is noted, by its name; of those that put out one tensor."""
    seen: dict[str, list[Call]] = {name: [] for name in layers}

    def note(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):  # recurrent layers and attention put out more
            return output
        seen[name].append(Call(inputs[0], output, output.clone()))
        return seen[name][-1].passed

    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name, layer in layers.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def reads_characters(net: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the network's inputs are sequences (T,) of the numbers of characters, and not of floats."""
    return len(shape) == 1 and any(isinstance(layer, nn.Embedding) for layer in net.modules())


def blank(net: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A batch of one input of nothing but zeros, of the type that the network takes."""
    return torch.zeros(1, *shape, dtype=torch.int64 if reads_characters(net, shape) else torch.float32)


@contextmanager
def differentiable() -> Iterator[None]:
    """Inside, attention is made of plain operations, which have all derivatives; the fused ones have only the first."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def owners(net: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The layer that each of these tensors belongs to, by the tensor's name."""
    return {name: net.get_submodule(name.rpartition(".")[0]) for name in names}
