"""The effective entries of a mask: living entries that lie on a path from the network's input to its output.

The others cost and do nothing. An entry is effective if what it reads depends on the input through living entries, and the
output depends on what it writes, whatever the values of the living weights are (dependence.py).

The network's own forward runs once in evaluation mode, on traced values (traced_value.py) by the rules of rules.py, and once
backward. A network that calls a function without a rule has no effective mask, nor has one with recurrent layers, attention or
embeddings.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fedprune.pruning.connectivity.dependence import CannotFollow, Dependence
from fedprune.pruning.connectivity.traced_value import TracedValue
from fedprune.pruning.evidence.network import evaluated
from fedprune.pruning.mask import count, ones, size
from fedprune.pruning.what.layers import prunable
from fedprune.tensors import call
from fedprune.types import Mask


def effective(net: nn.Module, mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Return the entries of `mask` that lie on some path. The network, its parameters, buffers and mode are left as they are.

    shape: of one input. Raises CannotFollow, naming the function, if the network's forward calls one without a rule.
    """
    masks = {name: alive.float().requires_grad_() for name, alive in mask.items()}
    alive_or_ones = {name: masks[name] if name in masks else torch.ones(p.shape) for name, p in net.named_parameters()}
    parameters = {name: TracedValue(Dependence(None, alive)) for name, alive in alive_or_ones.items()}
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    example = torch.ones(1, *shape)
    with torch.enable_grad(), evaluated(net):
        outputs = call(net, buffers | parameters, TracedValue(Dependence(example, example)))
        varying = [leaf.dependence.varying for leaf in tree_leaves(outputs) if isinstance(leaf, TracedValue)]
        total = torch.stack([part.sum() for part in varying if part is not None]).sum()
    if not total.requires_grad:  # no entry of a mask is between input and output
        return {name: torch.zeros_like(alive) for name, alive in mask.items()}
    gradients = torch.autograd.grad(total, list(masks.values()), materialize_grads=True, allow_unused=True)
    return {name: alive & (gradient > 0) for (name, alive), gradient in zip(mask.items(), gradients, strict=True)}


def unfollowed(net: nn.Module, shape: tuple[int, ...]) -> str:
    """Return why paths through the network cannot be followed, or ""."""
    layers = prunable(net, ("recurrent", "attention", "embedding"))
    if layers:
        name = next(iter(layers))
        return f"{name} ({type(net.get_submodule(name)).__name__}) cannot be followed"
    parameters = dict(net.named_parameters())
    try:
        effective(net, ones(parameters, tuple(parameters)), shape)
    except CannotFollow as error:
        return f"{error} in its forward cannot be followed"
    except Exception as error:  # a forward is anybody's code, and may count on numbers
        return f"its forward cannot be followed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return ""


def effective_density(net: nn.Module, mask: Mask, shape: tuple[int, ...]) -> float:
    """Return the fraction of the prunable entries that lie on some path."""
    return count(effective(net, mask, shape)) / size(mask)
