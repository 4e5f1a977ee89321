"""The best of many scores, in exact numbers. Ties are settled the same way every time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedprune.precision import wide
from fedprune.types import Mask, Scores

SAMPLE = 1 << 16  # values that are sorted to guess where the cut lies
CHUNK = 1 << 18  # values that are handled at a time, where the work takes more memory than the values


def nearest(x: float) -> int:
    """Return the nearest integer, halves up, unharmed by the float error of products such as 0.29 * 100 or 0.35 * 10."""
    return math.floor(x + 0.5 + 1e-9)


def how_many(true: Tensor) -> int:
    """Return the number of True entries. torch's own sum would make an int64 of each entry first."""
    return int(np.count_nonzero(true.numpy()))


def keep_best(scores: Scores, number: int) -> Mask:
    """Keep exactly the `number` highest of all these scores (fewer only where the rest is -inf).

    Ties go to the lower flat index of the alphabetically first name. O(n), without a copy of the scores.
    """
    flat = {name: wide(scores[name]).reshape(-1) for name in sorted(scores)}
    if len({score.dtype for score in flat.values()}) > 1:  # a cut between two floats of one layer may be a float of another
        flat = {name: score.double() for name, score in flat.items()}
    cut = _highest(list(flat.values()), number)
    kept = {name: score > cut for name, score in flat.items()}
    left = number - sum(how_many(best) for best in kept.values())
    for name, score in flat.items():
        left -= _add_ties(kept[name], score, cut, left) if left > 0 and cut > -math.inf else 0
    return {name: kept[name].view(score.shape) for name, score in scores.items()}


def _add_ties(kept: Tensor, scores: Tensor, cut: float, most: int) -> int:
    """Set the first `most` places of `kept` where the score is `cut`, in place. Return their number."""
    number = 0
    for part, chosen in zip(scores.split(CHUNK), kept.split(CHUNK), strict=True):
        ties = torch.nonzero(part == cut).squeeze(1)[: most - number]
        chosen[ties] = True
        number += len(ties)
        if number == most:
            break
    return number


def _highest(parts: list[Tensor], number: int) -> float:
    """Return the `number`-th highest value of all parts; -inf if there are no more than that, inf if none is wanted.

    A sorted sample brackets it, and only values in the bracket are ranked. If the bracket misses it, all values are.
    """
    living = sum(how_many(part > -math.inf) for part in parts)
    if number <= 0 or number >= living:
        return math.inf if number <= 0 else -math.inf
    if living <= SAMPLE:  # to sort the sample would be to sort them all
        return _ranked(parts, number)
    low, high = _bracket(parts, number / living)
    above = sum(how_many(part > high) for part in parts)
    between = np.concatenate([part.numpy()[((part > low) & (part <= high)).numpy()] for part in parts])
    if not above < number <= above + len(between):
        return _ranked(parts, number)
    place = len(between) - (number - above)
    between.partition(place)
    return float(between[place])


def _ranked(parts: list[Tensor], number: int) -> float:
    """Return the `number`-th highest of all values that are not -inf, without a sample."""
    living = np.concatenate([part.numpy()[(part > -math.inf).numpy()] for part in parts])
    place = len(living) - number
    living.partition(place)
    return float(living[place])


def _bracket(parts: list[Tensor], fraction: float) -> tuple[float, float]:
    """Return (low, high): the least of the highest `fraction` of the living is almost surely above low and at most high."""
    step = sum(len(part) for part in parts) // SAMPLE | 1  # odd: out of step with the rows of most layers
    sample = np.concatenate([part[::step].numpy() for part in parts])
    sample = np.sort(sample[sample > -math.inf])
    place, margin = (1 - fraction) * len(sample), 2 * math.sqrt(len(sample)) + 1  # four standard deviations at least
    above, below = math.ceil(place + margin), math.floor(place - margin)
    # Ties with the lower bound belong to the bracket, so it is the next value below them.
    below = int(np.searchsorted(sample, sample[below])) - 1 if below > 0 else -1
    return float(sample[below]) if below >= 0 else -math.inf, float(sample[above]) if above < len(sample) else math.inf


def keep_best_of_each(scores: Tensor, number: int, group: int) -> Tensor:
    """Keep the `number` highest of every `group` consecutive scores of the last dimension, a multiple of it; ties as above."""
    kept, rows = torch.zeros(scores.shape, dtype=torch.bool), max(CHUNK // group, 1)
    for groups, chosen in zip(scores.reshape(-1, group).split(rows), kept.view(-1, group).split(rows), strict=True):
        best = groups.sort(dim=1, descending=True, stable=True).indices[:, :number]
        chosen.scatter_(1, best, True).logical_and_(groups > -math.inf)
    return kept
