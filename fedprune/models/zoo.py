"""Networks of torchvision and timm by their names. Each takes its package, which is imported when a network is made."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from torch import nn

from fedprune.errors import ConfigError

SHOWN = 3
"""So many of the nearest names are in a message."""


def torchvision_network(
    shape: tuple[int, ...], classes: int, name: str = "resnet18", args: Mapping[str, object] | None = None
) -> nn.Module:
    """Return a network of torchvision for images (3, H, W), not trained. args: more keywords of the function of this name.

    Raises ConfigError if the package is missing, if there is no such name, or for images of other channels.
    """
    models = _package("torchvision", "torchvision.models")
    _check_name("torchvision", name, models.list_models(module=models))
    if len(shape) != 3 or shape[0] != 3:
        raise ConfigError(
            [
                f"model=torchvision takes images of three channels, and an example is of shape {list(shape)}: choose "
                f"{'model=timm, which takes any number of channels, or ' * (len(shape) == 3)}model=mlp"
            ]
        )
    return _made("torchvision", name, models.get_model, {"num_classes": classes} | dict(args or {}))


def timm_network(
    shape: tuple[int, ...], classes: int, name: str = "resnet18", args: Mapping[str, object] | None = None
) -> nn.Module:
    """Return a network of timm for images (C, H, W), not trained. args: more keywords of timm.create_model.

    A network whose size of images is fixed when it is made (such as a ViT) gets that of the data. Raises ConfigError if the
    package is missing, if there is no such name, or if examples are no images.
    """
    timm = _package("timm", "timm")
    _check_name("timm", name, timm.list_models())
    if len(shape) != 3:
        raise ConfigError([f"model=timm takes images, and an example is of shape {list(shape)}: choose model=mlp"])
    keywords: dict[str, object] = {"num_classes": classes, "in_chans": shape[0]}
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        keywords["img_size"] = shape[1:]
    return _made("timm", name, timm.create_model, keywords | dict(args or {}))


def _package(option: str, module: str) -> ModuleType:
    """Return a module of an optional package. Raises ConfigError, with what to install, if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise ConfigError([f"model={option} needs the package {missing}: type `pip install {missing}`"]) from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # built for another version of torch
        said = str(error).partition("\n")[0]
        raise ConfigError(
            [
                f"model={option}: the package {option} cannot be imported beside this torch ({said}): install torch and "
                "torchvision together, from one source"
            ]
        ) from error


def _check_name(option: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=SHOWN, cutoff=0.5) or sorted(known)[:SHOWN]
    raise ConfigError([f"model.name={name}: {option} has no such network: the nearest are {', '.join(near)}"])


def _made(option: str, name: str, make: Callable[..., nn.Module], keywords: Mapping[str, object]) -> nn.Module:
    try:
        return make(name, **keywords)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        said = " ".join(str(error).split())
        # Without the cause, by which a TypeError would be taken for one of our own function's arguments.
        raise ConfigError([f"model={option} model.name={name} cannot be made: {said}: change model.args"]) from None
