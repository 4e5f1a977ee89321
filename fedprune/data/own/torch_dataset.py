"""Read any torch data set as one of ours: `data=dataset` with a `_target_` for the training and for the test set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedprune.data.datasets import Dataset, fifth_held_out
from fedprune.data.own.examples import Examples, Indexed, read
from fedprune.data.pixels import moments
from fedprune.errors import DataError

log = logging.getLogger(__name__)


def torch_dataset(
    train: Iterable[object] | Indexed | None = None,
    test: Iterable[object] | Indexed | None = None,
    users: str | None = None,
    renumber: bool = False,
    name: str = "dataset",
) -> Dataset:
    """Return the examples of a torch.utils.data.Dataset, or of anything that gives pairs (input, label), read once.

    test: the test set; None: a fifth of `train`, of every class its share, always the same. users: the attribute of `train`
    that says whose each example is, for partition=natural. renumber: give labels that are not 0, 1, 2, ... these numbers, in
    their order. Bytes of images are standardised per channel by the training examples; other inputs are taken as they are.

    Raises DataError for what does not fit, with what to type.
    """
    if train is None:
        raise DataError("data=dataset needs a data set: type +data.train._target_=MODULE.CLASS, with its arguments beside it")
    for key, given in {"data.train": train, "data.test": test}.items():
        if given is not None and not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
            raise DataError(f"{key} is a {type(given).__name__} and no data set: leave out {key}._partial_, or name a class")
    owners = _owners(train, users) if users else None
    return assembled(read(train, "data.train"), None if test is None else read(test, "data.test"), owners, renumber, name)


def assembled(train: Examples, test: Examples | None, owners: Sequence[object] | None, renumber: bool, name: str) -> Dataset:
    """Make a data set of examples. owners: the user of each training example."""
    whole, held_out = _joined(train, test)
    y, classes = _classes(whole, renumber, name)
    if held_out is None:
        strata = torch.zeros(len(y), dtype=torch.int64) if y.is_floating_point() or y.dim() > 1 else y
        held_out = fifth_held_out(strata)
    x = whole.x[~held_out]
    mean, std = moments(x) if x.dtype == torch.uint8 else ((), ())
    groups, names = _groups(owners, ~held_out[: len(train.x)], name)
    log.info("data=%s: %d examples of shape %s to train on, %d to test on", name, len(x), [*x.shape[1:]], int(held_out.sum()))
    return Dataset(
        name, x, y[~held_out], whole.x[held_out], y[held_out], classes=classes, mean=mean, std=std, groups=groups, users=names
    )


def _joined(train: Examples, test: Examples | None) -> tuple[Examples, Tensor | None]:
    """Return all examples, and which are test examples (None: nobody has said)."""
    if test is None:
        return train, None
    for part, one, other in (("inputs", train.x, test.x), ("labels", train.y, test.y)):
        if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
            kinds = f"{one.dtype} {list(one.shape[1:])} to train on and {other.dtype} {list(other.shape[1:])} to test on"
            raise DataError(f"data.train and data.test differ: {part} are {kinds.replace('torch.', '')}: make them alike")
    joined = Examples(torch.cat([train.x, test.x]), torch.cat([train.y, test.y]), train.words + test.words)
    return joined, torch.arange(len(joined.x)) >= len(train.x)


def _classes(examples: Examples, renumber: bool, name: str) -> tuple[Tensor, int]:
    """Return the labels, and the number of the network's outputs."""
    if examples.words:
        words, numbers = np.unique(np.array(examples.words), return_inverse=True)
        log.info("data=%s: classes %s", name, ", ".join(f"{number} {word}" for number, word in enumerate(words)))
        return torch.from_numpy(numbers), len(words)
    y = examples.y
    if y.is_floating_point():
        return y, y[0].numel()
    present = y.unique()
    if renumber:
        return torch.searchsorted(present, y), len(present)
    highest = int(present[-1])
    if int(present[0]) < 0 or (y.dim() == 1 and len(present) != highest + 1):
        shown = ", ".join(map(str, present[:6].tolist())) + (", ..." if len(present) > 6 else "")
        raise DataError(
            f"data={name}: labels are {shown}, {len(present)} different ones, and classes are numbered from 0 to "
            f"{len(present) - 1}: type data.renumber=true, which gives them these numbers in their order"
        )
    return y, highest + 1


def _owners(train: object, users: str) -> Sequence[object]:
    owners: Sequence[object] | None = vars(train).get(users, getattr(type(train), users, None))
    if owners is None or isinstance(owners, property):
        raise DataError(f"data.users={users}: the training set has no such attribute: let it have one, with a user per example")
    return owners


def _groups(owners: Sequence[object] | None, training: Tensor, name: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the number of the user of each training example, and the users' names. training: of the examples that have one."""
    if owners is None:
        return None, ()
    if len(owners) != len(training):
        raise DataError(f"data={name}: there are {len(owners)} users for {len(training)} training examples: give one to each")
    users, numbers = np.unique(np.array([str(owner) for owner in owners])[training.numpy()], return_inverse=True)
    return torch.from_numpy(numbers), tuple(str(user) for user in users)
