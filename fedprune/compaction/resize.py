"""The cutting of layers to some of their channels. A smaller network is its architecture, these indices and a state_dict."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from fedprune.errors import ConfigError
from fedprune.types import Json

CUTTABLE_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
CUTTABLE_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)

Survivors = dict[str, Json]
"""The channels of each layer that are left: {"out": numbers, "in": numbers, "bias": true if it was given one}. Plain JSON."""


def resize(net: nn.Module, survivors: Survivors) -> nn.Module:
    """Return a copy of the network with the surviving channels only. Its parameters are new objects: build the optimizer
    from it.

    Raises ConfigError, naming the layer, if the network has no such layer or channels.
    """
    smaller = copy.deepcopy(net)
    for name, places in survivors.items():
        try:
            layer = smaller.get_submodule(name)
            _cut(layer, places)
        except (AttributeError, IndexError) as error:
            raise ConfigError([f"layer {name} of the smaller network does not fit {type(net).__name__} ({error})"]) from error
    return smaller


def resize_mask(mask: Mapping[str, Tensor], survivors: Survivors) -> dict[str, Tensor]:
    """Return the mask of the smaller network."""
    places = {name: survivors.get(_layer(name), {}) for name in mask}
    return {name: _rows(_columns(alive, places[name]), places[name]) for name, alive in mask.items()}


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _cut(layer: nn.Module, places: Json) -> None:
    if places.get("bias") and layer.bias is None:
        weight = cast(Tensor, layer.weight)
        layer.bias = nn.Parameter(weight.new_zeros(len(weight)))
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.dim() == 0:  # BatchNorm's count of batches
            continue
        cut = _rows(_columns(tensor.detach(), places) if name == "weight" else tensor.detach(), places).clone()
        if isinstance(tensor, nn.Parameter):
            setattr(layer, name, nn.Parameter(cut, requires_grad=tensor.requires_grad))
        else:
            layer.register_buffer(name, cut, persistent=name not in layer._non_persistent_buffers_set)
    count(layer, {end: len(places[end]) for end in ("out", "in") if end in places})


def count(layer: nn.Module, widths: Mapping[str, int]) -> None:
    """Set the numbers of channels that a layer remembers, in place. widths: by end, "out" and "in"."""
    for end, width in widths.items():
        if isinstance(layer, nn.GroupNorm):
            layer.num_groups, layer.num_channels = layer.num_groups * width // layer.num_channels, width
        elif isinstance(layer, CUTTABLE_NORMS):
            layer.num_features = width
        else:
            setattr(layer, f"{end}_{'features' if isinstance(layer, nn.Linear) else 'channels'}", width)


def widths_of(layer: nn.Module) -> dict[str, int]:
    """Return the number of channels that a layer has at its ends, "out" and, unless it normalises, "in"."""
    if isinstance(layer, CUTTABLE_NORMS):  # which may be without weights
        return {"out": layer.num_channels if isinstance(layer, nn.GroupNorm) else int(layer.num_features)}
    return dict(zip(("out", "in"), cast(Tensor, layer.weight).shape, strict=False))


def _rows(tensor: Tensor, places: Json) -> Tensor:
    return tensor[places["out"]] if "out" in places else tensor


def _columns(tensor: Tensor, places: Json) -> Tensor:
    return tensor[:, places["in"]] if "in" in places else tensor
