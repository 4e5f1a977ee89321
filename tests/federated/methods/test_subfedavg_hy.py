"""Sub-FedAvg (Hy) (Vahidian et al. 2021): by hand, and against the algorithm written down in numpy, BatchNorm and all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.errors import Incompatible
from fedprune.federated.sampling import cohort
from fedprune.pruning.criterion.structured import bn_scale_or_magnitude
from fedprune.pruning.evidence.data_free import filter_scales
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import shrink
from helpers.federation import SCALE, arrays, assert_personal, assert_same, federation
from helpers.in_numpy import held_mean, largest

HYBRID = (
    *("what=filters_and_weights", "criterion=bn_scale_or_magnitude", "how_often=stepwise", "when=once_moving"),
    *("when.start=0.0", "when.stop=1.0", "whose=personal", "whose.at=end", "rewind=none"),
)


class Row(nn.Module):
    """One convolution over a whole row of features, BatchNorm, ReLU and a linear layer."""

    def __init__(self, features: int, hidden: int, classes: int, norm: bool):
        super().__init__()
        self.conv = nn.Conv2d(1, hidden, (1, features))
        self.norm = nn.BatchNorm2d(hidden) if norm else nn.Sequential()
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


def row(shape: tuple[int, int, int], classes: int, hidden: int, norm: bool = True) -> nn.Module:
    return Row(shape[-1], hidden, classes, norm)


def model(hidden: int, norm: bool = True) -> dict:
    return {"_target_": f"{__name__}.row", "hidden": hidden, "norm": norm}


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_filters_go_by_their_scale_and_linear_weights_by_their_size():
    """Half of 3 filters, 1.5, is 2 (half up): |gamma| = 0.9 and 0.5. Half of 6 weights is 3: 7, -6, 5."""
    experiment = federation(*HYBRID, "density=0.5", "how_often.rate=0.5", "rounds=3", model=model(3), features=2, classes=2)
    net = experiment.net
    params = {name: value.clone() for name, value in net.state_dict().items()}
    params["conv.weight"] = torch.tensor([[9.0, 9.0], [0.1, 0.1], [1.0, 1.0]]).view(3, 1, 1, 2)
    params["norm.weight"] = torch.tensor([0.1, -0.9, 0.5])
    params["fc.weight"] = torch.tensor([[7.0, 1.0, 2.0], [-6.0, 5.0, 3.0]])
    names = experiment.axes.what.names
    scores = bn_scale_or_magnitude({n: params[n] for n in names}, filter_scales(Network(net, (1, 1, 2)), params, names))
    assert torch.allclose(scores["conv.weight"][:, 0, 0, 0], torch.tensor([0.1, 0.9, 0.5]))
    whole = {name: torch.ones_like(params[name], dtype=torch.bool) for name in names}
    mask = shrink(whole, scores, 0.5, experiment.axes.what)
    assert mask["conv.weight"].view(3, 2).tolist() == [[False, False], [True, True], [True, True]]
    assert mask["fc.weight"].tolist() == [[True, False, False], [True, True, False]]


def test_without_batchnorm_it_is_refused_with_the_name_of_the_convolution():
    with pytest.raises(Incompatible, match="no normalisation follows conv: choose model=resnet20") as refused:
        federation(*HYBRID, "density=0.5", "rounds=9", model=model(3, norm=False), features=2, classes=2)
    assert "criterion=bn_scale_or_magnitude" in str(refused.value)


# --- against numpy ---------------------------------------------------------------------------------------------------------

EPS, MOMENTUM = 1e-5, 0.1  # of torch's BatchNorm2d


def step(w, mask, x, y, lr):
    """One full-batch step of SGD: forward with the batch's own statistics, which the running ones take in, and backward."""
    n = len(y)
    a = x @ w["conv.weight"][:, 0, 0].T + w["conv.bias"]
    mean, var = a.mean(0), a.var(0)
    xhat = (a - mean) / np.sqrt(var + EPS)
    h = np.maximum(xhat * w["norm.weight"] + w["norm.bias"], 0)
    out = h @ w["fc.weight"].T + w["fc.bias"]
    p = np.exp(out - out.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(n), y] -= 1
    p /= n
    back = (p @ w["fc.weight"]) * (h > 0)
    g = {"fc.weight": p.T @ h, "fc.bias": p.sum(0), "norm.weight": (back * xhat).sum(0), "norm.bias": back.sum(0)}
    da = w["norm.weight"] / np.sqrt(var + EPS) * (back - back.mean(0) - xhat * (back * xhat).mean(0))
    g |= {"conv.weight": (da.T @ x)[:, None, None, :], "conv.bias": da.sum(0)}
    after = {name: (w[name] - lr * g[name]) * mask.get(name, 1.0) for name in g}
    running = {"norm.running_mean": mean, "norm.running_var": var * n / (n - 1)}
    after |= {name: (1 - MOMENTUM) * w[name] + MOMENTUM * value for name, value in running.items()}
    return after | {"norm.num_batches_tracked": w["norm.num_batches_tracked"] + 1}


