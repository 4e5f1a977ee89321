"""The device that a run is on."""

from __future__ import annotations

import torch

from fedprune.errors import ConfigError


def chosen(name: str) -> str:
    """Return the device that `device=` names; auto is a GPU if there is one. Raises ConfigError if there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError([f"device={name}: {str(error).splitlines()[0]}; choose device=auto or device=cpu"]) from error
    return str(device)
