"""Aggregates for rounds in which some updates may be anything: each entry by its rank among the clients.

Every option is an `Aggregate` (accumulator.py). A client has an entry that is alive in its mask; the holders of an entry are
the clients that have it. Only their values are ranked: dead entries are left out. An entry without holders is uncovered. All
clients are holders of the tensors without a mask, BatchNorm's statistics and counters too; whole numbers are then rounded to
the nearest, and complex ones are ranked by their real and their imaginary parts. The weights of the clients are ignored: who
claims many examples must not have more of a say. The order of the clients does not matter to a bit. Memory: all updates of the
round at once, and CHUNK x clients numbers of 8 bytes.

What is ranked are weights, where the paper ranks gradients: clients start from the same network, so the middle of what they
have arrived at is where it was, plus the middle of how far they have moved it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.federated.server.accumulator import Accumulator, Aggregate, Unanimous
from fedprune.federated.server.aggregate import HolderWeights, check_uncovered, settled
from fedprune.types import Params, Subnet

CHUNK = 2**16  # entries of a tensor that are ranked at once

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]

Middle = Callable[[Numbers, Counts], Numbers]
"""(values of each entry by rank, entry by client; the number of its holders, whose values come first) -> one value by entry."""


@dataclass(frozen=True)
class CoordinateMedian(Aggregate):
    """The median of each entry over its holders; of an even number, the mean of the two in the middle.

    Yin et al. 2018, "Byzantine-robust distributed learning", definition 1. As long as less than half of an entry's holders
    send anything, it stays within what the others sent. uncovered: the value without holders: `keep` (the server's) or `zero`.
    """

    uncovered: str = "keep"

    def __post_init__(self) -> None:
        check_uncovered(self.uncovered)

    def __call__(self, server: Params) -> Accumulator:
        return Unanimous(_ByRank(server, median, self.uncovered))


@dataclass(frozen=True)
class TrimmedMean(Aggregate):
    """The mean of each entry over its holders, without the floor(trim x holders) least and as many greatest.

    Yin et al. 2018, "Byzantine-robust distributed learning", definition 2. As long as no more than floor(trim x holders) of
    the holders send anything, it stays within what the others sent: with trim 0.1 and fewer than 10 holders,
    nothing is trimmed. uncovered: the value without holders: `keep` (the server's) or `zero`.
    """

    trim: float = 0.1
    uncovered: str = "keep"

    def __post_init__(self) -> None:
        check_uncovered(self.uncovered)
        if not 0 <= self.trim < 0.5:
            raise ConfigError(
                [
                    f"federated.aggregate.trim={self.trim} is the fraction left out at each end: 0 or more, less than 0.5; "
                    "for the middle alone choose federated/aggregate=coordinate_median"
                ]
            )

    def __call__(self, server: Params) -> Accumulator:
        return Unanimous(_ByRank(server, functools.partial(trimmed_mean, trim=self.trim), self.uncovered))


def median(ranked: Numbers, holders: Counts) -> Numbers:
    """Return the median of the first `holders` of each row; without holders, anything."""
    middle = np.stack([(holders - 1) // 2, holders // 2], axis=1)
    means: Numbers = np.take_along_axis(ranked, np.clip(middle, 0, ranked.shape[1] - 1), axis=1).mean(1)
    return means


def trimmed_mean(ranked: Numbers, holders: Counts, trim: float) -> Numbers:
    """Return the mean of the first `holders` of each row, less floor(trim x holders) at each end; without holders, anything."""
    cut = np.floor(trim * holders + 1e-9).astype(int)  # 0.29 x 100 is 29, and not what floats make of it
    cut = np.minimum(cut, np.maximum(holders - 1, 0) // 2)
    rank = np.arange(ranked.shape[1])
    inside = (rank >= cut[:, None]) & (rank < (holders - cut)[:, None])
    means: Numbers = np.where(inside, ranked, 0).sum(1) / np.maximum(holders - 2 * cut, 1)
    return means


class _ByRank:
    """The middle of each entry over its holders. It keeps all updates of the round."""

    def __init__(self, server: Params, middle: Middle, uncovered: str) -> None:
        self._server, self._middle, self._uncovered = server, middle, uncovered
        self._subnets: list[Subnet] = []

    def add(self, subnet: Subnet, weight: float) -> None:
        """Keep one client's network; the weight plays no part."""
        self._subnets.append(subnet)

    def result(self) -> Params:
        """Return the middle of each entry; the server's network if nobody has answered."""
        if not self._subnets:
            return self._server
        names, masks = self._subnets[0].params, self._subnets[0].mask
        middles = {name: _tensor(self._subnets, name, self._middle) for name in names}
        holders: HolderWeights = {name: self._holders(name) if name in masks else 1.0 for name in names}
        return settled(middles, holders, self._server, self._uncovered)

    def _holders(self, name: str) -> Tensor:
        """Return the number of holders of each entry of a tensor."""
        return torch.stack([subnet.mask[name] for subnet in self._subnets]).sum(0)


def _tensor(subnets: Sequence[Subnet], name: str, middle: Middle) -> Tensor:
    """Return the middle of one tensor's entries; in double precision, where single ones cannot overflow."""
    values = [subnet.params[name] for subnet in subnets]
    masks = [subnet.mask[name].reshape(-1) if name in subnet.mask else None for subnet in subnets]
    if values[0].is_complex():
        return torch.complex(*(_middle([getattr(v, part) for v in values], masks, middle) for part in ("real", "imag")))
    return _middle(values, masks, middle)


def _middle(tensors: Sequence[Tensor], masks: Sequence[Tensor | None], middle: Middle) -> Tensor:
    """Return the middle of the entries of one real tensor, piece by piece; where the clients agree, the value they agree on."""
    values = [tensor.reshape(-1) for tensor in tensors]
    middles = torch.empty(values[0].numel(), dtype=torch.float64)
    for start in range(0, len(middles), CHUNK):
        chunk = slice(start, start + CHUNK)
        chunks_of_masks = [None if mask is None else mask[chunk] for mask in masks]
        ranked, holders = _ranked([value[chunk] for value in values], chunks_of_masks)
        least, most = ranked[:, 0], np.take_along_axis(ranked, np.maximum(holders - 1, 0)[:, None], axis=1)[:, 0]
        with np.errstate(invalid="ignore"):  # of infinite numbers that are not alike; zeros have two signs
            middles[chunk] = torch.from_numpy(np.where((least == most) & (least != 0), least, middle(ranked, holders)))
    return middles.view(tensors[0].shape)


def _ranked(values: Sequence[Tensor], masks: Sequence[Tensor | None]) -> tuple[Numbers, Counts]:
    """Return each entry's values by rank, those of clients that do not have it last; and the number of its holders."""
    stacked = torch.stack([value.double() for value in values], dim=1)
    if masks[0] is None:
        holders = np.full(len(stacked), len(values))
    else:
        alive = torch.stack([mask for mask in masks if mask is not None], dim=1)
        stacked, holders = stacked.masked_fill(~alive, torch.inf), alive.sum(1).numpy()
    return np.sort(stacked.numpy(), axis=1), holders
