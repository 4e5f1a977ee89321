"""Labels of a user's examples: classes are numbered and named; real numbers, and several labels of an example, stay."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedprune.data.own.columns import shown
from fedprune.data.own.examples import Examples
from fedprune.errors import DataError

log = logging.getLogger(__name__)


class Labels(NamedTuple):
    """Labels, the number of the network's outputs, and the names of the classes (() if they have none)."""

    y: Tensor
    classes: int
    names: tuple[str, ...] = ()


def labels_of(examples: Examples, renumber: bool, name: str) -> Labels:
    """Return the labels of all examples. renumber: classes are numbered in the order of their values: of whole numbers, also
    if they are stored as floats, and of one-hot rows.

    Whole numbers 0 and 1 in rows [N, K] that are no places of the input are several labels of an example. Raises DataError for
    whole numbers that are no classes from 0.
    """
    if examples.words:
        words, numbers = np.unique(np.array(examples.words), return_inverse=True)
        log.info("data=%s: classes %s", name, ", ".join(f"{number} {word}" for number, word in enumerate(words)))
        return Labels(torch.from_numpy(numbers), len(words), tuple(map(str, words)))
    y = _from_one_hot(examples.y) if renumber else examples.y
    if y.is_floating_point() and not renumber:
        return Labels(y, y[0].numel())
    if _several(y, examples.x):
        return Labels(y.float(), y.shape[1])
    present = y.unique()
    if renumber:
        _require_whole(present, name)
        return Labels(torch.searchsorted(present, y), len(present), tuple(str(int(value)) for value in present))
    highest = int(present[-1])
    if int(present[0]) < 0 or (y.dim() == 1 and len(present) != highest + 1):
        values = ", ".join(map(str, present[:6].tolist())) + (", ..." if len(present) > 6 else "")
        raise DataError(
            f"data={name}: labels are {values}, {len(present)} different ones, and classes are numbered from 0 to "
            f"{len(present) - 1}: type data.renumber=true, which gives them these numbers in their order"
        )
    return Labels(y, highest + 1)


def require_known(labels: Labels, held_out: Tensor, name: str) -> None:
    """Raise DataError if only test examples have some class."""
    if labels.y.is_floating_point() or labels.y.dim() > 1:
        return
    unknown = sorted({*labels.y[held_out].tolist()} - {*labels.y[~held_out].tolist()})
    if unknown:
        names = shown(labels.names[number] if labels.names else str(number) for number in unknown)
        raise DataError(
            f"data={name}: only test examples have class {names}, and nobody could learn it: give the training set examples of "
            "it, or type data.test=null, and a fifth of the training examples is tested on"
        )


def _from_one_hot(y: Tensor) -> Tensor:
    """Return the class of each one-hot row; other labels as they are."""
    one_hot = y.dim() == 2 and bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all())
    return y.argmax(1) if one_hot else y


def _several(y: Tensor, x: Tensor) -> bool:
    """Return whether labels are rows of 0 and 1, and no places of the input."""
    return y.dim() == 2 and y.shape[1:] != x.shape[1:] and bool(((y == 0) | (y == 1)).all())


def _require_whole(present: Tensor, name: str) -> None:
    if not torch.equal(present, present.round()):
        raise DataError(
            f"data={name}: labels are real numbers, such as {present[present != present.round()][0]:.4g}, and no classes: type "
            "data.renumber=false local=regression"
        )
