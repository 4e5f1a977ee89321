"""Partitions divide the examples among the clients. Every partition is called as

    (labels: np.ndarray [N] of int, clients: int, rng: np.random.Generator) -> list of `clients` index arrays into labels

The arrays are disjoint and hold every index once (natural: the indices of the groups that were drawn). A partition declares in
`by` what it is called with as `labels`:

    labels    the classes of the examples; data without classes is refused
    targets   the labels as they are, of any type and shape
    groups    the data set's own groups
    nothing   zeros

Its parameters are its fields, and the keys of its yaml. To add one, write a frozen dataclass with `__call__`, here or anywhere,
and a yaml in conf/partition.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np

from fedprune.data.divide import Parts, divide
from fedprune.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Division(ABC):
    """A way to divide the training pool among clients; the settings that all ways share.

    min_examples: each client gets at least so many (train + val + test); a draw that gives fewer is repeated. val, test: the
    fractions of a client's examples that become its own validation and test set. They are rounded down, but a fraction that is
    not zero takes at least one example, and training keeps at least one.
    """

    min_examples: int = 10
    val: float = 0.1
    test: float = 0.1

    remedy: ClassVar[str] = ""  # advice that makes the clients' sizes differ less, in the words of the command line
    by: ClassVar[str] = "labels"  # labels, targets, groups or nothing: see above
    disjoint: ClassVar[bool] = True  # whether no example has two owners
    size: ClassVar[str] = "min_examples"  # the key that says how many examples a client has

    @abstractmethod
    def divide(self, labels: np.ndarray, pool: np.ndarray, clients: int, seed: int) -> Parts:
        """Return (train, val, test) of every client, as indices into the training pool.

        labels: what `by` says, of the whole training pool. pool: the indices that clients may have. Raises DataError if the
        pool cannot be divided as asked.
        """

    @property
    def needed(self) -> int:
        """Return the least number of examples of a client: min_examples, and at least one for each part that is asked for."""
        return max(self.min_examples, 1 + (self.val > 0) + (self.test > 0))

    def __post_init__(self) -> None:
        problems = list(self.problems())
        if problems:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """Return what is wrong with the parameters, in the words of the command line; a subclass adds to the list."""
        fractions = self.val >= 0 and self.test >= 0 and self.val + self.test < 1
        return [
            *unless(self.min_examples >= 0, f"partition.min_examples={self.min_examples} is negative: type 0 or more"),
            *unless(
                fractions,
                f"partition.val={self.val} and partition.test={self.test} are no fractions that leave something to train on: "
                "type two numbers from 0 with a sum below 1, e.g. partition.val=0.1 partition.test=0.1",
            ),
        ]

    def split(self, total: int) -> tuple[int, int, int]:
        """Return the sizes (train, val, test) of a client that has `total` examples."""
        val = share(self.val, total, leave=1 + (self.test > 0))
        test = share(self.test, total, leave=1 + val)
        return total - val - test, val, test

    def __str__(self) -> str:
        common = {field.name for field in fields(Division)}
        values = [f"{name}={value}" for name, value in vars(self).items() if name not in common]
        name = type(self).__name__
        return f"{name}({', '.join(values)})" if values else name


class Partition(Division):
    """A way in which every example belongs to at most one client."""

    @abstractmethod
    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the indices into `labels` that each client gets."""

    def divide(self, labels: np.ndarray, pool: np.ndarray, clients: int, seed: int) -> Parts:
        """Draw by `__call__`, up to 100 times while a client has too few; shuffle and split the examples of each client."""
        return divide(self, labels, pool, clients, seed)


