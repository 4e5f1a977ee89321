"""Examples of anybody's data set, read once into tensors: pairs (input, label) of any types that become numbers."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedprune.errors import DataError

BYTES_OF_IMAGE = (2, 3)
"""The dimensions of an input of bytes that is an image: [H, W], or [C, H, W]."""


@runtime_checkable
class Indexed(Protocol):
    """Examples by their numbers, as a torch.utils.data.Dataset has them."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> object: ...


@dataclass(frozen=True)
class Examples:
    """Inputs [N, ...] and labels [N] or [N, ...]. words: labels as texts, where they are no numbers; then `y` is empty."""

    x: Tensor
    y: Tensor
    words: tuple[str, ...] = ()


def read(examples: Iterable[object] | Indexed, key: str) -> Examples:
    """Return all examples as tensors. key: that of the yaml which gives them, for messages.

    Images of Pillow and bytes stay bytes, as [C, H, W]; other numbers become float32, or int64 if they are whole. Raises
    DataError, with the number of the example, for one that is no pair, no numbers, or of another shape or type than the first.
    """
    inputs, labels = list[Tensor](), list[object]()
    for number, (given, label) in enumerate(_pairs(examples, key)):
        x = _input(given, f"{key}: the input of example {number}")
        if inputs and (x.shape, x.dtype) != (inputs[0].shape, inputs[0].dtype):
            raise DataError(_differs(key, number, x, inputs[0]))
        inputs.append(x)
        labels.append(label)
    if not inputs:
        raise DataError(f"{key} has no examples: its length is 0")
    _require_image(inputs[0], key)
    stacked = torch.stack(inputs)
    if isinstance(labels[0], str):
        return Examples(stacked, torch.empty(0), tuple(str(label) for label in labels))
    return Examples(stacked, _labels(labels, key))


def _pairs(examples: Iterable[object] | Indexed, key: str) -> Iterator[tuple[object, object]]:
    for number, example in enumerate(_each(examples)):
        if not isinstance(example, (tuple, list)) or len(example) != 2:
            what = f"a {type(example).__name__}" + (f" of {len(example)}" if isinstance(example, (tuple, list, dict)) else "")
            raise DataError(f"{key}: example {number} is {what}: let __getitem__ return (input, label)")
        yield example[0], example[1]


def _each(examples: Iterable[object] | Indexed) -> Iterator[object]:
    """Yield the examples: by their numbers if there is a length, since few classes with __getitem__ end by an IndexError."""
    if isinstance(examples, Indexed):
        return (examples[number] for number in range(len(examples)))
    return iter(examples)


def _input(given: object, where: str) -> Tensor:
    """Return an input as a tensor."""
    if isinstance(given, Image.Image):
        pixels = torch.from_numpy(np.array(given if given.mode in ("L", "RGB") else given.convert("RGB")))
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    x = _numbers(given, where)
    if x.is_complex():
        raise DataError(f"{where} is complex: give its real and its imaginary part as two channels")
    if x.dtype == torch.uint8:
        return x[None] if x.dim() == 2 else x
    return x.float() if x.is_floating_point() or x.dtype == torch.bool else x.long()


def _numbers(given: object, where: str) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().cpu()
    if isinstance(given, str):
        raise DataError(
            f"{where} is a text, {given[:20]!r}: let the data set give the numbers of its words, such as [5, 17, 2]"
        )
    try:
        return torch.as_tensor(np.asarray(given) if not isinstance(given, (list, tuple)) else np.array(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} is a {type(given).__name__}, which is no tensor, array or image: give one") from error


def _differs(key: str, number: int, x: Tensor, first: Tensor) -> str:
    if x.dtype != first.dtype:
        kinds = f"{_kind(x)}, and of example 0 {_kind(first)}"
        return f"{key}: the input of example {number} is of type {kinds}: convert all to one type, such as x.float()"
    shapes = f"{list(x.shape)}, and of example 0 {list(first.shape)}"
    return f"{key}: the input of example {number} is of shape {shapes}: bring all to one shape, by a transform or by padding"


def _require_image(x: Tensor, key: str) -> None:
    """Raise DataError for bytes that are no image: nobody can tell numbers from words."""
    if x.dtype == torch.uint8 and x.dim() not in BYTES_OF_IMAGE:
        raise DataError(
            f"{key}: inputs are bytes of shape {list(x.shape)}, which are no images: return x.float() for numbers, or x.long() "
            "for the numbers of words"
        )


def _labels(labels: list[object], key: str) -> Tensor:
    """Return the labels: int64 for whole numbers, else float32."""
    kinds = {type(label).__name__ for label in labels}
    if all(isinstance(label, numbers.Number) for label in labels):
        y = torch.tensor(labels)
    else:
        made = [_numbers(label, f"{key}: the label of example {number}") for number, label in enumerate(labels)]
        if len({label.shape for label in made}) > 1:
            raise DataError(f"{key}: labels are of several shapes ({', '.join(sorted(kinds))}): give all one shape")
        y = torch.stack(made)
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 and not y.is_floating_point() else y  # a class as [1]
    return y.float() if y.is_floating_point() else y.long()


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
