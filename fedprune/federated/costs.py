"""What a run costs: densities, and the floating-point operations of training. Pure, from masks and shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.pruning import mask as masks
from fedprune.pruning.companions import is_companion
from fedprune.pruning.probe import differentiable
from fedprune.pruning.what import What, prunable
from fedprune.types import Mask, Subnet


def densities(subnet: Subnet, what: What, parameters: tuple[str, ...]) -> dict[str, float]:
    """density/weights (prunable entries), density/params (all of the network's), density/units, and density/layer/<name>."""
    living, prunable = masks.count(subnet.mask), masks.size(subnet.mask)
    total = sum(subnet.params[name].numel() for name in parameters if not is_companion(name))
    alive, units = what.alive_units(subnet.mask)
    return {
        "density/weights": living / prunable,
        "density/params": (total - prunable + living) / total,
        "density/units": alive / units,
    } | {f"density/layer/{name.removesuffix('.weight')}": masks.density({name: alive}) for name, alive in subnet.mask.items()}


def flops_per_example(net: nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    """Operations (2 x multiply-accumulate) of one example's forward and backward pass, by layer, for the dense network.

    inputs: a batch [B, ...]; the counts are per example. Layers are named as in `net`, and those of several weights by weight,
    since each may have its own density: the products with a recurrent layer's or attention's matrices are counted together,
    and shared out by their sizes. What no weight is part of (attention's own products) and what is in no layer is under "".
    """
    counter = FlopCounterMode(display=False)
    modes = {module: module.training for module in net.modules()}
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    with torch.random.fork_rng(devices=[]), _unfused(), counter:
        net.train()
        net(inputs).sum().backward()
    net.zero_grad(set_to_none=True)
    for name, value in net.named_buffers():
        value.copy_(buffers[name])
    for module, training in modes.items():
        module.training = training
    return _leaves(counter, net, len(inputs))


@contextmanager
def _unfused() -> Iterator[None]:
    """Inside, recurrent layers and attention are made of the operations that a counter knows."""
    with warnings.catch_warnings(), differentiable():
        warnings.simplefilter("ignore")  # the switch remarks on devices that are not there
        with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[no-untyped-call]
            yield


def _leaves(counter: FlopCounterMode, net: nn.Module, examples: int) -> dict[str, float]:
    root = type(net).__name__
    counted = {name.removeprefix(f"{root}."): ops for name, ops in counter.get_flop_counts().items()}
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    layers: dict[str, float] = {}
    for layer, weights in prunable(net).items():
        ops, total = counted.get(layer, {}), sum(sizes[weight] for weight in weights)
        flops = sum(number for op, number in ops.items() if len(weights) == 1 or op in BY_WEIGHTS) / examples
        layers |= {weight.removesuffix(".weight"): flops * sizes[weight] / total for weight in weights}
    return {name: flops for name, flops in layers.items() if flops} | {
        "": sum(counted["Global"].values()) / examples - sum(layers.values())
    }


BY_WEIGHTS = (torch.ops.aten.mm, torch.ops.aten.addmm)
"""In layers of several weights, the operations in which they are multiplied with inputs."""


def training_flops(per_example: Mapping[str, float], mask: Mask) -> float:
    """Operations of training on one example: each layer's count times its density (what sparse hardware would have to do)."""
    density = {name.removesuffix(".weight"): masks.density({name: alive}) for name, alive in mask.items()}
    return sum(flops * density.get(layer, 1.0) for layer, flops in per_example.items())
