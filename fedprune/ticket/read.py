"""Read a ticket: a mask, the weights to train it from, and where it comes from. Reading never runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from fedprune.errors import DataError, RunError
from fedprune.pruning import mask as masks
from fedprune.storage import checkpoint
from fedprune.storage.origin import another_run
from fedprune.ticket.schema import check_metadata
from fedprune.ticket.weights import holds_weights
from fedprune.types import Json, Mask, Params

GROUPS = {"params", "mask"}


@dataclass(frozen=True)
class Ticket:
    """A saved subnet. provenance: the run that it comes from, as text by key. path: the file, for messages."""

    params: Params
    mask: Mask
    provenance: Mapping[str, str]
    path: Path

    @property
    def axes(self) -> dict[str, str]:
        """Return the chosen option of each config group of its run."""
        return dict(parsed(self.provenance, "axes"))

    @property
    def network_config(self) -> Json:
        """Return the config of its network; {} in tickets that have none."""
        config: Json = parsed(self.provenance, "network").get("config", {})
        return config

    @property
    def density(self) -> float:
        """Return the fraction of the prunable entries that is alive."""
        return masks.density(self.mask)


def load_ticket(path: Path | str) -> Ticket:
    """Return the ticket in a file, or in a run folder. Raises DataError if it is missing, damaged or not a ticket of
    fedprune."""
    path = Path(path)
    of_folder = path.is_dir()
    path = path / "ticket.safetensors" if of_folder else path
    if not path.is_file():
        raise DataError(f"there is no ticket {path}: give the ticket.safetensors of a finished run, or the run's folder")
    if holds_weights(path):
        raise DataError(f"{path} is a state_dict and not a ticket of fedprune: type init_from={path}")
    try:
        check_metadata(path)
        groups, provenance = checkpoint.read(path)
    except (RunError, TypeError, SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no ticket of fedprune: {error.__cause__ or error}") from error
    if not set(groups) <= GROUPS or "params" not in groups or "axes" not in provenance:
        raise DataError(f"{path} is not a ticket of fedprune: it holds {', '.join(sorted(groups)) or 'nothing of ours'}")
    if of_folder and (problem := another_run(path.parent, provenance.get("id"))):
        raise DataError(f"{path} belongs elsewhere: {problem}. Give the file itself, if it is what you mean")
    ticket = Ticket(groups["params"], groups.get("mask", {}), provenance, path)
    for problem in _problems(ticket):
        raise DataError(f"{path} is damaged: {problem}")
    return ticket


def parsed(provenance: Mapping[str, str], key: str) -> Json:
    """Return a value of the provenance that is written as JSON; {} if it is not there."""
    value: Json = json.loads(provenance.get(key, "{}"))
    return value


def _problems(ticket: Ticket) -> list[str]:
    """Return what is in the ticket that no run writes."""
    try:
        axes = ticket.axes
    except ValueError:
        return ["its axes are not JSON"]
    problems = []
    if not all(isinstance(value, str) for value in axes.values()):
        problems.append("its axes are not names")
    for name, alive in ticket.mask.items():
        if name not in ticket.params or ticket.params[name].shape != alive.shape or alive.dtype != torch.bool:
            problems.append(f"the mask of {name} is not one of its weights")
    problems += [f"{name} has entries that are not numbers" for name, value in ticket.params.items() if not _finite(value)]
    return problems


def _finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
