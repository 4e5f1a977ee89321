"""Evidence from the outputs of units: (module, params, names, batches) -> one value per output unit, at every entry of its row.

The output of a unit is taken behind its layer and the normalisation that follows directly, if any, and cut off at zero: as if a
ReLU came next, whichever nonlinearity does. In evaluation mode; a mean over examples and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from fedprune.pruning.evidence.loss import Batch, gathered, net_of, over_examples
from fedprune.pruning.evidence.network import (
    Call,
    Network,
    blank,
    calls,
    dim_of_units,
    evaluated,
    first_few,
    owners,
    tensors_in,
)
from fedprune.pruning.evidence.normalisation import followers, normalisations
from fedprune.pruning.what.layers import others
from fedprune.pruning.what.unit import per_row
from fedprune.tensors import call, tensors_of, tied_parameter
from fedprune.types import Params


def activations(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return the mean of max(output, 0)."""
    return _mean_over_units(module, params, names, batches, Tensor.relu)


def activity(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return the fraction of the outputs that is positive: one minus the average percentage of zeros."""
    return _mean_over_units(module, params, names, batches, lambda output: (output > 0).float())


def puts_out(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why the outputs of these layers are not all activations of units, or None.

    Either a layer gives the network's outputs, or its rows do not put out one activation each.
    """
    problem = _rowless(network, names)
    if problem:
        return problem
    tied = tied_parameter(network.net, names)
    if tied:
        return f"{tied}, whose units put out one thing in each: choose criterion=taylor"
    with torch.no_grad(), calls(owners(network.net, names)) as seen:
        outputs = tensors_in(network.run(tensors_of(network.net), blank(network.net, network.shape)))
    return _hidden_units(network, names, seen) or _gives_outputs(names, seen, outputs)


def _rowless(network: Network, names: tuple[str, ...]) -> str | None:
    """Return which layers have rows that put out no activation, or None."""
    rowless = others(network.net, names)
    if not rowless:
        return None
    told = first_few([f"{name} ({type(layer).__name__})" for name, layer in rowless.items()])
    left = [name for name in names if name.rpartition(".")[0] not in rowless]
    kinds = "what.layers=[conv,linear] or " if len(left) > 1 else ""  # the last one left gives the network's outputs
    return f"rows of {told} put out no activation of their own: choose {kinds}criterion=taylor"


def _hidden_units(network: Network, names: tuple[str, ...], seen: dict[str, list[Call]]) -> str | None:
    """Return which layers are not called as layers that put out their units, or None."""
    layers = owners(network.net, names)
    hidden = [name for name in names if not _shows_units(layers[name], seen[name])]
    if not hidden:
        return None
    uncalled = [f"{name.removesuffix('.weight')} ({type(layers[name]).__name__})" for name in hidden]
    skip = ",".join(name.removesuffix(".weight") for name in hidden)
    problem = f"{first_few(uncalled)} is not called as a layer that puts out its units"
    return f"{problem}: choose what.skip=[{skip}], or criterion=taylor"


def _gives_outputs(names: tuple[str, ...], seen: dict[str, list[Call]], outputs: list[Tensor]) -> str | None:
    """Return which layer gives the network's outputs, or None."""
    memory = {output.untyped_storage().data_ptr() for output in outputs}  # outputs may be a view, as those of sequences are
    makes = {name: {call.passed.untyped_storage().data_ptr() for call in seen[name]} for name in names}
    last = [name.removesuffix(".weight") for name in names if memory & makes[name]]
    if not last:
        return None
    instead = f"what.skip=[{last[0]}]" if len(names) > len(last) else "criterion=taylor"
    return f"what {last[0]} puts out are the network's outputs, and none is idle: choose {instead}"


def _shows_units(layer: nn.Module, seen: list[Call]) -> bool:
    """Return whether a layer was called, and each time put out one value, or image, for each row of its weight."""
    rows = len(cast(Tensor, layer.weight))
    return bool(seen) and all(call.output.dim() > 1 and call.output.shape[dim_of_units(layer)] == rows for call in seen)


def _mean_over_units(
    module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch], of: Callable[[Tensor], Tensor]
) -> Params:
    net = net_of(module)
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
    return {name: per_row(means[name], params[name]) for name in names}


def _by_unit(outputs: list[Tensor], units: int, like: Tensor) -> Tensor:
    """Return the mean of each unit over examples, positions and calls; `like` if there were no calls."""
    if not outputs:
        return like
    return torch.stack([output.movedim(units, 0).flatten(1).mean(1) for output in outputs]).mean(0)
