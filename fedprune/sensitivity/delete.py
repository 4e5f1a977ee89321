"""Delete and measure: a finished run's network at its end, evidence as in a prune event, losses on all clients' data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fedprune.analysis.metric import LARGER, METRIC
from fedprune.errors import DataError, Incompatible
from fedprune.execution import certain, employed
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.federated.availability import everybody
from fedprune.federated.client.round import Slice
from fedprune.federated.evaluate import LENGTH
from fedprune.federated.exchange import Exchange
from fedprune.federated.tally import Tally
from fedprune.federated.where import measuring
from fedprune.local.outcomes import concatenated
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.evidence import OBSTACLES, needs
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import apply, count, shrink
from fedprune.storage.checkpoint import load_state
from fedprune.tensors import tensors_of
from fedprune.types import Mask, Scores, State, Subnet

ALL = "all"
"""What stands for the layer where all of them compete."""

PREDICTIONS = (
    *("obd_exact", "obd_sweep", "obd_gauss_newton", "fisher_empirical", "fisher_true"),
    *("taylor_second", "woodfisher", "woodfisher_scores"),
)
"""Criteria whose score is the increase of the loss that they expect from deleting an entry; those of several add up. WoodFisher
expects the others to move, which they do not here."""


@dataclass(frozen=True)
class Trained:
    """A finished run: what it was, and its state at the end."""

    experiment: Experiment
    state: State
    folder: Path

    @property
    def network(self) -> Network:
        """As the server has it."""
        return Network(self.experiment.net, self.experiment.dataset.shape)


def trained(folder: Path) -> Trained:
    """The run of a folder. Raises DataError if it is none, is not finished, or its config makes another network."""
    if not (folder / "summary.json").exists():
        raise DataError(f"{folder} is not the folder of a finished run: name one that has a summary.json")
    config = OmegaConf.load(folder / "config.yaml")
    names = json.loads((folder / "run.json").read_text())["axes"]
    experiment = build(config, names)  # type: ignore[arg-type]
    state = load_state(folder / "state" / "state.safetensors")
    if _shapes(state.server.params) != _shapes(tensors_of(experiment.net)):
        raise DataError(f"{folder} is of another network than its config makes here: use the code that it ran with")
    return Trained(experiment, state, folder)


def _shapes(params: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in params.items()}


def curves(
    run: Trained, criteria: Mapping[str, Criterion], densities: Sequence[float], by_layer: bool
) -> Iterator[dict[str, Any]]:
    """A row per criterion, layer (or "all") and density, nothing deleted first: the task's metrics on the training and
    validation parts, `increase` of the training loss, and `predicted` where the criterion predicts it.

    Densities are fractions of what lives at the end of the run. Raises Incompatible for a criterion whose evidence this network
    cannot give.
    """
    with employed(run.experiment.executor()) as executor:
        exchange = replace(run.experiment.loop(executor).exchange, fates=everybody)  # whoever was silent in the run
        dense = _outcome(run, exchange, run.state.server.mask)
        for name, criterion in criteria.items():
            for layer, part, scores in _parts(run, _scores(run, exchange, name, criterion), by_layer):
                yield _row(run, name, layer, 1.0, part, dense, dense, 0.0)
                for density in densities:
                    mask = part | _fewer(run, part, scores, density)
                    predicted = _lost(scores, part, mask) if name in PREDICTIONS else None
                    yield _row(run, name, layer, density, mask, _outcome(run, exchange, mask), dense, predicted)


def _scores(run: Trained, exchange: Exchange, name: str, criterion: Criterion) -> Scores:
    what, formula = run.experiment.axes.what, criterion.drop
    asked = needs(formula)
    found = (OBSTACLES[evidence](run.network, what.names) for evidence in asked if evidence in OBSTACLES)
    problems = [f"criterion={name}: {problem}" for problem in found if problem is not None]
    if problems:
        raise Incompatible(*problems)
    everybody = tuple(range(len(run.experiment.clients.train)))
    measure: Callable = measuring(exchange, run.network, run.state, everybody, Tally())
    return formula(**measure(asked, run.state.server, "alive"))


def _parts(run: Trained, scores: Scores, by_layer: bool) -> Iterator[tuple[str, Mask, Scores]]:
    """(layer, the whole mask, the scores that compete): all together, or each layer by itself."""
    mask = run.state.server.mask
    if not by_layer:
        yield ALL, mask, scores
        return
    yield from ((name.removesuffix(".weight"), mask, {name: scores[name]}) for name in mask)


def _fewer(run: Trained, mask: Mask, scores: Scores, density: float) -> Mask:
    """Of the layers that have scores, that fraction of what lives."""
    what = replace(run.experiment.axes.what, names=tuple(scores))
    part = {name: mask[name] for name in scores}
    alive, units = what.alive_units(part)
    return shrink(part, scores, density * alive / units, what)


def _lost(scores: Scores, before: Mask, after: Mask) -> float:
    return sum(float(scores[name].double()[before[name] & ~after[name]].sum()) for name in scores)


def _outcome(run: Trained, exchange: Exchange, mask: Mask) -> dict[str, float]:
    """Return the task's metrics of the network under a mask, on the training and validation parts of clients."""
    subnet = Subnet(apply(run.state.server.params, mask), mask)
    block = exchange.wire.subnet_block(subnet)
    shared = {name: subnet.params[name].numpy() for name in exchange.own}
    found: dict[str, float] = {}
    for part in ("train", "val"):
        total = sum(len(getattr(run.experiment.clients, part)[client]) for client in run.experiment.clients.seen)
        pieces = [Slice(part, start, min(start + LENGTH, total)) for start in range(0, total, LENGTH)]
        tasks = [("evaluate", (block, shared, b"", piece)) for piece in pieces]
        outcomes = list(certain(exchange.executor.map(tasks, [0] * len(tasks))))
        if outcomes:
            together = concatenated(outcomes)
            means = run.experiment.task.means(together) | {"loss": float(together.values["loss"].mean(dtype=np.float64))}
            found |= {f"{part}/{name}": value for name, value in means.items()}
    return found


def _row(
    run: Trained,
    criterion: str,
    layer: str,
    density: float,
    mask: Mask,
    outcome: Mapping[str, float],
    dense: Mapping[str, float],
    predicted: float | None,
) -> dict[str, Any]:
    task = run.experiment.task
    which = {"run": str(run.folder), "seed": run.experiment.config.seed, METRIC: task.metric, LARGER: task.larger_is_better}
    which |= {"criterion": criterion, "layer": layer}
    increase = outcome["train/loss"] - dense["train/loss"]
    return which | {"density": density, "entries": count(mask), "increase": increase, "predicted": predicted, **outcome}
