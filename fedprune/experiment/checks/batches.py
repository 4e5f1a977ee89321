"""Checks that every batch has as many examples as the network needs, before any client trains.

BatchNorm in training mode raises on a single value per channel, as GroupNorm and InstanceNorm do on theirs. No list could say
which networks do, so each is tried on one example, and on two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from fedprune.data.batches import first_examples
from fedprune.data.datasets import Dataset
from fedprune.data.partition import Division
from fedprune.errors import ConfigError
from fedprune.federated.where import Where
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.train import is_batchnorm, set_mode


def smallest(module: LocalModule, recipe: Recipe, dataset: Dataset) -> int:
    """Return how many examples a batch needs so that the network can be trained on it: 1 or 2.

    Raises ConfigError, with what torch says, if two are not enough. The network is left as it was.
    """
    if _fails(module, recipe, dataset, 1) is None:
        return 1
    error = _fails(module, recipe, dataset, 2)
    if error is None:
        return 2
    told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    raise ConfigError(
        [
            f"the network cannot be trained on {' x '.join(map(str, dataset.shape))} inputs: {told}; "
            "choose another model, or other options of this one"
        ]
    )


def sizes_of_batches(
    module: LocalModule, recipe: Recipe, dataset: Dataset, examples: Sequence[int], how: Division, where: Where, measures: bool
) -> list[str]:
    """Return what is wrong with the sizes of batches. examples: how many each client trains on. how: the partition. measures:
    whether clients measure evidence on their data."""
    problems = _dropped(recipe, examples)
    if recipe.smallest == 1:
        return problems
    needs = "the network cannot be trained on a batch of one example (as BatchNorm in training mode cannot)"
    frozen = _frozen_helps(module, recipe, dataset)
    if recipe.batch_size < recipe.smallest:
        problems.append(f"local.batch_size={recipe.batch_size}: {needs}: set local.batch_size=2 or more{frozen}")
    if any(number < recipe.smallest for number in examples):
        problems.append(f"{_poorest(examples)} to train on, and {needs}: {_more_examples(how)}{frozen}")
    for key, number in (("examples", where.examples), ("proxy", where.proxy)):
        if measures and number == 1:
            problems.append(f"where.{key}=1: {needs}: set where.{key}=2 or more{frozen}")
    return problems


def _dropped(recipe: Recipe, examples: Sequence[int]) -> list[str]:
    """Return a problem if a client has no full batch and other batches are dropped, else nothing."""
    fewest = min(examples, default=0)
    if not recipe.drop_last or fewest >= recipe.batch_size:
        return []
    return [
        f"local.drop_last=true leaves client {list(examples).index(fewest)} nothing to train on: it has {fewest} examples, and "
        f"local.batch_size={recipe.batch_size}: set local.batch_size={max(fewest, 1)} or less, or local.drop_last=false"
    ]


def _poorest(examples: Sequence[int]) -> str:
    single = [client for client, number in enumerate(examples) if number < 2]
    others = f" (and {len(single) - 1} more clients have no more)" if len(single) > 1 else ""
    return f"client {single[0]} has {examples[single[0]]} example{'s' * (examples[single[0]] != 1)}{others}"


def _more_examples(how: Division) -> str:
    """Return what to type so that each client has two training examples."""
    number = next(total for total in range(2, 1000) if how.split(total)[0] >= 2)
    return f"set partition.{how.size}={number} or more"


def _frozen_helps(module: LocalModule, recipe: Recipe, dataset: Dataset) -> str:
    """Return the advice to freeze BatchNorm, where that helps; else nothing."""
    if not any(is_batchnorm(layer) for layer in module.net.modules()):
        return ""
    frozen = replace(recipe, freeze_batchnorm=True)
    return ", or federated.batchnorm=frozen" if _fails(module, frozen, dataset, 1) is None else ""


def _fails(module: LocalModule, recipe: Recipe, dataset: Dataset, number: int) -> Exception | None:
    """Return the error that the network raises on a batch of so many examples in training, or None."""
    inputs = first_examples(dataset, number)[0]
    with _as_it_was(module.net), torch.no_grad():
        set_mode(module, recipe)
        try:
            module.net(inputs)
        except Exception as error:
            return error
    return None


@contextmanager
def _as_it_was(net: nn.Module) -> Iterator[None]:
    """Afterwards modes, buffers and torch's random numbers are what they were before."""
    modes = {part: part.training for part in net.modules()}
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        yield
    for name, value in net.named_buffers():
        value.copy_(buffers[name])
    for part, training in modes.items():
        part.training = training
