"""The size and the speed of networks: parameters, operations of one input, and the time of a batch on one thread."""

from __future__ import annotations

import contextlib
import ctypes
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.amount import amount

BATCHES = (1, 64)
"""The sizes of the batches that are timed."""

WARM_UP = 5
REPEATS = (15, 200)
"""The least and the greatest number of times that a batch is timed."""

SECONDS = 1.0
"""The time that is spent on one size of batch, unless the least number of repeats takes longer."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of these options of mallopt (malloc.h)."""

KEPT_BYTES = 1 << 30
"""Blocks up to this size come from the heap, and the heap is not given back before so much of it is free."""


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


@dataclass(frozen=True)
class Latency:
    """The median time of a batch in seconds, and its quartiles, between which half of all repeats lie."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{1e3 * self.median:.3f} ms ({1e3 * self.low:.3f} to {1e3 * self.high:.3f})"


def latencies(nets: Sequence[nn.Module], example: Tensor, batch: int) -> list[Latency]:
    """Return the time of one batch through each network, in eager PyTorch on one thread.

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
    quartiles = [quantiles(taken, n=4) for taken in times]
    return [Latency(middle, low, high) for low, middle, high in quartiles]


def keep_freed_memory() -> None:
    """Have the C library keep memory that is freed, for the rest of the process; without glibc nothing happens.

    By default it returns the blocks of a forward pass to the system or not as the heap happens to lie. The system then maps
    every page anew, which has made the same batch six times slower in one process than in the next. Servers that take batch
    after batch keep their memory, as ONNX Runtime's arena does.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(option, KEPT_BYTES)


def table(nets: Sequence[nn.Module], example: Tensor) -> str:
    """Return the sizes and the speeds as text: of one network, or of the dense and the small one and their ratio."""
    rows: list[tuple[str, list[float], list[str]]] = []
    counts = [float(parameters(net)) for net in nets]
    rows.append(("parameters", counts, [f"{count:,.0f}" for count in counts]))
    flops = [float(forward_flops(net, example)) for net in nets]
    rows.append(("one input", flops, [amount(number, "FLOP") for number in flops]))
    for batch in BATCHES:
        times = latencies(nets, example, batch)
        rows.append((f"batch of {batch}", [each.median for each in times], [str(each) for each in times]))
    width = 2 + max(len(text) for *_, texts in rows for text in texts)
    head = f"{'':13}{'dense':>{width}}{'small':>{width}}{'small / dense':>15}\n" if len(nets) == 2 else ""
    lines = [f"{name:13}{''.join(f'{text:>{width}}' for text in texts)}{_ratio(values)}" for name, values, texts in rows]
    note = "times: the median, and within which half of the repeats lie; one thread, in turn, freed memory kept"
    return head + "\n".join([*lines, note])


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
