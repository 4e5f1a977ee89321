"""Scopes that bring densities of their own: a hardware pattern, a threshold, another network's densities.

scope: (unit scores by name, density, shapes of the tensors by name) -> which units to keep; higher = keep, -inf = dead and
       never kept, +inf = protected and kept.
Such a scope also says, before training, which plans it cannot carry out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedprune.errors import ConfigError, Incompatible, RunError
from fedprune.pruning.what.scope import Ends, Pool, Shapes, by_layer, layerwise
from fedprune.pruning.what.top_k import CHUNK, how_many, keep_best_of_each, nearest
from fedprune.storage.checkpoint import read
from fedprune.types import Mask, Plan, Scores


@dataclass(frozen=True)
class NOfM(Pool):
    """Keep the best n of every m consecutive inputs: sparse tensor cores read 2:4. Mishra et al. 2021.

    Consecutive along the second dimension: the inputs of a linear layer, a convolution's input channels at one place of the
    kernel. Ties go to the lower index. The density is n/m and nothing else.
    """

    n: int
    m: int
    own_density = True

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ConfigError([f"what.scope.n={self.n} and what.scope.m={self.m}: n of every m are kept: 1 <= n < m"])

    def __call__(self, units: Scores, density: float, shapes: Shapes) -> Mask:
        """Raise Incompatible, naming them, if there are layers whose width m does not divide."""
        wrong = {name.removesuffix(".weight"): score.shape[1] for name, score in units.items() if score.shape[1] % self.m}
        if wrong:
            widths = ", ".join(f"{name} has {width}" for name, width in wrong.items())
            raise Incompatible(
                f"{self.n} of {self.m} inputs: {widths}, which {self.m} does not divide: "
                f"choose {self._divisor(wrong.values())}what.skip=[{','.join(wrong)}] (beside what is in it)"
            )
        return {name: self._kept(score) for name, score in units.items()}

    def _divisor(self, widths: Iterable[int]) -> str:
        """Return the advice to take a smaller m, where that divides the widths and still leaves inputs out."""
        m = math.gcd(self.m, *widths)
        return f"what.scope.m={m} or " if m > self.n else ""

    def _kept(self, score: Tensor) -> Tensor:
        return keep_best_of_each(score.movedim(1, -1), self.n, self.m).movedim(-1, 1)

    def problems(self, plan: Plan, units: Mapping[str, int]) -> list[str]:
        """Return why this plan cannot be followed with n of m alive at all times, each with what to choose."""
        densities, fixed = [event.density for event in plan.events], self.n / self.m
        if any(event.swap for event in plan.events):
            return [f"{self.n} of {self.m} units are kept at all times, so none can be exchanged: choose how_often=one_shot"]
        if densities and abs(densities[-1] - fixed) > 1e-9:
            return [f"{self.n} of {self.m} units is a density of {fixed:g}, not {densities[-1]:g}: choose density={fixed:g}"]
        if len(densities) > 1:
            return [f"{self.n} of {self.m} units are kept from the first event on: choose how_often=one_shot"]
        return []


@dataclass(frozen=True)
class Threshold(Pool):
    """Keep what scores at least `quality` times the layer's standard deviation. Han et al. 2015.

    The standard deviation is that of the population (divided by n), about zero, of the scores of the layer's living units:
    sqrt(mean(score^2)). With criterion=magnitude and units of one weight that is the deviation of the surviving weights
    themselves, whose mean is close to zero; the paper states neither. Each event measures it anew, on the units that are left.
    The density follows from the threshold; the schedule's densities only say how many events there are.

    quality: for all layers. layers: for single ones ("first", "last" or a name), as the paper picks it by a sensitivity scan.
    """

    quality: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)
    own_density = True
    emerges = "by threshold"

    def __post_init__(self) -> None:
        by_key = {"quality": self.quality} | {f"layers.{name}": quality for name, quality in self.layers.items()}
        for key, quality in by_key.items():
            if not 0 <= quality < math.inf:
                raise ConfigError([f"what.scope.{key}={quality} is a multiple of the standard deviation: 0 or more"])

    def __call__(self, units: Scores, density: float, shapes: Shapes, ends: Ends | None = None) -> Mask:
        quality = dict.fromkeys(units, self.quality) | by_layer(self.layers, tuple(units), ends)
        return {name: (score >= quality[name] * _deviation(score)) & (score > -math.inf) for name, score in units.items()}

    def problems(self, plan: Plan, units: Mapping[str, int]) -> list[str]:
        if any(event.swap for event in plan.events):
            return ["a threshold says what goes and not how much comes back: choose how_often=iterative"]
        return []


def _deviation(score: Tensor) -> float:
    """Return the population's standard deviation about zero of units that are neither dead nor protected; 0.0 of none."""
    living = score.isfinite()
    squares = sum(float(part.double().square().sum()) for part in score.where(living, 0).reshape(-1).split(CHUNK))
    return math.sqrt(squares / max(how_many(living), 1))


