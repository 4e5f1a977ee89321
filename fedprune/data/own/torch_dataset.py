"""Read any torch data set as one of ours: `data=dataset` with a `_target_` for the training and for the test set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedprune.data.datasets import Dataset, fifth_held_out
from fedprune.data.own.examples import Examples, Indexed, read
from fedprune.data.own.labels import Labels, labels_of, require_known
from fedprune.data.pixels import moments
from fedprune.errors import DataError

log = logging.getLogger(__name__)


def torch_dataset(
    train: Iterable[object] | Indexed | None = None,
    test: Iterable[object] | Indexed | None = None,
    users: str | None = None,
    renumber: bool = False,
    name: str = "dataset",
    missing: str = "stop",
) -> Dataset:
    """Return the examples of a torch.utils.data.Dataset, or of anything that gives pairs (input, label), read once.

    test: the test set; None: a fifth of `train`, of every class its share, always the same. users: the attribute of `train`
    that says whose each example is, for partition=natural. renumber: give labels that are not 0, 1, 2, ... these numbers, in
    their order (also whole numbers that are stored as floats, and one-hot rows). missing: `stop`, or `drop` to leave out
    examples with NaN or infinite numbers. Names of classes are the labels themselves if they are words, or the attribute
    `classes` of the training set. Bytes of images are standardised per channel by the training examples; other inputs are taken
    as they are.

    Raises DataError for what does not fit, with what to type.
    """
    if train is None:
        raise DataError("data=dataset needs a data set: type +data.train._target_=MODULE.CLASS, with its arguments beside it")
    for key, given in {"data.train": train, "data.test": test}.items():
        if isinstance(given, str):
            raise DataError(f"{key}={given} is a text and no data set: type +{key}._target_={given}")
        if given is not None and not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
            raise DataError(f"{key} is a {type(given).__name__} and no data set: leave out {key}._partial_, or name a class")
    owners = _owners(train, users) if users else None
    held_out = None if test is None else read(test, "data.test")
    return assembled(read(train, "data.train"), held_out, owners, renumber, name, missing, _class_names(train))


def _class_names(train: object) -> Sequence[object]:
    """Return the names of classes that a training set declares, as those of torchvision do."""
    names: object = getattr(train, "classes", ())
    return names if isinstance(names, (list, tuple)) else ()


def assembled(
    train: Examples,
    test: Examples | None,
    owners: Sequence[object] | None,
    renumber: bool,
    name: str,
    missing: str = "stop",
    class_names: Sequence[object] = (),
) -> Dataset:
    """Make a data set of examples. owners: the user of each training example. class_names: of labels that are numbers."""
    train, owners = _without_missing(train, owners, missing, "data.train")
    if test is not None:
        test, _ = _without_missing(test, None, missing, "data.test")
    whole, held_out = _joined(train, test)
    labels = _named(labels_of(whole, renumber, name), class_names)
    y = labels.y
    if held_out is not None:
        require_known(labels, held_out, name)
    else:
        strata = torch.zeros(len(y), dtype=torch.int64) if y.is_floating_point() or y.dim() > 1 else y
        held_out = fifth_held_out(strata)
    x = whole.x[~held_out]
    mean, std = moments(x) if x.dtype == torch.uint8 else ((), ())
    groups, names = _groups(owners, ~held_out[: len(train.x)], name)
    log.info("data=%s: %d examples of shape %s to train on, %d to test on", name, len(x), [*x.shape[1:]], int(held_out.sum()))
    parts = (x, y[~held_out], whole.x[held_out], y[held_out])
    return Dataset(name, *parts, labels.classes, mean=mean, std=std, groups=groups, users=names, class_names=labels.names)


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


def _named(labels: Labels, names: Sequence[object]) -> Labels:
    """Return the labels with these names of classes, if they have none and there is one for each."""
    texts = tuple(str(name) for name in names)
    fits = not labels.y.is_floating_point() and len(texts) == labels.classes
    return labels._replace(names=texts) if fits and not labels.names else labels


def _without_missing(
    examples: Examples, owners: Sequence[object] | None, missing: str, key: str
) -> tuple[Examples, Sequence[object] | None]:
    """Return the examples all of whose numbers are finite, and their users. Raises DataError unless `missing` is `drop`."""
    if missing not in ("stop", "drop"):
        raise DataError(f"data.missing={missing}: type data.missing=stop or data.missing=drop")
    whole = _finite(examples.x) & (_finite(examples.y) if len(examples.y) else torch.tensor(True))
    if bool(whole.all()):
        return examples, owners
    gaps, first = int((~whole).sum()), int((~whole).nonzero()[0])
    if missing == "stop":
        raise DataError(
            f"{key}: {gaps} of {len(whole)} examples have numbers that are NaN or infinite, the first is example {first}: fill "
            "them in, or type data.missing=drop to leave out these examples"
        )
    if gaps == len(whole):
        raise DataError(f"data.missing=drop leaves no example of {key}, since every one has a number that is NaN or infinite")
    kept = whole.nonzero().flatten().tolist()
    words = tuple(examples.words[number] for number in kept) if examples.words else ()
    y = examples.y[whole] if len(examples.y) else examples.y
    there = owners is not None and len(owners) == len(whole)  # else it is told where users are numbered
    return Examples(examples.x[whole], y, words), [owners[number] for number in kept] if owners and there else owners


def _finite(values: Tensor) -> Tensor:
    """Return of each example whether all its numbers are finite."""
    return torch.isfinite(values).flatten(1).all(1) if values.dim() > 1 else torch.isfinite(values)


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
