"""Gates: the conditions that a prune event waits for, beyond its round.

A condition is (outcomes, by the names of its arguments) -> whether the event may happen now. pruning/evidence lists the
outcomes. No outcome is ever measured on test data. str(condition) names the condition for the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedprune.errors import ConfigError
from fedprune.pruning.mask import count
from fedprune.types import Condition, Mask


@dataclass(frozen=True)
class Accurate(Condition):
    """Once this fraction of the validation examples is right. Li et al. 2021 (LotteryFL); Vahidian et al. 2021 (Sub-FedAvg).

    Both papers' code looks at test data; ours never does.
    """

    accuracy: float
    looser = "a lower when.accuracy"

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise ConfigError([f"when.accuracy={self.accuracy} is a fraction of the validation examples: from 0 to 1"])

    def __call__(self, val_accuracy: float) -> bool:
        return val_accuracy >= self.accuracy

    def __str__(self) -> str:
        return f"val accuracy >= {self.accuracy:g}"


@dataclass(frozen=True)
class Bound:
    """A bound of the task's own metric (LocalModule.metric): `at_least` where larger is better, else `at_most`."""

    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ConfigError(
                [
                    f"when.at_least={_typed(self.at_least)} and when.at_most={_typed(self.at_most)}: set one of them, to a "
                    "value of the task's own metric, such as when.at_least=0.5 (larger is better) or when.at_most=0.5"
                ]
            )

    @property
    def larger_is_better(self) -> bool:
        """True if the bound is a lower one."""
        return self.at_least is not None

    @property
    def value(self) -> float:
        """The bound itself."""
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        return bounds[0]  # there is exactly one

    def __call__(self, metric: float) -> bool:
        return metric >= self.value if self.larger_is_better else metric <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.larger_is_better else '<='} {self.value:g}"

    def problems(self, metric: str, larger_is_better: bool) -> list[str]:
        """Return a problem if the metric is bounded from the side on which it gets worse, else nothing."""
        if self.larger_is_better == larger_is_better:
            return []
        right, wrong = ("at_least", "at_most") if larger_is_better else ("at_most", "at_least")
        better = "larger" if larger_is_better else "smaller"
        return [
            f"of {metric} {better} is better, and when.{wrong} waits for it to get worse: "
            f"set when.{wrong}=null when.{right}={self.value:g}"
        ]


@dataclass(frozen=True)
class Reached(Condition):
    """Once the task's own metric on validation data is as good as `bound`. As Accurate, for any task."""

    bound: Bound
    looser = "a lower when.at_least or a higher when.at_most"

    def __call__(self, val_metric: float) -> bool:
        return self.bound(val_metric)

    def problems(self, metric: str, larger_is_better: bool) -> list[str]:
        return self.bound.problems(metric, larger_is_better)

    def __str__(self) -> str:
        return f"val metric {self.bound}"


@dataclass(frozen=True)
class Settled(Condition):
    """Once the criterion would choose almost the mask that it would have chosen a round before. You et al. 2020.

    In the paper ("Drawing early-bird tickets") it looks back five epochs, and divides by all channels; here by the living ones.

    Not Sub-FedAvg's gate, which prunes while the mask is still moving.
    """

    shift: float
    asks = 2
    looser = "a higher when.shift"

    def __post_init__(self) -> None:
        if not self.shift >= 0:
            raise ConfigError([f"when.shift={self.shift} is a fraction of the living entries: 0 or more"])

    def __call__(self, mask_shift: float) -> bool:
        return mask_shift <= self.shift

    def __str__(self) -> str:
        return f"mask shift <= {self.shift:g}"


@dataclass(frozen=True)
class Moving(Condition):
    """While the mask that a client would choose still moves within its round, from the first to the last epoch, and only if the
    pruned network is accurate. Vahidian et al. 2021 (Sub-FedAvg): more than `shift`, and at least `accuracy`.

    The paper's distance is the mean over layers of the entries that differ; here it is as for Settled, of all layers together.
    """

    shift: float
    accuracy: float
    looser = "a lower when.shift or when.accuracy"

    def __post_init__(self) -> None:
        Accurate(self.accuracy)
        Settled(self.shift)

    def __call__(self, mask_shift: float, pruned_accuracy: float) -> bool:
        return mask_shift > self.shift and pruned_accuracy >= self.accuracy

    def __str__(self) -> str:
        return f"mask shift > {self.shift:g} and val accuracy when pruned >= {self.accuracy:g}"


@dataclass(frozen=True)
class MovingReached(Condition):
    """While the mask moves, as Moving, and only if the task's own metric of the pruned network is as good as `bound`."""

    shift: float
    bound: Bound
    looser = "a lower when.shift, a lower when.at_least or a higher when.at_most"

    def __post_init__(self) -> None:
        Settled(self.shift)

    def __call__(self, mask_shift: float, pruned_metric: float) -> bool:
        return mask_shift > self.shift and self.bound(pruned_metric)

    def problems(self, metric: str, larger_is_better: bool) -> list[str]:
        return self.bound.problems(metric, larger_is_better)

    def __str__(self) -> str:
        return f"mask shift > {self.shift:g} and val metric when pruned {self.bound}"


def _typed(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def shift(before: Mask, after: Mask, living: Mask) -> float:
    """Return the normalised Hamming distance of two masks: the number of entries that differ / the number that live.

    living: the mask out of which both are chosen; the distance is 0.0 if nothing lives. It is at most 1, and at most
    2 min(d, 1 - d) for masks of a fraction d of the living.
    """
    differ = {name: alive ^ after[name] for name, alive in before.items()}
    return count(differ) / max(count(living), 1)
