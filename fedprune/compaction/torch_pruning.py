"""The channels of several layers that live or die together, read from Torch-Pruning's dependency graph.

The graph knows which channels a residual addition, a concatenation or a flattening ties together. The package's criteria and
cutting are not used: resize.py cuts, so that a network can also be rebuilt from a list of indices.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.compaction.resize import CUTTABLE_LAYERS, CUTTABLE_NORMS, widths_of
from fedprune.errors import ConfigError, Incompatible
from fedprune.plain_layers import is_plain
from fedprune.pruning.evidence.network import tensors_in

Places = dict[str, list[int]]
"""Channel numbers by layer name."""


@dataclass(eq=False)
class Channel:
    """One channel, wherever it occurs.

    makes: output channels of layers. norms: channels of normalisation layers. reads: input channels of layers.
    unknown: modules on the channel's way that cannot be cut.
    """

    makes: Places = field(default_factory=dict)
    norms: Places = field(default_factory=dict)
    reads: Places = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    def ends(self) -> tuple[tuple[str, Places], ...]:
        """Return the places of the channel, with the end of the layers that they are at: "out" or "in"."""
        return ("out", self.makes), ("out", self.norms), ("in", self.reads)


Group = list[Channel]
"""The channels of coupled layers, in their order."""


def couplings(net: nn.Module, example: Tensor) -> list[Group]:
    """Return the groups of a network on inputs like `example` (with a batch dimension).

    Raises ConfigError if Torch-Pruning is not installed, Incompatible if the network cannot be traced.
    """
    tp = _torch_pruning()
    # Tracing follows autograd: off, or with frozen parameters, it finds nothing and says nothing. It also leaves eval mode on.
    traced = copy.deepcopy(net).eval().requires_grad_(True)
    names = {module: name for name, module in traced.named_modules()}
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # A tuple: it would unpack a bare tensor along the batch, and trace the network on one example without a batch.
            graph = tp.DependencyGraph().build_dependency(_TensorsOut(traced), example_inputs=(example.clone(),), verbose=False)
            groups = list(graph.get_all_groups())
        except Exception as error:
            raise Incompatible(
                f"{type(net).__name__} cannot be traced by Torch-Pruning ({type(error).__name__}: {error}): keep it masked"
            ) from error
        return [_followed(_group(graph, group, names), traced) for group in groups]


class _TensorsOut(nn.Module):
    """A network whose outputs are a list of tensors: the tracer takes no None, numbers or texts."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return tensors_in(self.net(inputs))


def _followed(group: Group, net: nn.Module) -> Group:
    """Return the group, all of its channels marked as unknown if the tracer gives a layer channels that it does not have.

    This happens where their number changes in a way that the tracer cannot follow (GLU, PixelShuffle).
    """
    beyond = {
        name
        for channel in group
        for end, places_by_layer in channel.ends()
        for name, places in places_by_layer.items()
        if max(places) >= widths_of(net.get_submodule(name))[end]
    }
    for channel in group if beyond else []:
        channel.unknown |= {f"what comes before {name}" for name in beyond}
    return group


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError(
            ["compact needs Torch-Pruning, which is not installed: pip install 'fedprune[structured]'"]
        ) from error
    return torch_pruning


def _group(graph: Any, group: Any, names: Mapping[nn.Module, str]) -> Group:
    """Return the channels of one of its groups. The root's channel numbers say which entries of the others belong together."""
    channels: dict[int, Channel] = {}
    for item in group.items:
        module, places = item.dep.target.module, list(zip(item.idxs, item.root_idxs, strict=True))
        into = graph.is_in_channel_pruning_fn(item.dep.handler) and not graph.is_out_channel_pruning_fn(item.dep.handler)
        for place, root in places:
            _note(channels.setdefault(root, Channel()), module, names.get(module), place, into)
    return [channels[root] for root in sorted(channels)]


def _note(channel: Channel, module: nn.Module, name: str | None, place: int, into: bool) -> None:
    """Add a place to a channel. into: whether it is an input channel of the module."""
    if isinstance(module, nn.Parameter):
        channel.unknown.add("a parameter of its own")
    elif is_plain(module, CUTTABLE_NORMS) and name is not None:
        channel.norms.setdefault(name, []).append(place)
    elif is_plain(module, CUTTABLE_LAYERS) and name is not None and getattr(module, "groups", 1) == 1:
        (channel.reads if into else channel.makes).setdefault(name, []).append(place)
    elif name is not None and any(True for _ in module.parameters()):
        channel.unknown.add(f"{name} ({type(module).__name__})")
