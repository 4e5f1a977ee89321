"""Training in a smaller network (module.py): what a mask leaves is taken out of the whole network at the start of a job and
put back at its end, and with it the optimizer's state and the corrections of gradients. The result is that of training under
the mask, up to the rounding of sums that have fewer terms; batches, and all that is drawn at random, are the same.

Where that could not be so, or where a smaller network would not pay, the client trains under the mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from fedprune.compaction.fx_graph import Wiring, wiring
from fedprune.compaction.liveness import Parts, matrices, parts, saved
from fedprune.compaction.module import Block, Smaller
from fedprune.compaction.sparse_linear import pays, remaining
from fedprune.local.hooks import KNOWN, patched
from fedprune.local.module import Batch, LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser
from fedprune.local.state.optimizer_state import OptimizerState
from fedprune.local.step import ENTRYWISE
from fedprune.local.train import Trained, fit, unload
from fedprune.pruning.evidence.gates import is_companion
from fedprune.pruning.mask import full
from fedprune.tensors import tensors_of
from fedprune.types import Mask, Params, Subnet

PER_STEP, PER_JOB = 2e6, 6e7
"""What constants add to each step, and what making a smaller network adds to a job, in products (of a weight and a number) of
the whole network's forward that take as long."""

REMEMBERED = 4  # masks of which a worker has the smaller network at hand

Compactor = Callable[[Mask, int], "Compacted | None"]
"""(mask, number of batches) -> how to train under it in a smaller network, or None: it would not be the same, or not pay."""


@dataclass(frozen=True)
class Compacted:
    """small: the same module with a smaller network. mask: what is dead in that. whole: the shapes of the whole network's
    parameters, by name, in order. drifts: whether the optimizer moves what has a gradient of zero."""

    small: LocalModule
    mask: Mask
    whole: Mapping[str, torch.Size]
    drifts: bool

    @property
    def blocks(self) -> Sequence[Block]:
        return self.small.net.blocks  # type: ignore[return-value]

    def fit(
        self, subnet: Subnet, batches: Iterable[Batch], recipe: Recipe, decay: float, kept: OptimizerState, correction: Params
    ) -> Trained:
        """As train.fit, of the whole network."""
        params = {block.name: block.of(subnet.params[block.whole]) for block in self.blocks}
        shifts = {block.name: block.of(correction[block.whole]) for block in self.blocks if block.whole in correction}
        # Something is dead in the whole network, though perhaps nothing in the smaller one: what that asks for is done here.
        recipe, decay = replace(recipe, retrain_lr=1.0), decay * recipe.retrain_lr
        state = self._taken(kept)
        moved = self.drifts or bool(state) or bool(shifts) or recipe.keep_optimizer
        self.small.net.prepare(moved, self._mute(params, state, shifts, moved))  # type: ignore[operator]
        still = {name for name, parameter in self.small.net.named_parameters() if not parameter.requires_grad}
        taken = Subnet(params, {name: alive for name, alive in self.mask.items() if name not in still})
        trained = fit(self.small, taken, batches, recipe, decay, None, state, shifts)
        reach = {block.whole: trained.reach[block.name] for block in self.blocks if block.name in trained.reach}
        whole, state = self._whole(trained.params, subnet.params), self._put_back(trained.optimizer)
        return trained._replace(params=whole, optimizer=state, reach=reach)

    def unload(self, sent: Params) -> Params:
        """As train.unload, of the whole network. sent: as it came."""
        return self._whole(unload(self.small), sent)

    def _mute(self, params: Params, state: OptimizerState, shifts: Params, moved: bool) -> bool:
        """Whether all constants are zero, and stay so: behind a ReLU, biases of zero or, if nothing moves them, of less."""
        biases = [block.name for block in self.blocks if block.name.startswith("constant.")]
        if not (self.small.net.mutable and all(bool((params[name] <= 0).all()) for name in biases)):
            return False
        pushed = {self._parameters[number].name: values for number, values in state.items()}
        pushes = [[params[name], shifts.get(name, params[name]), *pushed.get(name, {}).values()] for name in biases]
        return not (moved and any(push.any() for some in pushes for push in some if push.dim()))

    def _whole(self, trained: Params, sent: Params) -> Params:
        whole = {block.whole: sent[block.whole].clone() for block in self.blocks}
        for block in self.blocks:
            block.put(trained[block.name], whole[block.whole])
        return whole

    def _taken(self, kept: OptimizerState) -> OptimizerState:
        """The optimizer's state for the smaller network's parameters."""
        numbers, taken = list(self.whole), dict[int, Params]()
        for number, block in enumerate(self._parameters):
            state, shape = kept.get(numbers.index(block.whole), {}), self.whole[block.whole]
            if state:
                taken[number] = {key: block.of(value) if value.shape == shape else value for key, value in state.items()}
        return taken

    def _put_back(self, state: OptimizerState) -> OptimizerState:
        """The optimizer's state for the whole network's parameters: what is dead has none, which is zero."""
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
    def _parameters(self) -> Sequence[Block]:
        """The blocks of the smaller network's parameters, in the order in which its optimizer has them."""
        blocks = {block.name: block for block in self.blocks}
        return [blocks[name] for name, _ in self.small.net.named_parameters()]


