"""Paths: entries that lie between input and output, on networks small enough to see them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.models.cnn import cnn_fedavg
from fedprune.models.lenet import lenet5
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg11
from fedprune.pruning.mask import count, ones
from fedprune.pruning.paths import effective, effective_density
from fedprune.pruning.rank import keep_best
from fedprune.pruning.scope import globally
from fedprune.pruning.unit import weights
from fedprune.pruning.what import What
from fedprune.types import Mask


def of(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def dense(net: nn.Module) -> Mask:
    return ones(net.state_dict(), What(weights, globally).bind(net).names)


def random_mask(net: nn.Module, density: float, seed: int = 0) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(alive.shape, generator=generator) for name, alive in dense(net).items()}
    return keep_best(scores, int(density * sum(score.numel() for score in scores.values())))


def same(mask: Mask, other: Mask) -> bool:
    return mask.keys() == other.keys() and all(torch.equal(alive, other[name]) for name, alive in mask.items())


def test_a_dangling_weight_is_alive_and_of_no_effect():
    # 2 inputs -> 3 hidden units -> 1 output. Hidden unit 0 is read and heard: on a path. Unit 1 is written to and never read;
    # unit 2 is read and never written to.
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    mask = {"0.weight": of([1, 0], [1, 1], [0, 0]), "2.weight": of([1, 0, 1])}
    found = effective(net, mask, (2,))
    assert found["0.weight"].tolist() == [[True, False], [False, False], [False, False]]
    assert found["2.weight"].tolist() == [[True, False, False]]
    assert effective_density(net, mask, (2,)) == 2 / 9


def test_biases_and_signs_of_the_weights_do_not_matter():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    nn.init.constant_(net[0].weight, -1.0)
    nn.init.constant_(net[0].bias, 5.0)
    mask = {"0.weight": of([1, 1], [0, 0]), "2.weight": of([1, 1])}  # the second hidden unit lives on its bias alone
    found = effective(net, mask, (2,))
    assert found["2.weight"].tolist() == [[True, False]]
    assert found["0.weight"].tolist() == [[True, True], [False, False]]


def test_a_channel_feeds_its_own_columns_of_a_flattened_linear_layer():
    # Two 2x2 images, flattened: columns 0-3 are the first channel's, 4-7 the second's.
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    mask = {"0.weight": of([[[1]]], [[[0]]]), "2.weight": of([0, 1, 0, 0, 1, 1, 0, 0])}
    found = effective(net, mask, (1, 2, 2))
    assert found["2.weight"].tolist() == [[False, True] + [False] * 6]
    assert count(found) == 2
    mask = {"0.weight": of([[[1]]], [[[1]]]), "2.weight": of([0, 0, 0, 0, 1, 1, 0, 0])}
    assert effective(net, mask, (1, 2, 2))["0.weight"].flatten().tolist() == [False, True]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(1)])
def test_a_pool_lets_its_whole_window_pass(pool):
    # A 3x3 kernel with padding 1 on a 2x2 image: its upper left entry reads the image only at the lower right place, and
    # its lower right entry only at the upper left one. Both places are in the pool's window.
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), pool, nn.Flatten(), nn.Linear(1, 1))
    mask = {"0.weight": of([[[1, 0, 0], [0, 0, 0], [0, 0, 1]]]), "3.weight": of([1])}
    assert same(effective(net, mask, (1, 2, 2)), mask)


@pytest.mark.parametrize(
    "between", [nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Sigmoid(), nn.Tanh(), nn.Dropout(0.9), nn.GELU()]
)
def test_what_stands_between_layers_neither_cuts_nor_makes_a_path(between):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), between, nn.Conv2d(2, 1, 1))
    mask = {"0.weight": of([[[1]]], [[[0]]]), "2.weight": of([[[1]], [[1]]])}
    assert effective(net, mask, (1, 3, 3))["2.weight"].flatten().tolist() == [True, False]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(F.relu(x + self.b(x)))


def test_a_shortcut_is_a_path():
    mask = {"a.weight": of([1, 0], [0, 0]), "b.weight": of([0, 0], [0, 1]), "c.weight": of([1, 1])}
    found = effective(Residual(), mask, (2,))
    assert found["a.weight"].tolist() == [[True, False], [False, False]]  # through the shortcut, past a dead row of b
    assert not found["b.weight"].any()  # reads unit 1, which nothing reaches
    assert found["c.weight"].tolist() == [[True, False]]


def test_a_layer_that_has_lost_its_last_weight_cuts_everything():
    net = cnn_fedavg((1, 8, 8), 10)
    mask = dense(net)
    assert effective_density(net, mask, (1, 8, 8)) == 1.0
    mask["conv2.weight"] = torch.zeros_like(mask["conv2.weight"])
    assert effective_density(net, mask, (1, 8, 8)) == 0.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_a_linear_networks_paths_are_those_that_matrix_products_count(density, seed):
    sizes = (6, 9, 7, 8, 4)
    net = nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(sizes)))
    mask = random_mask(net, density, seed)
    matrices = [mask[f"{i}.weight"].double() for i in range(len(net))]
    reached, heard = [torch.ones(sizes[0]).double()], [torch.ones(sizes[-1]).double()]
    for m in matrices:
        reached.append(m @ reached[-1])
    for m in reversed(matrices):
        heard.insert(0, m.T @ heard[0])
    for i, m in enumerate(matrices):
        paths = m * torch.outer(heard[i + 1], reached[i])
        assert torch.equal(effective(net, mask, (sizes[0],))[f"{i}.weight"], paths > 0)


def test_no_depth_is_too_deep_to_count():
    # 200 layers of 64 units: 64^200 paths are more than any float holds.
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(200)))
    assert effective_density(net, dense(net), (64,)) == 1.0


@pytest.mark.parametrize(
    ("make", "shape"), [(lenet5, (1, 28, 28)), (cnn_fedavg, (1, 8, 8)), (resnet20, (3, 8, 8)), (vgg11, (3, 32, 32))]
)
def test_what_is_effective_is_alive_stays_so_and_without_the_rest_nothing_changes(make, shape):
    net = make(shape, 10)
    mask = random_mask(net, 0.02)
    found = effective(net, mask, shape)
    assert all(not (found[name] & ~alive).any() for name, alive in mask.items())
    assert 0 < count(found) < count(mask)
    assert same(effective(net, found, shape), found)


@pytest.mark.parametrize("make", [cnn_fedavg, lambda shape, classes: resnet20(shape, classes, norm="batch")])
def test_looking_leaves_no_trace(make):
    net = make((1, 16, 16), 10).train()
    net.requires_grad_(False)
    before, random_state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        effective(net, dense(net), (1, 16, 16))
    assert net.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
