"""Checks of a network's tensors, which every use of the network needs: names, memory, and values beside them."""

from __future__ import annotations

import re

from torch import nn

from fedprune.errors import ConfigError
from fedprune.pruning.evidence.gates import CHOOSE, companion_of
from fedprune.tensors import in_one_memory, tensors_of

UNSAFE = re.compile(r"[^\w./% +*@?|:-]", re.ASCII)
"""Characters that no name may have: a layer could not be named on the command line, as in what.skip=[NAME]."""


def check_network(net: nn.Module, target: str) -> nn.Module:
    """Return the network if it is one that can be federated. target: what made it. Raises ConfigError with all problems."""
    problems = [*_empty(net, target), *_names(net), *_shared(net), *_hidden(net)]
    if problems:
        raise ConfigError([f"model: {problem}" for problem in problems])
    return net


def _empty(net: nn.Module, target: str) -> list[str]:
    return [] if any(True for _ in net.parameters()) else [f"{target} has no parameters, so there is nothing to train"]


def _names(net: nn.Module) -> list[str]:
    names, problems = tensors_of(net), []
    for name in names:
        unsafe = UNSAFE.search(name)
        if unsafe:
            problems.append(f"{name!r} has {unsafe.group()!r} in its name: rename it with letters, digits and _")
    taken = [name for name in names if companion_of(name)]
    return problems[:3] + [
        f"{name} has the name of what {CHOOSE[str(companion_of(name))]} learns of a weight: rename it" for name in taken[:3]
    ]


def _shared(net: nn.Module) -> list[str]:
    return [
        f"{one} and {two} lie in the same memory without being one parameter: register a clone, or tie parameters by "
        "assigning one (b.weight = a.weight)"
        for one, two in in_one_memory(net)[:3]
    ]


def _hidden(net: nn.Module) -> list[str]:
    """Return what the network saves besides parameters and buffers, which nobody would send or merge: of quantised layers."""
    known = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
    state = net.state_dict(keep_vars=True)
    strange = [name for name, value in state.items() if value is not None and id(value) not in known]
    if not strange:
        return []
    layer = strange[0].rpartition(".")[0].removesuffix("._packed_params") or "the network"
    part = net.get_submodule(layer) if layer != "the network" else net
    what = f"{layer} ({type(part).__name__}) keeps {strange[0].rpartition('.')[2]} besides parameters and buffers"
    return [f"{what}, which would not be trained, sent or merged: choose layers of torch.nn, and quantise after training"]
