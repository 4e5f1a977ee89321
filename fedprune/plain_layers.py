"""Plain layers: layers that do exactly what their class of torch does.

A formula about a layer (its derivative by its weight, the layer without some channels) is right for plain layers. A subclass
may have a forward of its own, and a hook or a `forward` on one object changes that object; so code that relies on a formula
calls `is_plain`, and not `isinstance`. Parametrizations change the class of a layer, and so they are seen.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(layer: nn.Module, classes: Collection[type[nn.Module]]) -> bool:
    """Return whether a layer is of exactly one of these classes, and unchanged."""
    return type(layer) in classes and not is_changed(layer)


def is_changed(layer: nn.Module) -> bool:
    """Return whether a call of this object does more than the forward of its class: a hook, or a forward of its own."""
    return "forward" in layer.__dict__ or any(getattr(layer, hooks) for hooks in HOOKS)


def listens(net: nn.Module) -> bool:
    """Return whether hooks wait for the gradient of a parameter. They do not wait for that of a copy or part of it."""
    return any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in net.parameters())


def changed(net: nn.Module) -> list[str]:
    """Return the names of the parts of a network that are changed ("" is the network itself)."""
    return [name for name, part in net.named_modules() if is_changed(part)]
