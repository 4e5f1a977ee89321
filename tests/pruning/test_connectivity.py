"""Paths: entries that lie between input and output, on networks small enough to see them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedprune.models.cnn import cnn_fedavg
from fedprune.models.lenet import lenet5
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg11
from fedprune.pruning.connectivity import effective, effective_density, unfollowed
from fedprune.pruning.mask import count, ones
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.top_k import keep_best
from fedprune.pruning.what.unit import weights
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
    mask = dense(net)
    net.requires_grad_(False)
    before, random_state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        effective(net, mask, (1, 16, 16))
    assert net.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


class Net(nn.Module):
    """Any forward over these layers: (network, input) -> outputs."""

    def __init__(self, forward: Callable, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def linear(names: str = "abc", bias: bool = True, width: int = 3) -> dict[str, nn.Module]:
    return {name: nn.Linear(width, width, bias=bias) for name in names}


def written(net: nn.Module, x: Tensor) -> Tensor:
    outputs = net.a(x).new_zeros(len(x), 6)
    outputs[:, 1:4] = net.b(x)
    return outputs


def attended(net: nn.Module, x: Tensor) -> Tensor:
    q, k, v = net.a(x), net.b(x), net.c(x)
    return net.d(torch.softmax(q @ k.transpose(-2, -1) / 3**0.5, -1) @ v)


def added_in_place(net: nn.Module, x: Tensor) -> Tensor:
    h = net.a(x) * 2
    h += net.b(x)
    h.sub_(net.c(torch.tanh(h)))
    return h


def image(kernel: int = 1) -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(3, 4, kernel), "b": nn.Conv2d(4, 4, kernel, bias=False), "c": nn.Linear(4, 4), "d": nn.Linear(4, 2)}


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "difference": (Net(lambda n, x: n.c(torch.tanh(n.a(x)) - torch.tanh(n.b(x))), **linear()), (3,)),
    "gate": (Net(lambda n, x: n.c(n.a(x) * torch.sigmoid(n.b(x))), **linear()), (3,)),
    "gate without biases": (Net(lambda n, x: n.c(n.a(x) * torch.sigmoid(n.b(x))), **linear(bias=False)), (3,)),
    "product": (Net(lambda n, x: n.c(n.a(x) * n.b(x)), **linear()), (3,)),
    "product without biases": (Net(lambda n, x: n.c(n.a(x) * n.b(x)), **linear(bias=False)), (3,)),
    "product of hidden units": (Net(lambda n, x: n.d(n.b(n.a(x)) * n.c(x)), **linear("abcd", bias=False)), (3,)),
    "quotient": (Net(lambda n, x: n.c(n.a(x) / (1 + n.b(x).exp())), **linear(bias=False)), (3,)),
    "reversed": (Net(lambda n, x: n.c(1 - n.a(x)) + 2 / (3 + n.b(x) ** 2), **linear(bias=False)), (3,)),
    "concatenation": (Net(lambda n, x: torch.cat([n.a(x)[:, :2], n.b(n.c(x))], 1), **linear()), (3,)),
    "residual": (Net(lambda n, x: n.c(x + n.b(torch.tanh(n.a(x)))), **linear()), (3,)),
    "softmax": (Net(lambda n, x: n.c(torch.softmax(n.a(x), 1) * n.b(x)), **linear()), (3,)),
    "glu": (Net(lambda n, x: n.c(F.glu(torch.cat([n.a(x), n.b(x)], 1), 1)), **linear(bias=False)), (3,)),
    "twice": (Net(lambda n, x: n.c(torch.tanh(n.a(torch.tanh(n.a(x)))) - n.a(x)), **linear("ac", bias=False)), (3,)),
    "attention": (Net(attended, **linear("abcd", bias=False)), (4, 3)),
    "in place": (Net(added_in_place, **linear(bias=False)), (3,)),
    "squeeze and excite": (
        Net(lambda n, x: n.d((n.b(h := n.a(x)) * torch.sigmoid(n.c(h.mean((2, 3))))[:, :, None, None]).sum((2, 3))), **image()),
        (3, 2, 2),
    ),
    "written": (Net(written, **linear("ab")), (3,)),
    "where": (Net(lambda n, x: n.c(torch.where(torch.arange(3) < 2, n.a(x), n.b(x))), **linear()), (3,)),
    "views": (
        Net(
            lambda n, x: n.c((y := n.a(x)).view(len(y), -1, 1).expand(-1, -1, 2).mT.reshape(-1, 6)[:, 1:4] ** 2), **linear("ac")
        ),
        (3,),
    ),
    "dictionary": (Net(lambda n, x: {"y": n.a(x), "z": [n.b(n.a(x))]}, **linear("ab")), (3,)),
    "einsum": (Net(lambda n, x: torch.einsum("bi,bi->b", n.a(x), n.b(x)), **linear("ab", bias=False)), (3,)),
}


def by_numbers(net: nn.Module, mask: Mask, shape: tuple[int, ...]) -> Mask:
    """What is effective, by numbers: what an entry reads is another at another input, and the outputs have a derivative by what
    it writes, at random weights (and at several inputs, so that nothing is 0 by chance)."""
    net = copy.deepcopy(net).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * mask.get(name, torch.ones(())))
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in mask}

    def note(name: str, inputs: Tensor, outputs: Tensor) -> Tensor:
        outputs.requires_grad_()
        calls[name].append((inputs.detach(), outputs))
        return outputs

    for name in mask:
        layer = net.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_hook(lambda _, inputs, outputs, name=name: note(name, inputs[0], outputs))
    outputs = sum((leaf * torch.randn_like(leaf)).sum() for leaf in tree_leaves(net(torch.randn(6, *shape).double())))
    found = {name: torch.zeros_like(alive) for name, alive in mask.items()}
    for name, alive in mask.items():
        for inputs, made in calls[name]:
            (slopes,) = torch.autograd.grad(outputs, made, retain_graph=True, materialize_grads=True, allow_unused=True)
            if alive.dim() > 2:
                inputs, slopes = inputs.movedim(1, -1), slopes.movedim(1, -1)
            reads = (inputs - inputs.mean(0)).abs().amax(0).view(-1, alive.shape[1]) > 1e-9
            writes = slopes.abs().amax(0).view(-1, alive.shape[0]) > 1e-12
            on_path = (writes.T.double() @ reads.double() > 0).view(*alive.shape)
            found[name] |= alive & on_path
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(8))
def test_what_is_effective_is_what_numbers_say(name, seed):
    torch.manual_seed(seed)
    net, shape = NETWORKS[name]
    mask = {n: torch.rand(w.shape) < (0.3, 0.5, 0.7)[seed % 3] for n, w in net.named_parameters() if n.endswith("weight")}
    if seed > 2:  # whole layers and rows are dead
        mask = {n: alive & (torch.rand(len(alive), *[1] * (alive.dim() - 1)) < 0.7) for n, alive in mask.items()}
        dead = sorted(mask)[seed % len(mask)]
        mask[dead] = torch.zeros_like(mask[dead])
    assert unfollowed(net, shape) == ""
    found, expected = effective(net, mask, shape), by_numbers(net, mask, shape)
    assert {n: alive.tolist() for n, alive in found.items()} == {n: alive.tolist() for n, alive in expected.items()}


def test_branches_that_are_subtracted_are_both_on_paths():
    net = Net(lambda n, x: n.c(F.relu(n.a(x)) - F.relu(n.b(x))), **linear())
    assert effective_density(net, dense(net), (3,)) == 1.0


def test_a_dead_gate_lets_a_half_pass():
    # sigmoid(0) = 1/2, or that of a bias: 18 of the 27 entries are on a path.
    for bias in (True, False):
        net = Net(lambda n, x: n.c(n.a(x) * torch.sigmoid(n.b(x))), **linear(bias=bias))
        mask = dense(net) | {"b.weight": torch.zeros(3, 3, dtype=torch.bool)}
        assert {name: int(alive.sum()) for name, alive in effective(net, mask, (3,)).items()} == {
            "a.weight": 9,
            "b.weight": 0,
            "c.weight": 9,
        }


@pytest.mark.parametrize(("bias", "on_paths"), [(True, 18), (False, 0)])
def test_a_dead_factor_lets_pass_what_its_bias_does(bias, on_paths):
    net = Net(lambda n, x: n.c(n.a(x) * n.b(x)), **linear(bias=bias))
    assert count(effective(net, dense(net) | {"b.weight": torch.zeros(3, 3, dtype=torch.bool)}, (3,))) == on_paths


def test_a_length_is_felt_by_all_that_it_divides():
    # c reads only unit 0 of a(x) / |a(x)|, which all units of a have a part in. A weight of 0 divided by a length stays 0.
    net = Net(lambda n, x: F.linear(F.normalize(n.a(x)), F.normalize(n.c.weight)), **linear("ac"))
    mask = dense(net) | {"c.weight": of([1, 0, 0]).expand(3, 3).contiguous()}
    assert same(effective(net, mask, (3,)), mask)


def test_a_constant_of_the_code_is_what_it_is():
    class Selected(Net):
        def __init__(self) -> None:
            super().__init__(lambda n, x: n.c(n.a(x) * n.chosen), **linear("ac"))
            self.register_buffer("chosen", torch.tensor([1.0, 0.0, -2.0]))

    found = effective(Selected(), dense(Selected()), (3,))
    assert found["a.weight"].all(1).tolist() == [True, False, True]
    assert found["c.weight"].all(0).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("forward", "problem"),
    [
        (lambda n, x: n.c(torch.sort(n.a(x)).values), "sort in its forward cannot be followed"),
        (lambda n, x: n.c(x) if n.a(x).sum() > 0 else n.b(x), "gt in its forward cannot be followed"),
        (lambda n, x: n.c(x)[:, :2].add_(n.a(x)[:, :2]), "writing in place into a view in its forward cannot be followed"),
        (lambda n, x: n.c(torch.from_numpy(x.numpy())), "numpy in its forward cannot be followed"),
        (lambda n, x: n.d(x), "its forward cannot be followed (AttributeError: 'Net' object has no attribute 'd')"),
    ],
)
def test_what_cannot_be_followed_is_said_and_not_made_up(forward, problem):
    assert unfollowed(Net(forward, **linear()), (3,)) == problem


def test_a_run_without_the_metric_says_why_once(tiny, play, caplog):
    overrides = ("when=before_training", "how_often=one_shot", "what=weights_global")
    with caplog.at_level("INFO"):
        rounds = play(tiny("model=lenet_300_100", f"model._target_={__name__}.Sorting", *overrides))
    assert not any("density/effective" in metrics for _, metrics in rounds)
    said = [record.getMessage() for record in caplog.records if "density/effective" in record.getMessage()]
    assert said == ["density/effective is not reported: sort in its forward cannot be followed"]


class Sorting(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(torch.Size(shape).numel(), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.sort(x.flatten(1)).values)


def test_half_precision_is_followed_too():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1)).to(torch.bfloat16)
    mask = {"0.weight": of([[[1]]], [[[0]]]), "3.weight": of([1] * 8)}
    assert effective(net, mask, (1, 2, 2))["3.weight"].tolist() == [[True] * 4 + [False] * 4]
