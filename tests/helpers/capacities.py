"""Clients that carry part of the network: given capacities for a federation, and the part in numpy, really cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedprune.experiment.experiment import Experiment
from fedprune.pruning.evidence.network import Network
from helpers.in_numpy import Arrays


def carrying(experiment: Experiment, capacities: Sequence[float]) -> Experiment:
    """The experiment with these capacities, and with the labels of the examples that its clients have."""
    owned = [tuple(experiment.dataset.y[part].unique().tolist()) for part in experiment.clients.train]
    network = Network(experiment.net, experiment.dataset.shape)
    whose = experiment.options.whose.bind(capacities, owned, network, experiment.axes.what)
    wire = replace(experiment.wire, mask_names=whose.mask_names)
    return replace(experiment, options=replace(experiment.options, whose=whose), wire=wire)


def cut(w: Arrays, hidden: int, labels: NDArray) -> Arrays:
    """The first `hidden` units, and the outputs of these labels: smaller arrays, not masked ones."""
    return {
        "fc1.weight": w["fc1.weight"][:hidden].copy(),
        "fc1.bias": w["fc1.bias"][:hidden].copy(),
        "fc2.weight": w["fc2.weight"][np.ix_(labels, np.arange(hidden))].copy(),
        "fc2.bias": w["fc2.bias"][labels].copy(),
    }


def merged(server: Arrays, parts: Sequence[tuple[Arrays, int, NDArray, float]]) -> Arrays:
    """Each entry's weighted mean over those who have it; the server's where nobody has it. parts: (w, hidden, labels, a)."""
    above = {name: np.zeros_like(value) for name, value in server.items()}
    below = {name: np.zeros_like(value) for name, value in server.items()}
    for w, hidden, labels, a in parts:
        places = {
            **{"fc1.weight": np.s_[:hidden], "fc1.bias": np.s_[:hidden]},
            **{"fc2.weight": np.ix_(labels, np.arange(hidden)), "fc2.bias": labels},
        }
        for name, place in places.items():
            above[name][place] += a * w[name]
            below[name][place] += a
    return {n: np.where(below[n] > 0, above[n] / np.maximum(below[n], 1e-9), old) for n, old in server.items()}
