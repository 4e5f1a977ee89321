"""The last words of a run: events that did not happen, answers that were left out, where the time went, a ticket's origin."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from fedprune import __version__
from fedprune.federated.loop import FederatedLoop
from fedprune.federated.masks.gates import unmet, unmet_by_clients
from fedprune.running import display
from fedprune.running.display import console
from fedprune.storage.history import read_metrics
from fedprune.types import Json, State

log = logging.getLogger(__name__)


def conclude(folder: Path, loop: FederatedLoop, state: State) -> None:
    """Print the last words of the run in this folder, and write its profile there."""
    rows = read_metrics(folder)
    problem, left_out = _unmet(loop, state), display.left_out_text(rows)
    if problem:
        log.warning(problem)
    if left_out:
        console.print(left_out)
    if loop.profile:
        from fedprune.analysis import profile  # pandas and matplotlib: only now

        console.print(profile.write(rows, folder) or "")


def _unmet(loop: FederatedLoop, state: State) -> str | None:
    """Return a warning about events that did not happen, or None."""
    if loop.whose.global_mask:
        return unmet(loop.plan, state)
    return unmet_by_clients(loop.plan, state, loop.sampled, loop.whose.plans)


def provenance(about: Json) -> dict[str, str]:
    """Return a ticket's origin, and what makes its network again. Nothing in it changes when a run is resumed."""
    model = {"option": about["axes"]["model"], "config": about["config"]["model"]}
    network = model | {"shape": about["shape"], "classes": about["classes"]}
    inputs = {key: about[key] for key in ("mean", "std", "range", "class_names") if key in about}
    texts = {key: json.dumps(value) for key, value in (("axes", about["axes"]), ("network", network), ("inputs", inputs))}
    texts["round_to"] = json.dumps(about["config"]["what"].get("round_to", 1))
    return {"name": about["name"], "seed": str(about["seed"]), "id": about["id"], "fedprune": __version__} | texts
