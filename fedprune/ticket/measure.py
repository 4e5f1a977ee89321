"""The size and the speed of networks: parameters, operations of one input, and the time of a batch on one thread."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.amount import amount

BATCHES = (1, 64)
"""The sizes of the batches that are timed."""

WARM_UP = 3
REPEATS = (7, 200)
"""The least and the greatest number of times that a batch is timed."""

SECONDS = 1.0
"""The time that is spent on one size of batch, unless the least number of repeats takes longer."""


def parameters(net: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def forward_flops(net: nn.Module, example: Tensor) -> int:
    """Return the operations (2 x multiply-accumulate) of the products in one input's forward pass. example: [1, ...]."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch remarks on devices that are not there
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            net(example)
    return int(counter.get_total_flops())


def latencies(nets: Sequence[nn.Module], example: Tensor, batch: int) -> list[float]:
    """Return the median time in seconds of one batch through each network, in eager PyTorch on one thread.

    The networks take turns, so that what else the machine does slows all of them alike. example: [1, ...].
    """
    inputs = example.expand(batch, *example.shape[1:]).contiguous()
    times: list[list[float]] = [[] for _ in nets]
    with torch.inference_mode(), _one_thread():
        for net in [*nets] * WARM_UP:
            net(inputs)
        begun = time.perf_counter()
        while len(times[-1]) < REPEATS[0] or (len(times[-1]) < REPEATS[1] and time.perf_counter() - begun < SECONDS):
            for net, taken in zip(nets, times, strict=True):
                start = time.perf_counter()
                net(inputs)
                taken.append(time.perf_counter() - start)
    return [median(taken) for taken in times]


def table(nets: Sequence[nn.Module], example: Tensor) -> str:
    """Return the sizes and the speeds as text: of one network, or of the dense and the small one and their ratio."""
    rows: list[tuple[str, list[float], list[str]]] = []
    counts = [float(parameters(net)) for net in nets]
    rows.append(("parameters", counts, [f"{count:,.0f}" for count in counts]))
    flops = [float(forward_flops(net, example)) for net in nets]
    rows.append(("one input", flops, [amount(number, "FLOP") for number in flops]))
    for batch in BATCHES:
        times = latencies(nets, example, batch)
        rows.append((f"batch of {batch}", times, [f"{1e3 * seconds:.3f} ms" for seconds in times]))
    head = f"{'':13}{'dense':>14}{'small':>14}{'small / dense':>15}\n" if len(nets) == 2 else ""
    lines = [f"{name:13}{''.join(f'{text:>14}' for text in texts)}{_ratio(values)}" for name, values, texts in rows]
    return head + "\n".join(lines)


def _ratio(values: Sequence[float]) -> str:
    return f"{values[1] / values[0]:>15.2f}" if len(values) == 2 and values[0] else ""


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
