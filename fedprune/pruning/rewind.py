"""Rewind: what the survivors restart from after a prune event.

Every rewind is (trained, anchors, fresh) -> Rewound: `trained` the parameters at the event, `anchors` those remembered by
clock, `fresh` a function that draws a new initialisation. A rewind covers parameters and buffers, the position of the
learning rate and the data order (the clock); optimizers start fresh in any case. `anchor` is the clock whose parameters it
needs remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fedprune.errors import ConfigError
from fedprune.types import Params


class Rewind(Protocol):
    """What all options have in common."""

    @property
    def anchor(self) -> int | None:
        """The clock whose parameters must be remembered for it, or None."""

    def __call__(self, trained: Params, anchors: Mapping[int, Params], fresh: Callable[[], Params]) -> Rewound: ...


class Rewound(NamedTuple):
    """The parameters to train from (before masking), and the clock to go on with (None: as it is)."""

    params: Params
    clock: int | None


@dataclass(frozen=True)
class Keep:
    """No rewinding: fine-tune from the trained weights. Han et al. 2015."""

    anchor: int | None = None

    def __call__(self, trained: Params, anchors: Mapping[int, Params], fresh: Callable[[], Params]) -> Rewound:
        return Rewound(trained, None)


@dataclass(frozen=True)
class Early:
    """Back to the weights after `round` rounds: 0 is the lottery ticket (Frankle & Carbin 2019), more is late rewinding.

    Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis".
    """

    round: int = 0

    def __post_init__(self) -> None:
        if self.round < 0:
            raise ConfigError([f"rewind.round={self.round} must not be negative"])

    @property
    def anchor(self) -> int:
        return self.round

    def __call__(self, trained: Params, anchors: Mapping[int, Params], fresh: Callable[[], Params]) -> Rewound:
        return Rewound(anchors[self.round], self.round)


@dataclass(frozen=True)
class RandomReinit:
    """A new random initialisation under the same mask: the lottery ticket papers' control."""

    anchor: int | None = None

    def __call__(self, trained: Params, anchors: Mapping[int, Params], fresh: Callable[[], Params]) -> Rewound:
        return Rewound(fresh(), 0)