def right(w, x, y) -> float:
    """Accuracy by the running statistics."""
    a = x @ w["conv.weight"][:, 0, 0].T + w["conv.bias"]
    z = (a - w["norm.running_mean"]) / np.sqrt(w["norm.running_var"] + EPS) * w["norm.weight"] + w["norm.bias"]
    return float(((np.maximum(z, 0) @ w["fc.weight"].T + w["fc.bias"]).argmax(1) == y).mean())


@pytest.mark.parametrize("members", [3, 2])
@pytest.mark.parametrize(("shift", "gate"), [(0.0, 0.0), (0.005, 0.4)])
def test_it_is_the_algorithm_of_the_paper_written_down_in_numpy(shift, gate, members, play):
    rate, rounds, final, epochs, lr, hidden = 0.1, 8, 0.7, 5, 0.3, 12
    experiment = federation(
        *(*HYBRID, f"when.shift={shift}", f"when.accuracy={gate}", f"how_often.rate={rate}", f"density={final}"),
        *(f"rounds={rounds}", f"local.epochs={epochs}", f"local.optimizer.lr={lr}"),
        model=model(hidden), cohort=members,
    )  # fmt: skip
    played = play(experiment)

    def data(part):
        x = experiment.dataset.x[part].numpy().reshape(len(part), -1) / SCALE
        return x, experiment.dataset.y[part].numpy()

    def chosen(w, mask, density):
        """Filters by |gamma|, linear weights by |w|, the fraction `density` of each."""
        alive = mask["conv.weight"].any((1, 2, 3))
        rows = largest(w["norm.weight"], alive, math.floor(density * hidden + 0.5))
        fc = largest(w["fc.weight"], mask["fc.weight"], math.floor(density * mask["fc.weight"].size + 0.5))
        return {"conv.weight": np.broadcast_to(rows[:, None, None, None], mask["conv.weight"].shape), "fc.weight": fc}

    server = arrays(experiment.loop(experiment.executor()).start().init)
    densities, masks, events, refused = [0.9, 0.81, 0.729, 0.7], {}, {}, 0
    for round, (state, _) in enumerate(played):
        updates = []
        for k in cohort(0, round, 3, members):
            whole = {name: np.ones(server[name].shape, bool) for name in ("conv.weight", "fc.weight")}
            mask = masks.get(k, whole)
            w = {name: value * mask.get(name, 1.0) for name, value in server.items()}
            trained = [w]
            for _ in range(epochs):
                trained.append(step(trained[-1], mask, *data(experiment.clients.train[k]), lr))
            w = trained[-1]
            if round >= 1 and events.get(k, 0) < len(densities):
                one, two = (chosen(v, mask, densities[events.get(k, 0)]) for v in (trained[1], w))
                differ = sum((one[name] ^ two[name]).sum() for name in one) / sum(m.sum() for m in mask.values())
                smaller = {name: value * two.get(name, 1.0) for name, value in w.items()}
                if differ > shift and right(smaller, *data(experiment.clients.val[k])) >= gate:
                    mask, w = two, smaller
                    masks[k], events[k] = mask, events.get(k, 0) + 1
                else:
                    refused += 1
            updates.append((w, mask, 1.0))
        server = held_mean(server, updates)
        assert_same(state, server, {}, atol=2e-5)
        assert_personal(state, masks, events)
    assert sum(events.values()) >= 2
    assert refused >= 1
