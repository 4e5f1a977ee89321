"""The augmentation of training batches: made from `data.augment`, and tried before any client trains."""

from __future__ import annotations

from typing import cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from fedprune.capabilities import declared
from fedprune.config.instantiate import make
from fedprune.data.augment import Augment, Change, misfit
from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError
from fedprune.experiment.options import AUGMENT, make_option
from fedprune.randomness import seeded, seeded_everywhere, torch_seed
from fedprune.types import Json

TRIED = (8, 1)
"""The sizes of the batches that an augmentation is tried on."""


def make_augment(config: Json, device: torch.device) -> Change | None:
    """Return what augments the inputs of training batches; None if nothing does. Every worker makes the same one."""
    node = config["data"].get("augment")
    if node is None:
        return None
    with seeded(torch_seed(config["seed"], "augment"), device):  # for a module that draws parameters
        made: Change = make(node)
    if isinstance(made, nn.Module):
        made.to(device)
    return made if declared(made, "acts", Augment.acts) else None


def check_augment(config: DictConfig, dataset: Dataset, device: str) -> None:
    """Try the augmentation on some training examples. Raises ConfigError, with what to do, if they cannot be trained on
    afterwards, or if the same draws give other inputs a second time."""
    if config.data.get("augment") is None:
        return
    make_option(config, AUGMENT)  # which says what is wrong with the option itself
    augment = make_augment(cast(Json, config), torch.device(device))
    if augment is None:
        return
    _check_labels(augment, dataset)
    name = config.data.augment._target_
    for number in TRIED:
        inputs = dataset.x[:number].to(device)
        first, second = (_tried(augment, inputs.clone(), name, config.seed) for _ in range(2))
        if not torch.equal(first, second):
            raise ConfigError(
                [
                    f"data.augment {name} gives other inputs for the same draws: let it draw from the global generators of "
                    "torch, numpy or Python alone, and keep nothing between batches"
                ]
            )


def _tried(augment: Change, inputs: Tensor, name: str, seed: int) -> Tensor:
    """Return what becomes of some inputs."""
    try:
        with seeded_everywhere(seed, inputs.device), torch.no_grad():
            outputs: object = augment(inputs)
    except ConfigError:
        raise
    except Exception as error:  # it is anybody's code
        said = " ".join(str(error).split()) or type(error).__name__
        batch = f"a batch of {str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
        raise ConfigError([f"data.augment {name} cannot take {batch}: {said}; data/augment=none goes without"]) from error
    wrong = misfit(inputs, outputs)
    if wrong is None and isinstance(outputs, Tensor) and not bool(torch.isfinite(outputs).all()):
        wrong = "returns numbers that are infinite or NaN: let it return finite ones"
    if wrong is not None or not isinstance(outputs, Tensor):
        raise ConfigError([f"data.augment {name} {wrong}"])
    return outputs


def _check_labels(augment: Change, dataset: Dataset) -> None:
    """Raise ConfigError if pixels are moved away from their labels."""
    of_pixels = dataset.y.dim() > 1 and dataset.y.shape[-2:] == dataset.x.shape[-2:]
    if of_pixels and declared(augment, "moves", Augment.moves):
        raise ConfigError(
            [f"data.augment moves pixels, and labels of data={dataset.name} do not move with them: type data/augment=none"]
        )
