"""The operations that act on each channel by itself, or rearrange channels. All others may mix channels."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn import functional as F

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CURVES: set[object] = {
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu),
    *(F.celu, F.gelu, F.silu, F.mish, F.tanh, F.sigmoid, F.hardtanh, F.hardswish, F.hardsigmoid, F.softplus, F.softsign),
    *(torch.relu, torch.relu_, torch.tanh, torch.sigmoid, "relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_"),
}
"""Operations on each number by itself."""

AVERAGES: set[object] = {nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}
RELU: set[object] = {nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"}
POOLS: dict[object, int] = {
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d, F.max_pool1d, F.avg_pool1d), 3),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, F.max_pool2d, F.avg_pool2d), 4),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d, F.max_pool3d, F.avg_pool3d), 5),
    **{F.adaptive_avg_pool1d: 3, F.adaptive_avg_pool2d: 4, F.adaptive_avg_pool3d: 5, torch.max_pool2d: 4},
}
"""Operations on each channel by itself, with the dimensions of their input (with one less, they would pool over channels)."""


def flattens(node: fx.Node, layer: nn.Module | None, dims: int) -> bool:
    """Return whether a node makes all dimensions but the first into one. layer: the one that it calls, if it calls one."""
    if node.op == "call_module":
        return type(layer) is nn.Flatten and layer.start_dim == 1 and layer.end_dim in (-1, dims - 1)
    target = node.target
    if target in (torch.flatten, "flatten"):
        given: dict[str, object] = {**dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)), **node.kwargs}
        return given.get("start_dim") == 1 and given.get("end_dim", -1) in (-1, dims - 1)
    if target in (torch.reshape, "reshape", "view"):
        size, *rest = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return rest == [-1] and isinstance(size, fx.Node) and asks_for_batch(size)
    return False


def averages(node: fx.Node, dims: int) -> bool:
    """Return whether a node takes the mean over places, and over nothing else: x.mean((2, 3))."""
    if node.target not in (torch.mean, "mean"):
        return False
    over: object = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")
    places = [over] if isinstance(over, int) else over
    return isinstance(places, tuple | list) and all(place % dims > 1 for place in places)


def asks_for_batch(node: fx.Node) -> bool:
    """Return whether a node asks a value for nothing but the number of its examples: x.size(0) or x.shape[0]."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] == "shape" and all(user.args[1:] == (0,) for user in node.users)
    shape = node.args[0] if node.args else None
    return isinstance(shape, fx.Node) and shape.op == "call_function" and shape.target is getattr and asks_for_batch(shape)
