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
        raise ConfigError([f"device={name}: {_reason(error)}; choose {' or '.join(there())}"]) from error
    return str(device)


def there() -> list[str]:
    """Return the devices that a run can be on here, as they are typed."""
    gpus = ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    mps = ["mps"] * torch.backends.mps.is_available()
    return ["device=auto", "device=cpu", *(f"device={name}" for name in [*gpus, *mps])]


def _reason(error: Exception) -> str:
    """Return what torch says, without its list of all devices that it knows."""
    text = str(error).splitlines()[0]
    return "there is no such device" if text.startswith("Expected one of") else text
