"""Deletion curves: the loss on all clients' data of a finished run's network, with parts of it deleted.

Evidence is measured as in a prune event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fedprune.analysis.metric import LARGER, METRIC
from fedprune.data.batches import Slice
from fedprune.errors import DataError, Incompatible
from fedprune.execution import certain, employed
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.federated.availability import everybody
from fedprune.federated.evaluate import LENGTH
from fedprune.federated.exchange import Exchange
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.where import measuring
from fedprune.local.outcomes import concatenated
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.criterion.scores import scored
from fedprune.pruning.evidence import OBSTACLES, needs
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import apply, count, shrink
from fedprune.storage.checkpoint import load_state
from fedprune.tensors import tensors_of
from fedprune.types import Mask, Scores, State, Subnet

ALL = "all"
"""The name of the layer in rows in which all layers compete."""

PREDICTIONS = (
    *("obd_exact", "obd_sweep", "obd_gauss_newton", "fisher_empirical", "fisher_true"),
    *("taylor_second", "woodfisher", "woodfisher_scores"),
)
"""Criteria whose score predicts the increase of the loss when an entry is deleted; the scores of several entries add up.
WoodFisher expects the other entries to move, which they do not here."""


@dataclass(frozen=True)
class Trained:
    """A finished run: its experiment, its state at the end, and its folder."""

    experiment: Experiment
    state: State
    folder: Path

    @property
    def network(self) -> Network:
        """Return the server's network."""
        return Network(self.experiment.net, self.experiment.dataset.shape)


def trained(folder: Path) -> Trained:
    """Return the run of a folder. Raises DataError if it is not the folder of a finished run, or its config makes another
    network."""
    if not (folder / "summary.json").exists():
        raise DataError(f"{folder} is not the folder of a finished run: name one that has a summary.json")
    config = cast(DictConfig, OmegaConf.load(folder / "config.yaml"))
    names = json.loads((folder / "run.json").read_text(encoding="utf-8"))["axes"]
    experiment = build(config, names)
    state = load_state(folder / "state" / "state.safetensors")
    if _shapes(state.server.params) != _shapes(tensors_of(experiment.net)):
        raise DataError(f"{folder} is of another network than its config makes here: use the code that it ran with")
    return Trained(experiment, state, folder)


def _shapes(params: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in params.items()}


def curves(
    run: Trained, criteria: Mapping[str, Criterion], densities: Sequence[float], by_layer: bool
) -> Iterator[dict[str, object]]:
    """Yield a row per criterion, layer (or "all") and density, the undeleted network first: the task's metrics on the training
    and validation parts, `increase` of the training loss, and `predicted` if the criterion predicts it.

    Densities are fractions of what is alive at the end of the run. Raises Incompatible for a criterion whose evidence this
    network cannot give.
    """
    with employed(run.experiment.executor()) as executor:
        exchange = replace(run.experiment.loop(executor).exchange, fates=everybody)  # also clients that were silent in the run
        whole, undeleted = run.state.server.mask, _outcome(run, exchange, run.state.server.mask)
        for name, criterion in criteria.items():
            for layer, scores in _competing(run, _scores(run, exchange, name, criterion), by_layer):
                yield _row(run, name, layer, 1.0, whole, undeleted, undeleted, 0.0)
                for density in densities:
                    mask = whole | _fewer(run, scores, density)
                    predicted = _predicted(scores, whole, mask) if name in PREDICTIONS else None
                    yield _row(run, name, layer, density, mask, _outcome(run, exchange, mask), undeleted, predicted)


def _scores(run: Trained, exchange: Exchange, name: str, criterion: Criterion) -> Scores:
    what, formula = run.experiment.axes.what, criterion.drop
    asked = needs(formula)
    obstacles = (OBSTACLES[evidence](run.network, what.names) for evidence in asked if evidence in OBSTACLES)
    problems = [f"criterion={name}: {obstacle}" for obstacle in obstacles if obstacle is not None]
    if problems:
        raise Incompatible(*problems)
    all_clients = tuple(range(len(run.experiment.clients.train)))
    measure = measuring(exchange, run.network, run.state, all_clients, Tally())
    return scored(formula, measure(asked, run.state.server, "alive"), run.state.server.mask)


def _competing(run: Trained, scores: Scores, by_layer: bool) -> list[tuple[str, Scores]]:
    """Return (layer, the scores that compete): those of all layers together, or of each layer by itself."""
    if not by_layer:
        return [(ALL, scores)]
    return [(name.removesuffix(".weight"), {name: scores[name]}) for name in run.state.server.mask]


def _fewer(run: Trained, scores: Scores, density: float) -> Mask:
    """Return the masks of the layers that have scores, with that fraction of their living units."""
    what = replace(run.experiment.axes.what, names=tuple(scores))
    mask = {name: run.state.server.mask[name] for name in scores}
    alive, units = what.alive_units(mask)
    return shrink(mask, scores, density * alive / units, what)


def _predicted(scores: Scores, before: Mask, after: Mask) -> float:
    """Return the sum of the scores of the deleted entries."""
    return sum(float(scores[name].double()[before[name] & ~after[name]].sum()) for name in scores)


def _outcome(run: Trained, exchange: Exchange, mask: Mask) -> dict[str, float]:
    """Return the task's metrics of the network under a mask, on the training and validation parts of clients."""
    subnet = Subnet(apply(run.state.server.params, mask), mask)
    block = exchange.wire.subnet_block(subnet)
    shared = {name: subnet.params[name].numpy() for name in exchange.private}
    metrics: dict[str, float] = {}
    for part in ("train", "val"):
        indices = run.experiment.clients.parts[part]
        total = sum(len(indices[client]) for client in run.experiment.clients.seen)
        pieces = [Slice(part, start, min(start + LENGTH, total)) for start in range(0, total, LENGTH)]
        tasks = [("evaluate", (block, shared, b"", piece)) for piece in pieces]
        outcomes = list(certain(exchange.executor.map(tasks, [0] * len(tasks))))
        if outcomes:
            together = concatenated(outcomes)
            means = run.experiment.task.means(together) | {"loss": float(together.values["loss"].mean(dtype=np.float64))}
            metrics |= {f"{part}/{name}": value for name, value in means.items()}
    return metrics


def _row(
    run: Trained,
    criterion: str,
    layer: str,
    density: float,
    mask: Mask,
    outcome: Mapping[str, float],
    undeleted: Mapping[str, float],
    predicted: float | None,
) -> dict[str, object]:
    task = run.experiment.task
    row = {"run": str(run.folder), "seed": run.experiment.config.seed, METRIC: task.metric, LARGER: task.larger_is_better}
    row |= {"criterion": criterion, "layer": layer, "density": density, "entries": count(mask)}
    return row | {"increase": outcome["train/loss"] - undeleted["train/loss"], "predicted": predicted, **outcome}
