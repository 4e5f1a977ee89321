"""What clients and servers do, in numpy: float64 and straight lines, with nothing of torch or fedprune.

The network is one linear layer fc2, with a hidden layer fc1 and ReLU before it if there is an `fc1.weight`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray]

PRUNABLE = ("fc1.weight", "fc2.weight")
RATE, STEPS = 0.2, 2  # of the published experiments: see federation.py
SIZES = {"fc1.weight": 30, "fc2.weight": 15}
"""Of the network 6 - 5 - 3: 45 prunable weights."""


def dense(w: Arrays) -> Arrays:
    """The mask of a network in which everything lives."""
    return {name: np.ones(w[name].shape, bool) for name in PRUNABLE}


def masked(w: Arrays, mask: Arrays) -> Arrays:
    """The network with zeros where it is dead."""
    return {name: value * mask[name] if name in mask else value for name, value in w.items()}


def logits(w: Arrays, x: NDArray) -> tuple[NDArray, NDArray]:
    """(what goes into the last layer, its outputs)."""
    hidden = np.maximum(x @ w["fc1.weight"].T + w["fc1.bias"], 0) if "fc1.weight" in w else x
    return hidden, hidden @ w["fc2.weight"].T + w["fc2.bias"]


def gradient(w: Arrays, x: NDArray, y: NDArray) -> Arrays:
    """Of the mean cross-entropy, by the chain rule written out."""
    hidden, out = logits(w, x)
    p = np.exp(out - out.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    found = {"fc2.weight": p.T @ hidden, "fc2.bias": p.sum(0)}
    if "fc1.weight" in w:
        back = (p @ w["fc2.weight"]) * (hidden > 0)
        found |= {"fc1.weight": back.T @ x, "fc1.bias": back.sum(0)}
    return found


def train(w: Arrays, mask: Arrays, x: NDArray, y: NDArray, steps: int, lr: float = 0.1, momentum: float = 0.0) -> Arrays:
    """Full-batch SGD; what is dead stays zero."""
    w, v = dict(w), {name: np.zeros_like(value) for name, value in w.items()}
    for _ in range(steps):
        g = gradient(w, x, y)
        v = {name: momentum * v[name] + g[name] for name in w}
        w = {name: (w[name] - lr * v[name]) * mask.get(name, 1.0) for name in w}
    return w


def descend(w: Arrays, mask: Arrays, x: NDArray, y: NDArray) -> Arrays:
    """What a client of a published experiment comes to in a round."""
    return train(w, mask, x, y, STEPS, RATE)


def accuracy(w: Arrays, x: NDArray, y: NDArray) -> float:
    return float((logits(w, x)[1].argmax(1) == y).mean())


def largest(values: NDArray, alive: NDArray, number: int) -> NDArray:
    """The `number` largest |values| of the living, by sorting them."""
    return _top(np.where(alive, np.abs(values), -1.0), number) & alive


def _top(scores: NDArray, number: int) -> NDArray:
    """The `number` highest; ties go to the lower place."""
    kept = np.zeros(scores.size, bool)
    kept[np.argsort(-scores, axis=None, kind="stable")[:number]] = True
    return kept.reshape(scores.shape)


def best(scores: Arrays, number: int) -> Arrays:
    """The mask of the `number` highest of all layers together."""
    kept = _top(np.concatenate([scores[name].ravel() for name in PRUNABLE]), number)
    ends = np.cumsum([scores[name].size for name in PRUNABLE])[:-1]
    return {name: part.reshape(scores[name].shape) for name, part in zip(PRUNABLE, np.split(kept, ends), strict=True)}


def best_of_layers(scores: Arrays, numbers: dict[str, int]) -> Arrays:
    """The mask of so many highest of each layer."""
    return {name: _top(scores[name], numbers[name]) for name in PRUNABLE}


def averaged(parts: Sequence[Arrays], sizes: Sequence[int]) -> Arrays:
    """The mean by sizes."""
    return {name: sum(size * part[name] for size, part in zip(sizes, parts, strict=True)) / sum(sizes) for name in parts[0]}


def held_mean(server: Arrays, updates: Sequence[tuple[Arrays, Arrays, float]]) -> Arrays:
    """sum_k a_k m_k w_k / sum_k a_k m_k, entry by entry; the server's where nobody has it. updates: (w, mask, a)."""
    found = {}
    for name, old in server.items():
        total = sum(a * m.get(name, np.ones_like(old)) for _, m, a in updates)
        above = sum(a * m.get(name, np.ones_like(old)) * w[name] for w, m, a in updates)
        found[name] = np.where(total > 0, above / np.where(total > 0, total, 1), old)
    return found


def seats(weights: dict[str, float], sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` seats in proportion to the weights, one after the other to the layer whose weight / (seats + 1/2) is highest."""
    taken = dict.fromkeys(sizes, 0)
    for _ in range(total):
        open_ = [name for name in sizes if taken[name] < sizes[name]]
        taken[max(open_, key=lambda name: weights[name] / (taken[name] + 0.5))] += 1
    return taken


def erk(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Erdos-Renyi: a layer of in x out weights gets a number in proportion to in + out. Here 6 x 5 and 5 x 3: 11 to 8."""
    return seats({"fc1.weight": 11.0, "fc2.weight": 8.0}, sizes, total)
