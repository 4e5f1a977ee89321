"""The floor: a bare PyTorch loop that does only the same local SGD steps, with one single-threaded worker per core.

No messages and no evaluation: what is sent to a worker is the place of a client in its round, and nothing comes back. Whoever
does all that as well cannot be faster; the ratio to this is the price of the framework. Each client of a round is trained in
memory that all processes share, so that the mean over them, which the next round begins with, can be taken off the clock.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from job import BATCH, COHORT, LR, MOMENTUM, Job
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector


class Floor:
    """Workers that train one local epoch of each client of a round, the largest first from a shared queue.

    masks: zeros and ones by the name of a parameter, which is multiplied by them before the first and after every step.
    """

    def __init__(self, net: nn.Module, job: Job, workers: int, masks: Mapping[str, Tensor] = MappingProxyType({})):
        begin = copy.deepcopy(net)
        _multiply([begin.get_parameter(name) for name in masks], list(masks.values()))
        self._begin, self._job = begin.share_memory(), job
        self._nets = [copy.deepcopy(begin).share_memory() for _ in range(COHORT)]
        held = (job, self._begin, self._nets, masks)
        self._pool = multiprocessing.get_context("fork").Pool(workers, _hold, held)

    def train(self, number: int) -> None:
        """One round."""
        for _ in self._pool.imap_unordered(_train, [(number, place) for place in range(COHORT)]):
            pass

    def parameters(self, number: int) -> Tensor:
        """The mean over the clients of this round, weighted by their examples: where the next one begins."""
        sizes = torch.tensor([float(len(order)) for order in self._job.orders[number]])
        clients = torch.stack([parameters_to_vector(net.parameters()).detach() for net in self._nets])
        mean = (sizes / sizes.sum()) @ clients
        parameters = list(self._begin.parameters())
        with torch.no_grad():
            for parameter, value in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
                parameter.copy_(value.view_as(parameter))
        return mean

    def close(self) -> None:
        self._pool.terminate()


def _multiply(weights: list[Tensor], masks: list[Tensor]) -> None:
    if masks:
        with torch.no_grad():
            torch._foreach_mul_(weights, masks)


def _hold(job: Job, begin: nn.Module, nets: Sequence[nn.Module], masks: Mapping[str, Tensor]) -> None:
    global _job, _begin, _nets, _masks
    torch.set_num_threads(1)
    _job, _begin, _nets, _masks = job, list(begin.parameters()), nets, masks


def _train(which: tuple[int, int]) -> None:
    number, place = which
    net, indices = _nets[place], _job.orders[number][place]
    parameters = list(net.parameters())
    weights, masks = [net.get_parameter(name) for name in _masks], list(_masks.values())
    with torch.no_grad():
        torch._foreach_copy_(parameters, _begin)
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, fused=True)
    for batch in indices.split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(net(_job.inputs[batch]), _job.labels[batch]).backward()
        optimizer.step()
        _multiply(weights, masks)
    optimizer.zero_grad()
