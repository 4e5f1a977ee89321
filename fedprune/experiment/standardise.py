"""The standardisation of inputs, (x - mean) / std for each channel, by numbers of the user's: `data.mean` and `data.std`.

A trained network expects its inputs as they were in its training. Of bytes the numbers are those of pixels in 0..1, as
torchvision and timm state them; of other inputs they are in the units of the inputs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from fedprune.config.instantiate import make
from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError

KEYS = ("mean", "std")


def of_the_data_set(config: DictConfig) -> DictConfig:
    """Return the data node with only the keys of the data set's own function."""
    alone: DictConfig = config.data.copy()
    with open_dict(alone):
        for key in ("augment", *_ours(config.data)):
            alone.pop(key, None)
    return alone


def standardised(config: DictConfig, dataset: Dataset) -> Dataset:
    """Return the data set with the mean and the standard deviation that the configuration states, if it states some.

    Raises ConfigError, with what to type, for numbers that cannot be meant.
    """
    node = cast(Mapping[str, object], OmegaConf.to_container(config.data, resolve=True))
    given = {key: node[key] for key in _ours(config.data) if node.get(key) is not None}
    if not given:
        return dataset
    _check_both(given)
    if not dataset.x.is_floating_point() and dataset.x.dtype != torch.uint8:
        raise ConfigError([f"data={dataset.name} has whole numbers as inputs, which are not standardised: type data.mean=null"])
    unit = float(dataset.white) if dataset.x.dtype == torch.uint8 else 1.0
    mean, std = (tuple(unit * number for number in _numbers(key, given[key], dataset)) for key in KEYS)
    return replace(dataset, mean=mean, std=std)


def _ours(node: DictConfig) -> list[str]:
    """Return the keys in the node that the data set's own function does not take."""
    keys = [key for key in KEYS if key in node]
    if not keys:
        return []
    try:
        taken = inspect.signature(make({"_target_": node["_target_"], "_partial_": True})).parameters
    except (ConfigError, ValueError, TypeError, KeyError):  # what is wrong with it is said where it is called
        return keys
    return [key for key in keys if key not in taken]


def _check_both(given: Mapping[str, object]) -> None:
    for key, other in (KEYS, KEYS[::-1]):
        if key not in given:
            raise ConfigError([f"data.{other}={_text(given[other])} without data.{key}: type both of them, as of the training"])


def _numbers(key: str, value: object, dataset: Dataset) -> list[float]:
    """Return a number for each channel, or one for all. Raises ConfigError."""
    given = value if isinstance(value, list) else [value]
    typed, channels = f"data.{key}={_text(value)}", dataset.shape[0] if dataset.shape else 1
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in given):
        raise ConfigError([f"{typed}: type a number for each channel, such as data.{key}=[0.5]"])
    values = [float(cast(float, number)) for number in given]
    if len(values) not in (1, channels):
        raise ConfigError([f"{typed} is {len(values)} numbers for {channels} channels: type one for each, or one for all"])
    if key == "std" and min(values) <= 0:
        raise ConfigError([f"{typed}: inputs are divided by it: type positive numbers"])
    if dataset.x.dtype == torch.uint8 and max(values) > 1:
        instead = f"data.{key}={_text([round(number / dataset.white, 6) for number in values])}"
        raise ConfigError(
            [f"{typed} is not of pixels in 0..1, as torchvision states it: for 0..{dataset.white} type {instead}"]
        )
    return values


def _text(value: object) -> str:
    return str(value).replace(" ", "")
