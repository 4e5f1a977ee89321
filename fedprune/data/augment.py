"""Augmentation: random changes of the inputs that clients are trained on, drawn anew for each batch.

It is called on the inputs of a batch as the data set holds them, before they are normalised: bytes [B, C, H, W] of images,
numbers of tables and series. Evaluation, validation and measured evidence never see it. Any callable on such a batch will do,
such as a torch.nn.Module. Its draws from the global generators of torch, numpy and Python are a function of (seed, round,
client); the draws of the training itself stay what they are without it.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.capabilities import declared
from fedprune.errors import ConfigError, RunError
from fedprune.randomness import seeded, seeded_everywhere

Change = Callable[[Tensor], Tensor]
"""The inputs of a batch -> what they are trained as."""


class Augment(ABC):
    """The base of all options.

    acts: whether it changes anything; what does not is not called. moves: whether it moves pixels, so that a label at each of
    them would not be at its place any more. on_cpu: whether all its draws are from torch's generator of the CPU, so that the
    others need not be seeded, which takes 70 microseconds a batch.
    """

    acts: bool = True
    moves: bool = False
    on_cpu: bool = False

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor: ...


class Unchanged(Augment):
    """No augmentation."""

    acts = False

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs as they are."""
        return inputs


@dataclass(frozen=True)
class CropFlip(Augment):
    """Pad images [B, C, H, W] with zeros, cut an H x W piece out of each at a random place, and mirror some from left to right.

    padding: pixels on each side. flip: the probability that an image is mirrored. With 4 and 0.5 it is the usual recipe for
    CIFAR (Lee et al. 2015; He et al. 2016). Raises ConfigError for inputs that are no images of more than `padding` pixels a
    side.
    """

    padding: int = 4
    flip: float = 0.5
    moves = True
    on_cpu = True

    def __post_init__(self) -> None:
        rules = {
            f"data.augment.padding={self.padding} is a number of pixels: 0 or more": self.padding >= 0,
            f"data.augment.flip={self.flip} is a probability: from 0 to 1": 0 <= self.flip <= 1,
        }
        problems = [problem for problem, fine in rules.items() if not fine]
        if problems:
            raise ConfigError(problems)

    def __call__(self, inputs: Tensor) -> Tensor:
        self._require_images(inputs)
        number = len(inputs)
        tops, lefts = torch.randint(2 * self.padding + 1, (2, number))
        return cut(inputs, self.padding, tops, lefts, torch.rand(number) < self.flip)

    def _require_images(self, inputs: Tensor) -> None:
        if inputs.dim() == 4 and min(inputs.shape[2:]) > self.padding:
            return
        shown = f"{list(inputs.shape[1:])}, and it takes images [C, H, W] of more than padding={self.padding} pixels a side"
        smaller = "a smaller data.augment.padding or " if inputs.dim() == 4 else ""
        raise ConfigError([f"data/augment=crop_flip: an example is of shape {shown}: type {smaller}data/augment=none"])


def cut(images: Tensor, padding: int, tops: Tensor, lefts: Tensor, mirrored: Tensor) -> Tensor:
    """Return of each image, with a border of zeros, the piece of its own size at (top, left), mirrored if it says so.

    images: [B, C, H, W]. tops, lefts: int64 [B], from 0 to 2 * padding. mirrored: bool [B].
    """
    number, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    # A gather from flat images takes a fifth of the time that indexing takes in four dimensions.
    flat = places.view(number, 1, height * width).expand(-1, channels, -1).to(images.device)
    return padded.flatten(2).gather(2, flat).view_as(images)


class EachExample(nn.Module):
    """Call a transform on one example after the other, so that each has draws of its own.

    Most transforms of torchvision draw once for a batch. transform: a callable on an example as the data set holds it. Raises
    ConfigError without one.
    """

    def __init__(self, transform: Change | None = None):
        super().__init__()
        self.transform = transform

    def forward(self, inputs: Tensor) -> Tensor:
        if self.transform is None:
            needed = "type +data.augment.transform._target_=MODULE.CLASS, with its arguments beside it"
            raise ConfigError([f"data/augment=each_example needs a transform: {needed}"])
        return torch.stack([self.transform(example) for example in inputs])


def drawing(augment: Change, stream: torch.Generator, device: torch.device) -> Change:
    """Return the augmentation of one client's batches in one round, whose draws begin at one number of the stream for each
    batch. device: of the inputs.

    Raises RunError if it gives inputs of another shape or type.
    """

    if declared(augment, "on_cpu", Augment.on_cpu):
        within = functools.partial(seeded, device=torch.device("cpu"))
    else:
        within = functools.partial(seeded_everywhere, device=device)

    def changed(inputs: Tensor) -> Tensor:
        seed = int(torch.randint(2**63 - 1, (), generator=stream))
        with within(seed), torch.no_grad():
            outputs = augment(inputs)
        wrong = misfit(inputs, outputs)
        if wrong:
            raise RunError(f"data.augment {wrong}")
        return outputs

    return changed


def misfit(inputs: Tensor, outputs: object) -> str | None:
    """Return why outputs cannot be trained in the place of these inputs, with what to do; None if they can."""
    if not isinstance(outputs, Tensor):
        return f"returns a {type(outputs).__name__} and no tensor: let it return the changed inputs of the batch"
    if outputs.shape != inputs.shape:
        given = f"{list(outputs.shape)} for a batch of {list(inputs.shape)}"
        return f"changes the shape of inputs, to {given}: let it return the shape that it is given"
    if outputs.dtype != inputs.dtype:
        kinds = f"{inputs.dtype} to {outputs.dtype}".replace("torch.", "")
        return (
            f"changes the type of inputs, from {kinds}: leave out what converts or normalises (inputs are normalised "
            f"afterwards), or end it with .to({inputs.dtype})"
        )
    return None
