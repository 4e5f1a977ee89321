"""Gates: what a prune event waits for, beyond its round.

Every condition is (outcomes, by the names of its arguments) -> bool: whether the event may happen now. evidence.py lists the
outcomes; none is ever taken from test data. As text, a condition says what it waits for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedprune.errors import ConfigError
from fedprune.pruning.mask import count
from fedprune.types import Mask


@dataclass(frozen=True)
class Accurate:
    """Once this fraction of the validation examples is right. Li et al. 2021 (LotteryFL); Vahidian et al. 2021 (Sub-FedAvg).

    Both papers' code looks at test data; ours never does.
    """

    accuracy: float
    asks: ClassVar[int] = 1
    looser: ClassVar[str] = "a lower when.accuracy"

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise ConfigError([f"when.accuracy={self.accuracy} is a fraction of the validation examples: from 0 to 1"])

    def __call__(self, val_accuracy: float) -> bool:
        return val_accuracy >= self.accuracy

    def __str__(self) -> str:
        return f"val accuracy >= {self.accuracy:g}"


@dataclass(frozen=True)
class Settled:
    """Once the criterion would choose almost the mask that it would have chosen a round before. You et al. 2020.

    In the paper ("Drawing early-bird tickets") it looks back five epochs, and divides by all channels; here by the living ones.

    Not Sub-FedAvg's gate, which prunes while the mask is still moving.
    """

    shift: float
    asks: ClassVar[int] = 2
    looser: ClassVar[str] = "a higher when.shift"

    def __post_init__(self) -> None:
        if not self.shift >= 0:
            raise ConfigError([f"when.shift={self.shift} is a fraction of the living entries: 0 or more"])

    def __call__(self, mask_shift: float) -> bool:
        return mask_shift <= self.shift

    def __str__(self) -> str:
        return f"mask shift <= {self.shift:g}"


@dataclass(frozen=True)
class Moving:
    """While the mask that a client would choose still moves within its round, from the first to the last epoch, and only if the
    pruned network is accurate. Vahidian et al. 2021 (Sub-FedAvg): more than `shift`, and at least `accuracy`.

    The paper's distance is the mean over layers of the entries that differ; here it is as for Settled, of all layers together.
    """

    shift: float
    accuracy: float
    asks: ClassVar[int] = 1
    looser: ClassVar[str] = "a lower when.shift or when.accuracy"

    def __post_init__(self) -> None:
        Accurate(self.accuracy)
        Settled(self.shift)

    def __call__(self, mask_shift: float, pruned_accuracy: float) -> bool:
        return mask_shift > self.shift and pruned_accuracy >= self.accuracy

    def __str__(self) -> str:
        return f"mask shift > {self.shift:g} and val accuracy when pruned >= {self.accuracy:g}"


def shift(before: Mask, after: Mask, living: Mask) -> float:
    """The normalised Hamming distance of two masks: entries in which they differ, by those of `living`, out of which both are
    chosen (0.0 if nothing lives). At most 1, and at most 2 min(d, 1 - d) for masks of a fraction d of the living."""
    differ = {name: alive ^ after[name] for name, alive in before.items()}
    return count(differ) / max(count(living), 1)
