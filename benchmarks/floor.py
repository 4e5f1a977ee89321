"""The floor: a bare PyTorch loop that does only the same local SGD steps, with one single-threaded worker per core.

No masks, no messages, no merging, no evaluation: what is sent to a worker is a client's number, and nothing comes back.
Whoever does all that as well cannot be faster; the ratio to this is the price of the framework.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, LR, MOMENTUM = 32, 0.05, 0.9


class Floor:
    """Workers that train one local epoch of each client of a cohort, the largest first from a shared queue."""

    def __init__(self, net: nn.Module, inputs: Tensor, labels: Tensor, clients: Sequence[Tensor], workers: int):
        _hold(net, inputs, labels, clients)
        self._pool = multiprocessing.get_context("fork").Pool(workers, torch.set_num_threads, (1,))
        self._sizes = [len(part) for part in clients]

    def round(self, cohort: Sequence[int]) -> None:
        """One round."""
        largest_first = sorted(cohort, key=lambda client: -self._sizes[client])
        for _ in self._pool.imap_unordered(_train, largest_first):
            pass

    def close(self) -> None:
        self._pool.terminate()


def _hold(net: nn.Module, inputs: Tensor, labels: Tensor, clients: Sequence[Tensor]) -> None:
    global _net, _start, _inputs, _labels, _clients
    _net, _inputs, _labels, _clients = net, inputs, labels, clients
    _start = [p.detach().clone() for p in net.parameters()]


def _train(client: int) -> None:
    parameters = list(_net.parameters())
    with torch.no_grad():
        torch._foreach_copy_(parameters, _start)
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, fused=True)
    indices = _clients[client]
    for batch in indices[torch.randperm(len(indices))].split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(_net(_inputs[batch]), _labels[batch]).backward()
        optimizer.step()
