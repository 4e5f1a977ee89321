"""How a network's tensors, and the images that it sees, lie in memory while it is trained and evaluated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprune.pruning.evidence.network import tensors_in
from fedprune.tensors import tensors_of
from fedprune.types import Params


@torch.no_grad()
def in_own_memory(net: nn.Module) -> nn.Module:
    """Give every entry of the parameters and buffers memory of its own, in place, and return the network.

    Entries of an expanded tensor (stride 0) share theirs, and torch refuses to write to them.
    """
    for layer in net.modules():
        for name, buffer in layer._buffers.items():
            if buffer is not None and _shares_memory(buffer):
                layer._buffers[name] = buffer.contiguous().clone()
        for parameter in layer.parameters(recurse=False):
            if _shares_memory(parameter):
                parameter.data = parameter.data.contiguous().clone()
    return net


def _shares_memory(tensor: Tensor) -> bool:
    """Return whether some entries of a tensor are one and the same number in memory."""
    strided = tensor.layout is torch.strided
    return strided and any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


@torch.no_grad()
def channels_last(net: nn.Module, shape: tuple[int, ...]) -> bool:
    """Lay out its convolutions so that the channels of a pixel lie side by side, in place; say whether that was done.

    On a CPU a step then takes 0.62 to 0.87 of the time on the small networks of the literature, above all where they pool, and
    0.85 to 1.07 on ResNet-20 and VGG-11. Left as it is: a network on another device, one without convolutions, and one that
    does not give the same outputs then, such as one that calls `view` on images. shape: of one input.
    """
    convolves = any(isinstance(layer, nn.Conv2d) for layer in net.modules())
    if not convolves or any(parameter.device.type != "cpu" for parameter in net.parameters()):
        return False
    training = {layer: layer.training for layer in net.modules()}
    inputs, before = torch.linspace(-1, 1, 2 * torch.Size(shape).numel()).view(2, *shape), torch.contiguous_format
    expected = _outputs(net, inputs, before)
    found = _outputs(net, inputs, torch.channels_last)
    same = expected is not None and found is not None and len(found) == len(expected)
    same = same and all(_alike(one, other) for one, other in zip(found or [], expected or [], strict=True))
    if not same:
        net.to(memory_format=before)  # type: ignore[call-overload]
    for layer, mode in training.items():
        layer.training = mode
    return same


def _alike(found: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def as_laid_out(params: Params, net: nn.Module) -> Params:
    """A copy of the parameters, on the network's device and as its own lie in memory."""
    state = tensors_of(net)
    return {name: torch.empty_like(state[name], dtype=value.dtype).copy_(value) for name, value in params.items()}


def _outputs(net: nn.Module, inputs: Tensor, layout: torch.memory_format) -> list[Tensor] | None:
    """In evaluation, laid out so, each tensor that the network puts out; None if the network cannot be."""
    net.eval().to(memory_format=layout)  # type: ignore[call-overload]
    try:
        return tensors_in(net(inputs))
    except RuntimeError:
        return None