@dataclass(frozen=True)
class Iid(Partition):
    """Every client has the same distribution: all examples are shuffled and dealt out, in sizes equal to within one."""

    by: ClassVar[str] = "nothing"

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        return np.array_split(rng.permutation(len(labels)), clients)


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Label skew: each class is divided among the clients in proportions p ~ Dirichlet(alpha, ..., alpha), drawn per class.

    Small alpha: few classes per client, and unequal sizes; alpha -> infinity: every class in equal parts. The examples of
    class k are shuffled and cut at the rounded cumulative proportions, so the counts are p times the class's size to
    within one. Source: Yurochkin et al. 2019 (and Li et al. 2022, "NIID-Bench"). It is commonly cited as Hsu et al. 2019,
    who draw the other way round: a class mix per client, and all clients of equal size.
    """

    alpha: float = 0.5

    remedy: ClassVar[str] = "raise partition.alpha"

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            owner[members] = np.repeat(np.arange(clients), _counts(rng, clients, self.alpha, len(members)))
        return _by_owner(owner, clients)

    def problems(self) -> list[str]:
        return [*super().problems(), *alpha_problems(self.alpha)]


MOST_SHARDS = 1_000_000
"""Empty shards up to this number are dealt, and clients without examples told by name; more would fill the memory."""


@dataclass(frozen=True)
class Shards(Partition):
    """Label skew: examples sorted by label are cut into clients x classes equal shards, and each client gets `classes` of them.

    Sizes are equal to within `classes` examples. A shard holds one label, and one more for each border between two labels
    that lies inside it. So a client has at most `classes` labels where the shards' borders fall on the labels' (as in the
    paper: 60,000 balanced examples, 200 shards); and otherwise at most 2 x classes, as long as no class is smaller than a
    shard. Within a label the order is random. Source: McMahan et al. 2017, section 3.
    """

    classes: int = 2

    remedy: ClassVar[str] = "lower partition.classes"

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        shuffled = rng.permutation(len(labels))
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        if clients * self.classes > max(len(labels), MOST_SHARDS):
            shards_of = f"partition.classes={self.classes} shards for each of federated.clients={clients}"
            raise DataError(f"{shards_of} are more than the {len(labels)} training examples: {self.remedy}")
        shards = np.array_split(by_label, clients * self.classes)
        hands = rng.permutation(len(shards)).reshape(clients, self.classes)
        return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]

    def problems(self) -> list[str]:
        wrong = f"partition.classes={self.classes} is not a number of shards: type a whole number from 1"
        return [*super().problems(), *unless(self.classes >= 1 and self.classes == int(self.classes), wrong)]


@dataclass(frozen=True)
class QuantitySkew(Partition):
    """Sizes differ, labels do not: sizes are N times p ~ Dirichlet(alpha, ..., alpha), to within one; examples at random.

    Source: Li et al. 2022 ("NIID-Bench", quantity skew).
    """

    alpha: float = 1.0

    remedy: ClassVar[str] = "raise partition.alpha"
    by: ClassVar[str] = "nothing"

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        cuts = np.cumsum(_counts(rng, clients, self.alpha, len(labels)))[:-1]
        return np.split(rng.permutation(len(labels)), cuts)

    def problems(self) -> list[str]:
        return [*super().problems(), *alpha_problems(self.alpha)]


@dataclass(frozen=True)
class Natural(Partition):
    """Clients are the data set's own groups (writers, roles), each with all examples of its group.

    Groups of fewer than min_examples are left out. Of the others `clients` are drawn at random, each with the same chance
    (whatever its size), and numbered in the order of the data set. Raises DataError if there are fewer. Source: Caldas et al.
    2018 (LEAF).
    """

    by: ClassVar[str] = "groups"

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        groups = _by_owner(labels, int(labels.max()) + 1)
        eligible = [group for group in groups if len(group) >= self.needed]
        if clients > len(eligible):
            raise DataError(
                f"federated.clients={clients}: there are {len(eligible)} natural clients with at least {self.needed} examples: "
                f"choose federated.clients={len(eligible)} or fewer{self._or_smaller(groups, clients)}"
            )
        return [eligible[number] for number in np.sort(rng.permutation(len(eligible))[:clients])]

    def _or_smaller(self, groups: list[np.ndarray], clients: int) -> str:
        least = replace(self, min_examples=0).needed
        more = sum(len(group) >= least for group in groups)
        return f", or partition.min_examples={least}, which {more} have" if more >= clients else ""


def share(fraction: float, total: int, leave: int) -> int:
    """Return a fraction of `total`, rounded down; if it is not zero at least 1, and at most what leaves `leave`."""
    if fraction == 0:
        return 0
    return min(max(1, math.floor(fraction * total + 1e-9)), total - leave)  # 0.29 * 100 is a hair below 29


def _counts(rng: np.random.Generator, clients: int, alpha: float, total: int) -> np.ndarray:
    """Return how many of `total` each client gets, in Dirichlet proportions; the sum is exact."""
    cumulative = np.cumsum(rng.dirichlet(np.full(clients, alpha)))
    cuts = np.rint(cumulative[:-1] * total).astype(np.int64)
    return np.diff(cuts, prepend=0, append=total)


def _by_owner(owner: np.ndarray, clients: int) -> list[np.ndarray]:
    """Return the indices that each client owns, from the owner of each index."""
    sizes = np.bincount(owner, minlength=clients)
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])


def alpha_problems(alpha: float) -> list[str]:
    """Return what is wrong with partition.alpha."""
    return unless(0 < alpha < float("inf"), f"partition.alpha={alpha} is not a positive number: type e.g. partition.alpha=0.5")


def unless(fine: bool, problem: str) -> list[str]:
    """Return the problem as a list, or [] if all is fine."""
    return [] if fine else [problem]
