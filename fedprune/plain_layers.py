"""Plain layers: those that do what their class of torch says, and no more.

A formula about a layer (its derivative by its weight, what is left if channels are cut out of it) is right for plain layers. A
subclass may have a forward of its own, and a hook or a `forward` that was put on one object changes what that one does; so
whoever relies on a formula asks here, and not `isinstance`. Parametrizations change the class of a layer, and are seen by that.
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
    """Return whether hooks wait for the gradient of a parameter: of this very tensor, and of no copy or part of it."""
    return any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in net.parameters())


def changed(net: nn.Module) -> list[str]:
    """Return the names of the parts of a network that are changed ("" is the network itself)."""
    return [name for name, part in net.named_modules() if is_changed(part)]
