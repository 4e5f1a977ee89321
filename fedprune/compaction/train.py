"""Training in a smaller network (module.py) in the place of training under a mask.

Living entries, the optimizer's state and the corrections of gradients are taken out of the whole network at the start of a
job and put back at its end. The result is that of training under the mask, up to the rounding of sums that have fewer terms;
batches and random numbers are the same. Where the result would differ, or a smaller network would not pay, the client trains
under the mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import nn

from fedprune.compaction.fx_graph import ChannelGraph, channel_graph
from fedprune.compaction.liveness import Parts, divide, matrices, saved
from fedprune.compaction.module import Block, SmallerNetwork
from fedprune.compaction.sparse_linear import pays, remaining
from fedprune.local.hooks import KNOWN, patched
from fedprune.local.module import Batch, LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser
from fedprune.local.state.optimizer_state import OptimizerState
from fedprune.local.step import ENTRYWISE
from fedprune.local.train import StepLoop, Trained, fit, loop_of, unload
from fedprune.pruning.evidence.gates import is_companion
from fedprune.pruning.mask import full
from fedprune.tensors import tensors_of
from fedprune.types import Mask, Params, Subnet

PER_STEP, PER_JOB = 2e6, 6e7
"""The cost of constants in each step, and of making a smaller network in a job, as the number of products (of a weight and a
number) of the whole network's forward that take as long."""

CACHED = 4  # smaller networks that a worker caches, by mask

Compactor = Callable[[Mask, int], "Compacted | None"]
"""(mask, number of batches) -> the smaller network to train, or None where the result would differ or it would not pay."""


@dataclass(frozen=True)
class Compacted:
    """A module with a smaller network, which trains as the whole network would under its mask.

    small: the module. mask: the mask of the smaller network. whole: the shapes of the whole network's parameters, by name, in
    order. drifts: whether the optimizer moves entries whose gradient is zero.
    """

    small: LocalModule
    mask: Mask
    whole: Mapping[str, torch.Size]
    drifts: bool

    @property
    def net(self) -> SmallerNetwork:
        """The smaller network."""
        return cast(SmallerNetwork, self.small.net)

    @property
    def blocks(self) -> Sequence[Block]:
        """The tensors of the smaller network, as parts of the whole network's."""
        return self.net.blocks

    def fit_smaller(
        self,
        subnet: Subnet,
        batches: Iterable[Batch],
        recipe: Recipe,
        decay: float,
        optimizer_state: OptimizerState,
        correction: Params,
    ) -> Trained:
        """Train the smaller network; the arguments and the result are those of train.fit, of the whole network."""
        params = {block.name: block.of(subnet.params[block.whole]) for block in self.blocks}
        shifts = {block.name: block.of(correction[block.whole]) for block in self.blocks if block.whole in correction}
        # Only the whole network has dead entries for sure, so the learning rate of retraining is applied here.
        recipe, decay = replace(recipe, retrain_lr=1.0), decay * recipe.retrain_lr
        state = self._taken(optimizer_state)
        moved = self.drifts or bool(state) or bool(shifts) or recipe.keep_optimizer
        self.net.prepare(moved, self._mute(params, state, shifts, moved))
        still = {name for name, parameter in self.net.named_parameters() if not parameter.requires_grad}
        taken = Subnet(params, {name: alive for name, alive in self.mask.items() if name not in still})
        trained = fit(self.small, taken, batches, recipe, decay, None, state, shifts, loop=self._loop)
        reach = {block.whole: trained.reach[block.name] for block in self.blocks if block.name in trained.reach}
        whole, state = self._whole(trained.params, subnet.params), self._put_back(trained.optimizer)
        return trained._replace(params=whole, optimizer=state, reach=reach)

    def unload(self, sent: Params) -> Params:
        """Return the parameters as train.unload, of the whole network. sent: the parameters that the client was sent."""
        return self._whole(unload(self.small), sent)

    def _mute(self, params: Params, state: OptimizerState, shifts: Params, moved: bool) -> bool:
        """Return whether all constants are zero, and stay so: behind a ReLU, biases of 0, or below 0 if nothing moves them."""
        biases = [block.name for block in self.blocks if block.name.startswith("constant.")]
        if not (self.net.mutable and all(bool((params[name] <= 0).all()) for name in biases)):
            return False
        pushed = {self._parameters[number].name: values for number, values in state.items()}
        pushes = [[params[name], shifts.get(name, params[name]), *pushed.get(name, {}).values()] for name in biases]
        return not (moved and any(push.any() for by_bias in pushes for push in by_bias if push.dim()))

    def _whole(self, trained: Params, sent: Params) -> Params:
        """Return the whole network's tensors, with the trained ones put into those that were sent."""
        whole = {block.whole: sent[block.whole].clone() for block in self.blocks}
        for block in self.blocks:
            block.put(trained[block.name], whole[block.whole])
        return whole

    def _taken(self, optimizer_state: OptimizerState) -> OptimizerState:
        """Return the optimizer's state for the smaller network's parameters."""
        numbers, taken = list(self.whole), dict[int, Params]()
        for number, block in enumerate(self._parameters):
            state, shape = optimizer_state.get(numbers.index(block.whole), {}), self.whole[block.whole]
            if state:
                taken[number] = {key: block.of(value) if value.shape == shape else value for key, value in state.items()}
        return taken

    def _put_back(self, state: OptimizerState) -> OptimizerState:
        """Return the optimizer's state for the whole network's parameters; it is zero at dead entries."""
        numbers, whole = list(self.whole), dict[int, Params]()
        for number, values in state.items():
            block = self._parameters[number]
            put, shape = whole.setdefault(numbers.index(block.whole), {}), self.whole[block.whole]
            for key, value in values.items():
                if value.dim():
                    block.put(value, put.setdefault(key, value.new_zeros(shape)))
                else:
                    put[key] = value
        return whole

    @functools.cached_property
    def _loop(self) -> StepLoop:
        """The loop that trains the smaller network, chosen once."""
        return loop_of(self.small)

    @functools.cached_property
    def _parameters(self) -> Sequence[Block]:
        """The blocks of the smaller network's parameters, in the order in which its optimizer has them."""
        blocks = {block.name: block for block in self.blocks}
        return [blocks[name] for name, _ in self.small.net.named_parameters()]