def compactor(module: LocalModule, shape: tuple[int, ...], recipe: Recipe) -> Compactor:
    """How the module is trained smaller under a mask, in a job of so many batches. shape: of one input.

    Under the mask are trained: modules and optimizers that do more than is known here; with error feedback, which trains the
    dead; networks some of whose layers are held, or that cannot be read (see fx_graph.py); and what leaves too little to gain.
    """
    known = type(module) in KNOWN and not patched(module) and not any(is_companion(name) for name in tensors_of(module.net))
    drifts = _drifts(module) if recipe.compact == "auto" and known and not recipe.error_feedback and not recipe.fixed else None
    if drifts is None:
        return lambda mask, batches: None
    wired = functools.cache(lambda: wiring(module.net, shape))
    remembered = functools.lru_cache(REMEMBERED)(lambda mask: _divided(module, wired(), dict(mask), recipe, drifts))

    def compacted(mask: Mask, batches: int) -> Compacted | None:
        gain, made = (0.0, None) if full(mask) else remembered(tuple(mask.items()))
        return made() if batches * gain > PER_JOB and made is not None else None

    return compacted


def silent(regularisers: Iterable[Regulariser]) -> bool:
    """Whether none of these changes a step of training."""
    return not any(one.layers or one.paired or one.companion or (one.formula and one.strength) for one in regularisers)


def _divided(
    module: LocalModule, wired: Wiring | None, mask: Mask, recipe: Recipe, drifts: bool
) -> tuple[float, Callable[[], Compacted] | None]:
    """(the products that are saved for each batch, how the smaller network is made: once)."""
    if wired is None:
        return 0.0, None
    alive = matrices(wired, mask)
    divided = parts(wired, alive, tracked=not recipe.freeze_batchnorm)
    if _empty(wired, divided):
        return 0.0, None

    thin = _thin(module.net, wired, divided, alive, recipe.batch_size)

    @functools.cache
    def made() -> Compacted:
        net = Smaller(module.net, wired, divided, alive, thin)
        holes = {block.name: block.of(mask[block.whole]) for block in net.blocks if block.whole in mask}
        small = type(module)(net, module.optimizer).to(module.device)
        return Compacted(small, holes, {name: p.shape for name, p in module.net.named_parameters()}, drifts)

    extra = PER_STEP if divided.constant.any() else 0.0
    return recipe.batch_size * saved(wired, divided, thin) - extra, made


def _thin(net: nn.Module, wired: Wiring, divided: Parts, alive: Mask, batch: int) -> dict[str, float]:
    """The layers that are better sparse, and the fraction of their time that is left then."""
    found: dict[str, float] = {}
    for name, layer in wired.layers.items():
        rows, columns = divided.live[layer.makes], divided.live[layer.reads]
        entries, weight = int(rows.sum()) * int(columns.sum()), net.get_parameter(f"{name}.weight")
        if weight.dim() == 2 and weight.device.type == "cpu" and pays(0.0, entries, batch):  # else there is no need to count
            density = np.count_nonzero((alive[name][rows] & columns).numpy()) / entries
            found |= {name: remaining(density)} if pays(density, entries, batch) else {}
    return found


def _empty(wired: Wiring, divided: Parts) -> bool:
    """Whether nothing passes through some layer, which then gives constants alone."""
    return not all(divided.live[ends].any() for layer in wired.layers.values() for ends in (layer.makes, layer.reads))


def _drifts(module: LocalModule) -> bool | None:
    """Whether the module's optimizer moves what has a gradient of zero: by weight decay, for one. None if it does not treat
    each entry by itself, and all alike."""
    entry = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = module.optimizer([entry])
    if type(optimizer) not in ENTRYWISE or len(optimizer.param_groups) > 1:
        return None
    for _ in range(2):
        entry.grad = torch.zeros_like(entry)
        optimizer.step()
    return bool(entry != 1)