@dataclass(frozen=True)
class Like(Pool):
    """Let units compete within their layer, at the layer densities of a saved ticket.

    This control separates the effect of a ticket's densities from the effect of its places. Frankle et al. 2021, "Pruning
    neural networks at initialization".

    At the ticket's density D each layer keeps the ticket's fraction d of its units, to the nearest. Before that, at density
    D^t, it keeps d^t. The final density of a run is the ticket's.

    ticket: the path of a ticket.safetensors, of a network with the same layers.
    """

    ticket: str | None = None
    own_density = True

    def __call__(self, units: Scores, density: float, shapes: Shapes) -> Mask:
        """Raise ConfigError if the file is no ticket, Incompatible if it is one of another network."""
        self._check(shapes)
        sizes = {name: score.numel() for name, score in units.items()}
        stage, fraction = self._stage(density, sizes), self._densities
        return layerwise(units, {name: nearest(fraction[name] ** stage * number) for name, number in sizes.items()})

    def problems(self, plan: Plan, units: Mapping[str, int]) -> list[str]:
        kept, total = sum(self._counts(units).values()), sum(units.values())
        if not plan.events or nearest(plan.events[-1].density * total) == kept:
            return []
        return [f"the ticket {self.ticket} keeps {kept} of {total} units: choose density={kept / total:.8g}"]

    def _stage(self, density: float, sizes: Mapping[str, int]) -> float:
        """Return t of density = D^t; 1 if the nearest number of units is the ticket's, so that a rounded density will do."""
        kept, total = sum(self._counts(sizes).values()), sum(sizes.values())
        return 1.0 if nearest(density * total) == kept else math.log(density) / math.log(kept / total)

    def _counts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {name: nearest(self._densities[name] * number) for name, number in sizes.items()}

    def _check(self, shapes: Shapes) -> None:
        missing = [name.removesuffix(".weight") for name in shapes if name not in self._mask]
        if missing:
            instead = f"what.skip=[{','.join(missing)}]" if len(missing) < len(shapes) else "the model that it was made with"
            raise Incompatible(f"the ticket {self.ticket} has no mask for {', '.join(missing)}: choose {instead}")
        for name, shape in shapes.items():
            if self._mask[name].shape != shape:
                raise Incompatible(
                    f"the ticket {self.ticket} is of another network: its {name} is {_by(self._mask[name].shape)}, here it is "
                    f"{_by(shape)}: choose the model and the data that it was made with"
                )

    @functools.cached_property
    def _densities(self) -> dict[str, float]:
        return {name: int(alive.sum()) / alive.numel() for name, alive in self._mask.items()}

    @functools.cached_property
    def _mask(self) -> Mask:
        if self.ticket is None:
            raise ConfigError(["what.scope.ticket is empty: type the path of an earlier run's ticket.safetensors"])
        path = Path(self.ticket).expanduser()
        if not path.is_file():
            raise ConfigError([f"what.scope.ticket={self.ticket}: no such file; type the path of a ticket.safetensors"])
        try:
            groups, _ = read(path)
        except RunError:
            groups = {}
        mask = groups.get("mask", {})
        if set(groups) != {"params", "mask"} or not all(alive.dtype == torch.bool for alive in mask.values()):
            raise ConfigError(
                [f"what.scope.ticket={self.ticket} is not a ticket of fedprune: type the path of a ticket.safetensors"]
            )
        if not any(alive.any() for alive in mask.values()):
            raise ConfigError([f"what.scope.ticket={self.ticket} has nothing alive: type the path of another ticket"])
        return mask


def _by(shape: torch.Size) -> str:
    return " x ".join(map(str, shape))