def compactor(module: LocalModule, shape: tuple[int, ...], recipe: Recipe) -> Compactor:
    """Return the function that gives the smaller network of a mask, for a job of so many batches. shape: of one input.

    These train under the mask instead: modules and optimizers with functions that are not known here; error feedback, which
    trains dead entries; networks with layers that are not trained, or whose forward cannot be read (see fx_graph.py); and masks
    that leave too little to gain.
    """
    known = type(module) in KNOWN and not patched(module) and not any(is_companion(name) for name in tensors_of(module.net))
    drifts = _drifts(module) if recipe.compact == "auto" and known and not recipe.error_feedback and not recipe.fixed else None
    if drifts is None:
        return lambda mask, batches: None
    graph = functools.cache(lambda: channel_graph(module.net, shape))
    by_mask = functools.lru_cache(CACHED)(lambda mask: _gain(module, graph(), dict(mask), recipe, drifts))

    def compacted(mask: Mask, batches: int) -> Compacted | None:
        if full(mask):
            return None
        gain, make = by_mask(tuple(mask.items()))
        return make() if batches * gain > PER_JOB and make is not None else None

    return compacted


def silent(regularisers: Iterable[Regulariser]) -> bool:
    """Return whether none of these changes a step of training."""
    return not any(r.layers or r.paired or r.companion or (r.formula and r.strength) for r in regularisers)


def _gain(
    module: LocalModule, graph: ChannelGraph | None, mask: Mask, recipe: Recipe, drifts: bool
) -> tuple[float, Callable[[], Compacted] | None]:
    """Return (the products that are saved for each batch, a function that makes the smaller network, once)."""
    if graph is None:
        return 0.0, None
    alive = matrices(graph, mask)
    parts = divide(graph, alive, tracked=not recipe.freeze_batchnorm)
    if _empty(graph, parts):
        return 0.0, None

    sparse = _sparse_layers(module.net, graph, parts, alive, recipe.batch_size)

    @functools.cache
    def make() -> Compacted:
        net = SmallerNetwork(module.net, graph, parts, alive, sparse)
        smaller_mask = {block.name: block.of(mask[block.whole]) for block in net.blocks if block.whole in mask}
        small = type(module)(net, module.optimizer).to(module.device)
        return Compacted(small, smaller_mask, {name: p.shape for name, p in module.net.named_parameters()}, drifts)

    extra = PER_STEP if parts.constant.any() else 0.0
    return recipe.batch_size * saved(graph, parts, sparse) - extra, make


def _sparse_layers(net: nn.Module, graph: ChannelGraph, parts: Parts, alive: Mask, batch: int) -> dict[str, float]:
    """Return the layers that are faster as sparse ones, with the fraction of their time that is left then."""
    time_left: dict[str, float] = {}
    for name, layer in graph.layers.items():
        rows, columns = parts.live[layer.makes], parts.live[layer.reads]
        entries, weight = int(rows.sum()) * int(columns.sum()), net.get_parameter(f"{name}.weight")
        if weight.dim() == 2 and weight.device.type == "cpu" and pays(0.0, entries, batch):  # else there is no need to count
            density = np.count_nonzero((alive[name][rows] & columns).numpy()) / entries
            if pays(density, entries, batch):
                time_left[name] = remaining(density)
    return time_left


def _empty(graph: ChannelGraph, parts: Parts) -> bool:
    """Return whether nothing passes through some layer, which then gives constants alone."""
    return not all(parts.live[ends].any() for layer in graph.layers.values() for ends in (layer.makes, layer.reads))


def _drifts(module: LocalModule) -> bool | None:
    """Return whether the module's optimizer moves entries whose gradient is zero, as weight decay does.

    None: it does not treat each entry by itself, or not all alike.
    """
    entry = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = module.optimizer([entry])
    if type(optimizer) not in ENTRYWISE or len(optimizer.param_groups) > 1:
        return None
    for _ in range(2):
        entry.grad = torch.zeros_like(entry)
        optimizer.step()
    return bool(entry != 1)
