"""Paths: which living entries lie on a path from the network's input to its output. The others cost and do nothing.

effective: (network, mask, shape of one input) -> Mask, a subset of `mask`. An entry is effective if what it reads is reached
from the input through living entries, and what it writes reaches the output.

The network is read as wires: it runs once forward on ones and once backward, with every mask in the place of its weights, other
weights 1 and biases 0. What a convolution or linear layer gives is cut down to reached (1) or not (0), and so are gradients on
their way back, so that no depth makes numbers overflow. Normalisation, activations and dropout let everything pass, and a max
pool lets its whole window pass. Residual additions, concatenation and flattening are as they are. Layers that subtract or
multiply activations (attention, gates) are beyond this reading, and so are embeddings, which read no ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedprune.pruning.mask import count, size
from fedprune.pruning.what import prunable
from fedprune.types import Mask

LAYERS = {"conv1d", "conv2d", "conv3d", "linear"}
TRANSPARENT = {
    *("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm", "local_response_norm"),
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "gelu", "silu", "mish", "prelu"),
    *("tanh", "tanh_", "hardtanh", "hardtanh_", "sigmoid", "hardsigmoid", "hardswish", "softplus", "softmax", "log_softmax"),
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
}
POOLS: dict[str, Callable[..., Tensor]] = {
    **{"max_pool1d": F.avg_pool1d, "max_pool2d": F.avg_pool2d, "max_pool3d": F.avg_pool3d},
    **{"adaptive_max_pool1d": F.adaptive_avg_pool1d, "adaptive_max_pool2d": F.adaptive_avg_pool2d},
    "adaptive_max_pool3d": F.adaptive_avg_pool3d,
}
WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def effective(net: nn.Module, mask: Mask, shape: tuple[int, ...]) -> Mask:
    """The entries of `mask` that lie on some path. The network, its parameters, buffers and mode are left as they are."""
    wires = {name: alive.float().requires_grad_() for name, alive in mask.items()}
    others = {
        name: torch.zeros_like(_single(value)) if name.rpartition(".")[2] == "bias" else torch.ones_like(_single(value))
        for name, value in net.named_parameters()
        if name not in wires
    }
    buffers = {name: _single(value.clone()) for name, value in net.named_buffers()}  # BatchNorm counts its calls
    with torch.enable_grad(), _Wires():
        reached = torch.func.functional_call(net, buffers | others | wires, (torch.ones(1, *shape),)).sum()
    gradients = torch.autograd.grad(reached, list(wires.values()), materialize_grads=True, allow_unused=True)
    return {name: alive & (g > 0) for (name, alive), g in zip(mask.items(), gradients, strict=True)}


def _single(value: Tensor) -> Tensor:
    """Return a floating tensor in float32, as wires are, and any other as it is."""
    return value.float() if value.is_floating_point() else value


def followed(net: nn.Module) -> bool:
    """Whether this reading goes for the network: it does without recurrent layers, attention and embeddings."""
    return not prunable(net, ("recurrent", "attention", "embedding"))


def effective_density(net: nn.Module, mask: Mask, shape: tuple[int, ...]) -> float:
    """The fraction of the prunable entries that lie on some path."""
    return count(effective(net, mask, shape)) / size(mask)


class _Wires(TorchFunctionMode):
    """Torch's functions as a network of wires understands them."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in TRANSPARENT:
            return args[0] if args else kwargs["input"]
        if name in POOLS:
            return _whole_window(func, POOLS[name], *args, **kwargs)
        result = func(*args, **kwargs)
        return _Reached.apply(result) if name in LAYERS else result


def _whole_window(pool: Callable, average: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A max pool sends a gradient to one place only, and which one is chance where all are 1: the average, to all of them."""
    given = dict(zip(WINDOW, args, strict=False)) | kwargs if "adaptive" not in pool.__name__ else {"output_size": args[0]}
    if given.pop("dilation", 1) not in (1, [1], (1,), [1, 1], (1, 1), [1, 1, 1], (1, 1, 1)):
        return pool(input, *args, **kwargs)  # there is no average with holes
    given.pop("return_indices", None)
    return average(input, **given)


class _Reached(torch.autograd.Function):
    """1 where anything arrives, else 0; forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return (values > 0).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)
