"""Evidence from what units put out: (module, params, names, batches) -> one value per output unit, at every entry of its row.

A unit's output is what leaves its layer and the normalisation that takes it in directly, if any, cut off at zero: as if a ReLU
came next, whichever nonlinearity does. In evaluation mode; a mean over examples and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fedprune.pruning.evidence.data_free import dim_of_units, followers, normalisations, spread
from fedprune.pruning.evidence.loss import Batch, calls, evaluated, gathered, over_examples, owners
from fedprune.tensors import call
from fedprune.types import Params


def activations(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """The mean of max(output, 0)."""
    return _mean_over_units(module, params, names, batches, Tensor.relu)


def activity(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """The fraction of the outputs that is positive: one minus the average percentage of zeros."""
    return _mean_over_units(module, params, names, batches, lambda output: (output > 0).float())


def _mean_over_units(
    module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch], of: Callable[[Tensor], Tensor]
) -> Params:
    net: nn.Module = module.net  # type: ignore[assignment]
    layers, norms = owners(net, names), normalisations(net)
    like = {name: params[name].new_zeros(len(params[name])) for name in names}

    @torch.no_grad()
    def summed(batch: Batch) -> Params:
        with calls(layers | norms) as seen:
            call(net, params, batch[0])
        last = {name: name for name in names} | followers(seen, names, tuple(norms))
        outputs = {name: [of(call.output) for call in seen[last[name]]] for name in names}
        return {name: len(batch[0]) * _by_unit(outputs[name], dim_of_units(layers[name]), like[name]) for name in names}

    with evaluated(module):
        means = over_examples(summed, gathered(batches), like)
    return {name: spread(means[name], params[name]) for name in names}


def _by_unit(outputs: list[Tensor], units: int, like: Tensor) -> Tensor:
    """The mean of each unit over examples, positions and calls."""
    return torch.stack([output.movedim(units, 0).flatten(1).mean(1) for output in outputs]).mean(0) if outputs else like
