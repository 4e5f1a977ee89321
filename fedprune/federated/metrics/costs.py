"""The costs of a run: densities, and the floating-point operations of training. Pure, from masks and shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.local.module import LocalModule
from fedprune.pruning import mask as masks
from fedprune.pruning.evidence.gates import companion, is_companion
from fedprune.pruning.evidence.loss import Batch, TrainingLoss, loss_of
from fedprune.pruning.evidence.network import differentiable, training
from fedprune.pruning.what import What
from fedprune.pruning.what.layers import weights_of
from fedprune.tensors import copies, other_names
from fedprune.types import Mask, Params, Subnet


def densities(subnet: Subnet, what: What, parameters: tuple[str, ...]) -> dict[str, float]:
    """Return density/weights (of the prunable entries), density/params (of all), density/units and density/layer/<name>.

    parameters: the names of all parameters. density/sampled is the mean probability of a prunable entry to be there, where
    probabilities are learnt.
    """
    prunable = {name: subnet.mask[name] for name in what.names}
    counted = [name for name in parameters if not is_companion(name)]
    total = sum(subnet.params[name].numel() for name in counted)
    covered = {name: subnet.mask[name] for name in counted if name in subnet.mask}
    alive, units = what.alive_units(prunable)
    densities = {
        "density/weights": masks.density(prunable),
        "density/params": (total - masks.size(covered) + masks.count(covered)) / total,
        "density/units": alive / units,
    }
    by_layer = {f"density/layer/{name.removesuffix('.weight')}": masks.density({name: mask}) for name, mask in prunable.items()}
    if what.cost is not None:
        densities[f"density/{what.cost.of}"] = what.cost(prunable)
    return densities | _sampled(subnet.params, what.names) | by_layer


def _sampled(params: Params, names: tuple[str, ...]) -> dict[str, float]:
    """Return the mean probability of a prunable entry to be there; nothing where no probabilities are learnt."""
    scores = [params[companion(name, "score")] for name in names if companion(name, "score") in params]
    if not scores:
        return {}
    total = sum(score.numel() for score in scores)
    return {"density/sampled": sum(float(score.sigmoid().double().sum()) for score in scores) / total}


def flops_per_example(module: LocalModule, batch: Batch) -> dict[str, float]:
    """Count the operations (2 x multiply-accumulate) of one example's forward and backward pass, by layer, dense.

    batch: of a few examples; the counts are of the module's own training step, per example. Layers are named as in its `net`,
    and those of several weights by weight, since each may have its own density: the products with a recurrent layer's or
    attention's matrices are counted together, and shared out by their sizes; a weight that several layers share has the
    operations of all. What no weight is part of (attention's own products) and what is in no layer is under "".
    """
    counter, whole = FlopCounterMode(display=False), TrainingLoss(module)
    with torch.random.fork_rng(devices=[]), training(module), _unfused(), counter:
        loss_of(whole, copies(module.net), batch).backward()
    return _by_weight(counter, whole, len(batch[0]))


@contextmanager
def _unfused() -> Iterator[None]:
    """Make recurrent layers and attention, inside, of the operations that a counter knows."""
    with warnings.catch_warnings(), differentiable():
        warnings.simplefilter("ignore")  # the switch remarks on devices that are not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _by_weight(counter: FlopCounterMode, whole: TrainingLoss, examples: int) -> dict[str, float]:
    net = cast(nn.Module, whole.module.net)
    counted, sizes = _by_module(counter, whole), {name: parameter.numel() for name, parameter in net.named_parameters()}
    further, flops = other_names(net), dict[str, float]()
    for layer, weights in weights_of(net).items():
        names = [further.get(weight, weight) for weight in weights]
        ops, total = counted.get(net.get_submodule(layer), {}), sum(sizes.get(name, 0) for name in names)
        products = sum(number for op, number in ops.items() if len(names) == 1 or op in BY_WEIGHTS) / examples
        for name in names if products else []:
            share = products * sizes.get(name, 0) / max(total, 1)  # a weight that is computed from others is none to prune
            flops[name.removesuffix(".weight")] = flops.get(name.removesuffix(".weight"), 0.0) + share
    every = sum(counter.get_flop_counts()["Global"].values()) / examples
    return {name: number for name, number in flops.items() if number} | {"": every - sum(flops.values())}


def _by_module(counter: FlopCounterMode, whole: nn.Module) -> dict[nn.Module, dict[object, int]]:
    """Return the counts of each module by operation; a module that has several paths is counted under one of them."""
    root = type(whole).__name__
    counts = {name: ops for name, ops in counter.get_flop_counts().items() if name.startswith(f"{root}.")}
    return {whole.get_submodule(name.removeprefix(f"{root}.")): ops for name, ops in counts.items()}


BY_WEIGHTS = (torch.ops.aten.mm, torch.ops.aten.addmm)
"""In layers of several weights, the operations in which they are multiplied with inputs."""


def training_flops(per_example: Mapping[str, float], mask: Mask) -> float:
    """Return the operations of training on one example that sparse hardware would have to do: each layer's count times its
    density."""
    density = {name.removesuffix(".weight"): masks.density({name: alive}) for name, alive in mask.items()}
    return sum(flops * density.get(layer, 1.0) for layer, flops in per_example.items())
