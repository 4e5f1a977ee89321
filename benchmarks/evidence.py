"""What scoring one prune event costs one client, in local epochs of the same client: `python benchmarks/evidence.py`.

Fashion-MNIST, one client of 480 examples, batch 32, SGD with momentum, one thread; every criterion of conf/criterion that asks
for data. Epochs and measurements take turns; medians over the repeats. At most 1, but for `woodfisher` and `obd_exact`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from job import configuration
from omegaconf import OmegaConf
from table import machine, table

from fedprune import run_id
from fedprune.config import CONF, schema
from fedprune.config.instantiate import make
from fedprune.experiment.build import build
from fedprune.federated.client.round import ClientRound
from fedprune.pruning.evidence import FROM_DATA, OBSTACLES, OF_REMOVAL, needs
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import ones
from fedprune.types import Job, Subnet

MODELS = ("lenet_300_100", "lenet5", "cnn_small")
FREE = ("obd_exact", "woodfisher", "woodfisher_scores")
"""Criteria to which the bound does not apply."""

AT_MOST, NOT_GIVEN = "1.00", "-"


def asked() -> dict[str, tuple[str, ...]]:
    """The evidence from data that each criterion drops by."""
    found = {}
    for path in sorted((CONF / "criterion").glob("*.yaml")):
        formula = make(OmegaConf.load(path)).drop
        found[path.stem] = tuple(name for name in needs(formula) if name in FROM_DATA and name not in OF_REMOVAL)
    return {name: evidence for name, evidence in found.items() if evidence}


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Print a table: a line per criterion, a column per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    schema.register()
    run_id.register()
    ratios: dict[str, list[str]] = {name: [] for name in asked()}
    for model in MODELS:
        for name, ratio in measured(model, given.repeats).items():
            ratios[name].append(ratio)
    given_by_one = {name: columns for name, columns in ratios.items() if set(columns) != {NOT_GIVEN}}
    lines = [[f"`{name}`", *columns, "" if name in FREE else AT_MOST] for name, columns in given_by_one.items()]
    print(f"{machine()}\n\n{table(('in local epochs', *(f'`{model}`' for model in MODELS), 'at most'), lines)}")


def measured(model: str, repeats: int) -> dict[str, str]:
    """The ratio of each criterion; a dash where this network cannot give its evidence."""
    config = configuration(model, 1.0)
    config.executor = {"_target_": "fedprune.execution.Serial"}
    experiment = build(config, dict.fromkeys(run_id.GROUPS, "") | {"rewind": "none"})
    client: ClientRound = experiment.executor()._client_round  # type: ignore[attr-defined]
    params, names = dict(experiment.net.state_dict()), experiment.axes.what.names
    sizes = [len(part) for part in experiment.clients.train]
    number = min(range(len(sizes)), key=lambda one: abs(sizes[one] - 480))
    train = Job(number, 0, 0, 0, Subnet(params, ones(params, names)))
    network, found = Network(experiment.net, experiment.dataset.shape), {}
    for name, evidence in asked().items():
        about = next((some for some in (names, names[:-1]) if not obstructed(evidence, network, some)), ())
        score = replace(train, subnet=Subnet(params, ones(params, about)), measure=evidence)
        found[name] = f"{epochs(client, train, score, repeats):.2f}" if about else NOT_GIVEN
    return found


def obstructed(evidence: tuple[str, ...], network: Network, names: tuple[str, ...]) -> bool:
    """Whether this network cannot give this evidence about these tensors (the last layer may be out)."""
    return any(OBSTACLES[one](network, names) for one in evidence if one in OBSTACLES)


def epochs(client: ClientRound, train: Job, score: Job, repeats: int) -> float:
    """Median seconds of measuring over median seconds of training; the first of each warms up and does not count."""
    pairs = [(seconds(lambda: client.measure(score)), seconds(lambda: client.train(train))) for _ in range(repeats + 1)][1:]
    measured, trained = zip(*pairs, strict=True)
    return statistics.median(measured) / statistics.median(trained)


if __name__ == "__main__":
    main()
