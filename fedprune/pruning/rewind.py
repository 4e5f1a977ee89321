"""Rewinding: the weights and the position in training from which the survivors go on after a prune event.

A rewind is (mask, anchors, draws) -> Rewound. mask: the entries that the event has left alive. anchors: the parameters that the
run remembers, by the clock at which they were taken. draws: the sources of random numbers. A rewind covers parameters and
buffers, the position of the learning rate and the data order (the clock). Where the weights are replaced, optimizers start
fresh, also those that clients would keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fedprune.capabilities import named
from fedprune.errors import ConfigError, RunError
from fedprune.precision import wide
from fedprune.tensors import unlike
from fedprune.types import Mask, Params, Plan

Anchors = Mapping[int, Params]


@dataclass(frozen=True)
class Draws:
    """The sources of random numbers of a rewind.

    fresh: () -> a whole new initialisation. generator: the name of a tensor -> a seeded generator. began: the mask of the
    ticket that the run started from; tensors without a name in it were alive at the start.
    """

    fresh: Callable[[], Params]
    generator: Callable[[str], torch.Generator]
    began: Mask = field(default_factory=dict)


class Rewound(NamedTuple):
    """The parameters to train from, before masking (None: as they are), and the clock to go on with (None: as it is)."""

    params: Params | None
    clock: int | None


class Rewind(ABC):
    """The base of all options.

    round: the round to which it goes back. goes_back: whether it does anything at all. replaces_weights: whether survivors get
    other weights than those that they were trained to. replaces_start: whether the network then no longer starts from the
    weights that the run began with.
    """

    round: int = 0
    goes_back: bool = True
    replaces_weights: bool = True
    replaces_start: bool = False

    @property
    def anchor(self) -> int | None:
        """The clock whose parameters the run must remember for this rewind, or None."""
        return None

    @abstractmethod
    def __call__(self, mask: Mask, anchors: Anchors, draws: Draws) -> Rewound: ...

    def problems(self, plan: Plan) -> list[str]:
        """Return why the rewind cannot follow the events of this plan, each with what to choose instead."""
        first = min((event.round for event in plan.events), default=plan.rounds)
        if not plan.events or self.round <= first:
            return []
        return [
            f"rewind.round={self.round} comes after the first prune event, which is after {first} rounds: "
            f"choose rewind.round={first} or less, or rewind=init"
        ]


def rewound(rewind: Rewind, mask: Mask, anchors: Anchors, draws: Draws, params: Params) -> Rewound:
    """Return what an option, which may be anybody's, goes back to. Raises RunError if it gives no network like `params`."""
    answer: object = rewind(mask, anchors, draws)
    told = f"rewind, {named(rewind)}: it"
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise RunError(f"{told} gives {answer!r:.60}: return fedprune.pruning.rewind.Rewound(params, clock), or (None, None)")
    weights, clock = answer
    wrong = unlike(weights, params) if weights is not None else None
    if wrong is not None:
        raise RunError(f"{told} {wrong}: return all tensors of the network, as those in anchors, or None to keep them")
    if clock is not None and (not isinstance(clock, int) or clock < 0):
        raise RunError(f"{told} goes on from clock {clock!r:.40}: return a round from 0, or None")
    return Rewound(weights, clock)


@dataclass(frozen=True)
class Keep(Rewind):
    """Do not rewind: fine-tune from the trained weights. Han et al. 2015."""

    goes_back = False
    replaces_weights = False

    def __call__(self, mask: Mask, anchors: Anchors, draws: Draws) -> Rewound:
        return Rewound(None, None)


@dataclass(frozen=True)
class Early(Rewind):
    """Go back to the weights after `round` rounds: 0 is the lottery ticket (Frankle & Carbin 2019), more is late rewinding.

    Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis".
    """

    round: int = 0

    def __post_init__(self) -> None:
        _check_round(self.round)

    @property
    def anchor(self) -> int:
        return self.round

    def __call__(self, mask: Mask, anchors: Anchors, draws: Draws) -> Rewound:
        return Rewound(anchors[self.round], self.round)


@dataclass(frozen=True)
class LearningRate(Rewind):
    """Keep the trained weights, and set the learning rate back to where it was after `round` rounds.

    Renda et al. 2020, "Comparing rewinding and fine-tuning in neural network pruning". Cohorts and data order follow the clock,
    and go back, too.
    """

    round: int = 0
    replaces_weights = False

    def __post_init__(self) -> None:
        _check_round(self.round)

    def __call__(self, mask: Mask, anchors: Anchors, draws: Draws) -> Rewound:
        return Rewound(None, self.round)


@dataclass(frozen=True)
class RandomReinit(Rewind):
    """Draw a new initialisation under the same mask: the control of the lottery ticket papers."""

    replaces_start = True

    def __call__(self, mask: Mask, anchors: Anchors, draws: Draws) -> Rewound:
        return Rewound(draws.fresh(), 0)


Values = Callable[[Tensor, Tensor, Tensor, torch.Generator, Tensor], Tensor]
"""(initial values, mask of now, values of a new initialisation, generator, mask of the start) -> the values to go on with. All
have a tensor's shape."""


@dataclass(frozen=True)
class Replaced(Rewind):
    """Go back to the start, with other values for the survivors. Zhou et al.

    2019 ("Deconstructing lottery tickets"), section 4.1. This separates the effect of a ticket's initial values from the effect
    of their signs and of the mask. keep_signs: the survivors get the signs that they had at the start. Biases, normalisation
    and buffers are those of the start.
    """

    values: Values
    keep_signs: bool
    anchor: int = 0
    replaces_start = True

    def __call__(self, mask: Mask, anchors: Anchors, draws: Draws) -> Rewound:
        start, fresh = anchors[self.anchor], draws.fresh()
        others = {
            name: self.values(start[name], alive, fresh[name], draws.generator(name), draws.began.get(name, EVERYTHING))
            for name, alive in mask.items()
        }
        if self.keep_signs:
            others = {name: value.abs().copysign(start[name]) for name, value in others.items()}
        return Rewound(start | others, 0)


EVERYTHING = torch.tensor(True)
"""A mask with nothing dead, which broadcasts to any shape."""


def reinit(initial: Tensor, alive: Tensor, fresh: Tensor, generator: torch.Generator, began: Tensor = EVERYTHING) -> Tensor:
    """Return new values from the distribution of the initialisation."""
    return fresh


def shuffle(initial: Tensor, alive: Tensor, fresh: Tensor, generator: torch.Generator, began: Tensor = EVERYTHING) -> Tensor:
    """Return the survivors' initial values in another order, within the layer."""
    survivors = initial[alive]
    shuffled = initial.clone()
    shuffled[alive] = survivors[torch.randperm(len(survivors), generator=generator)]
    return shuffled


def constant(initial: Tensor, alive: Tensor, fresh: Tensor, generator: torch.Generator, began: Tensor = EVERYTHING) -> Tensor:
    """Return one number with random signs: the standard deviation (divided by n) of the layer's initial values.

    Entries that have died since count. Entries that were dead in the ticket that the run started from do not.
    """
    values = initial[began.expand(initial.shape)]
    deviation = (wide(values) - wide(values).mean()).square().mean().sqrt().nan_to_num()
    signs = torch.randint(2, initial.shape, generator=generator) * 2 - 1
    return (deviation * signs.to(deviation)).to(initial.dtype)


def _check_round(round: int) -> None:
    if round < 0:
        raise ConfigError([f"rewind.round={round} must not be negative"])
