"""Which layers come first and which give the outputs, in networks that run their layers in another order than they define."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.errors import Incompatible
from fedprune.federated.masks.nested import Nested
from fedprune.local.regularisers.base import regularised
from fedprune.local.regularisers.dropout import adjusted, adjusted_rates
from fedprune.local.regularisers.width_dropout import living_units, scaler
from fedprune.local.regularisers.width_slices import leading, output_layers
from fedprune.models.char_lstm import char_lstm
from fedprune.models.char_transformer import char_transformer
from fedprune.models.cnn import cnn_fedavg, cnn_small
from fedprune.models.lenet import lenet1, lenet5, lenet5_caffe, lenet_300_100
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg11, vgg_small
from fedprune.pruning.criterion import Criterion, magnitude
from fedprune.pruning.criterion.prunefl import layer_times
from fedprune.pruning.event import Axes, block, dropped
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import ones
from fedprune.pruning.what import What
from fedprune.pruning.what.fixed_density import Threshold
from fedprune.pruning.what.layer_order import LayerOrder, by_definition
from fedprune.pruning.what.layer_trace import traced
from fedprune.pruning.what.layers import LAYERS, prunable
from fedprune.pruning.what.scope import globally, per_layer
from fedprune.pruning.what.unit import filters, neurons, weights
from fedprune.ticket.start_from import head_names
from fedprune.types import PruneEvent, Subnet


class HeadFirst(nn.Module):
    """inputs -> 12 -> 8 -> classes, with the layers defined in the order fc2, head, fc1."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.fc2 = nn.Linear(12, 8)
        self.head = nn.Linear(8, classes)
        self.fc1 = nn.Linear(torch.Size(shape).numel(), 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class Net(nn.Module):
    """Any forward over linear layers of width 4, defined in alphabetical order: (network, input) -> outputs."""

    def __init__(self, forward, names: str = "abc", **others: nn.Module) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))
        for name, layer in others.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def order_of(net: nn.Module, *shape: int) -> LayerOrder:
    return traced(net, prunable(net), torch.randn(1, *(shape or (4,))))


def layers(names: tuple[str, ...]) -> str:
    return " ".join(name.removesuffix(".weight") for name in names)


def ends(net: nn.Module, *shape: int) -> tuple[str, str, str]:
    """(all in order, the first, the last), of all linear layers and convolutions."""
    order, names = order_of(net, *shape), [name for names in prunable(net, ("conv", "linear")).values() for name in names]
    return layers(order.sorted(names)), layers(order.first(names)), layers(order.last(names))


def bound(what: What, net: nn.Module, *shape: int) -> What:
    return what.bind(net, order_of(net, *shape))


def in_place(net: nn.Module, x: Tensor) -> Tensor:
    outputs = x.new_zeros(len(x), 8)
    outputs[:, :4] = net.c(x)
    outputs[:, 4:] = net.a(net.b(x))
    return outputs


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Net(lambda n, x: n.a(n.b(n.c(x)))), ("c b a", "c", "a")),
        (Net(lambda n, x: (n.a(h := n.c(x)), n.b(h))), ("c a b", "c", "a b")),  # two heads
        (Net(lambda n, x: {"y": torch.cat([n.a(h := n.c(x)), n.b(h)], 1)}), ("c a b", "c", "a b")),
        (Net(lambda n, x: (logits := n.b(n.c(x)), n.a(logits))), ("c b a", "c", "b a")),  # b's units are outputs, too
        (Net(lambda n, x: n.c(n.a(x) - n.b(x))), ("a b c", "a b", "c")),  # two stems
        (Net(lambda n, x: n.a(h := n.c(x)) + h), ("c a b", "c", "a")),  # c is added to the output, but a comes behind it
        (Net(lambda n, x: n.a(torch.cat([x[:, :2], n.c(x)[:, :2]], 1))), ("c a b", "c", "a")),  # c comes before a
        (Net(in_place), ("c b a", "c b", "c a")),
        (Net(lambda n, x: F.linear(F.relu(n.b(x)), n.a.weight)), ("b c a", "b", "a")),  # no call of a module; c is unused
        (Net(lambda n, x: n.a.forward(n.b(x))), ("b c a", "b", "a")),
        (Net(lambda n, x: F.linear(n.b(x), F.normalize(n.a.weight * 2))), ("b c a", "b", "a")),
        (Net(lambda n, x: n.c(n.a(n.b(n.a(x))))), ("b a c", "a", "c")),  # the last call gives the place
        (Net(lambda n, x: n.b(n.c(n.b(x)))), ("a c b", "b", "b")),
        (Net(lambda n, x: n.a(n.c(x)).detach()), ("c a b", "c", "a")),
    ],
)
def test_first_and_last_are_by_the_forward_pass(net, expected):
    assert ends(net) == expected


class Tied(nn.Module):
    """An embedding whose weight is the output layer's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.embedding = nn.Linear(3, 3), nn.Embedding(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.hidden(self.embedding(x)), self.embedding.weight)


def test_a_tied_embedding_is_first_and_last():
    net = Tied()
    order = traced(net, prunable(net), torch.tensor([[0, 4]]))
    names = ("hidden.weight", "embedding.weight")
    assert (order.first(names), order.last(names)) == (("embedding.weight",), ("embedding.weight",))
    assert order.last(("hidden.weight",)) == ("hidden.weight",)


def test_first_and_last_are_those_of_the_layers_that_are_asked_about():
    net = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
    order = order_of(net, 1, 4)
    assert (order.first(("0.weight", "1.weight")), order.last(("0.weight", "1.weight"))) == (("0.weight",), ("1.weight",))
    assert (order.first(("3.weight", "4.weight")), order.last(("3.weight", "4.weight"))) == (("3.weight",), ("4.weight",))


def test_a_layer_that_is_never_called_has_the_place_of_its_definition_and_is_said():
    net = Net(lambda n, x: n.a(n.c(x)))
    order = order_of(net)
    assert order.problem == "b is never called for one example, so its place is that of definition"
    assert ends(net) == ("c a b", "c", "a")  # b is defined behind a
    assert order.last(("b.weight",)) == ("b.weight",)  # of nothing else there is no other answer


@pytest.mark.parametrize(
    ("net", "problem"),
    [
        (
            Net(lambda n, x: n.a(n.b(x[:, :3]))),
            r"the network does not run on one example \(RuntimeError: .*shapes cannot be multiplied \(1x3 and 4x4\)\)",
        ),
        (Net(lambda n, x: torch.tensor(n.a(n.b(x)).tolist())), "no layer was seen that the network's outputs depend on"),
    ],
)
def test_where_it_cannot_be_told_the_order_is_that_of_definition_and_it_is_said(net, problem):
    assert re.fullmatch(problem, order_of(net).problem)
    assert ends(net) == ("a b c", "a", "c")


def test_looking_leaves_no_trace():
    net = Net(lambda n, x: n.a(F.dropout(n.norm(n.b(x)), training=True)), norm=nn.BatchNorm1d(4)).train()
    net.b.eval()
    before, random_state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    example = torch.ones(1, 4)
    traced(net, prunable(net), example)
    assert net.training and net.norm.training and not net.b.training
    assert torch.equal(torch.get_rng_state(), random_state) and torch.equal(example, torch.ones(1, 4))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


IMAGES = [
    *((make, (1, 28, 28)) for make in (lenet_300_100, lenet1, lenet5, lenet5_caffe, cnn_small, cnn_fedavg, vgg_small)),
    *[(resnet20, (3, 8, 8)), (functools.partial(resnet20, norm="batch"), (3, 8, 8)), (vgg11, (3, 32, 32))],
]


@pytest.mark.parametrize(("make", "shape"), [*IMAGES, (char_lstm, (7,)), (char_transformer, (7,))])
def test_networks_of_ours_run_as_they_are_defined(make, shape):
    net = make(shape, 10)
    known, like = prunable(net), by_definition(prunable(net))
    example = torch.zeros(1, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)
    order = traced(net, known, example)
    assert order.problem == ""
    for kinds in (tuple(LAYERS), ("conv",), ("linear",), ("conv", "linear", "recurrent", "attention")):
        names = [name for names in prunable(net, kinds).values() for name in names]
        for asked in ("sorted", "first", "last"):
            assert getattr(order, asked)(names) == getattr(like, asked)(names)
    channelled = prunable(net, ("conv", "linear"))
    assert all(
        order.before(name, channelled) == like.before(name, channelled)
        for name in channelled
        if isinstance(net.get_submodule(name), nn.Linear)
    )


def test_masks_have_the_order_of_definition_whatever_the_order_of_execution():
    what = bound(What(weights, globally), HeadFirst((2,), 3), 2)
    assert what.names == ("fc2.weight", "head.weight", "fc1.weight")
    assert what.in_order == ("fc1.weight", "fc2.weight", "head.weight")
    assert [*what.select({name: torch.rand(2, 2) for name in what.names}, 0.5)] == [*what.names]


def test_skip_leaves_out_what_runs_first_or_last():
    assert layers(bound(What(weights, globally, skip=("last",)), HeadFirst((2,), 3), 2).names) == "fc2 fc1"
    assert layers(bound(What(weights, globally, skip=("first",)), HeadFirst((2,), 3), 2).names) == "fc2 head"
    heads = Net(lambda n, x: (n.a(n.c(x)), n.b(n.c(x))))
    assert layers(bound(What(neurons, globally, skip=("last",)), heads).names) == "c"


def test_rates_and_thresholds_of_the_last_layer_are_of_the_one_that_runs_last():
    # At rate 0.5 a layer is at (1 - 0.1)^k where others are at (1 - 0.2)^k; k = 1: 90 and 80 of 100.
    net = nn.ModuleDict({"head": nn.Linear(10, 10), "body": nn.Linear(10, 10)})
    net.forward = lambda x: net["head"](net["body"](x))
    scores = {name: torch.arange(1.0, 101.0).view(10, 10) for name in ("head.weight", "body.weight")}
    rated = What(weights, functools.partial(per_layer, rates={"last": 0.5}))
    assert {n: int(k.sum()) for n, k in bound(rated, net, 10).select(scores, 0.8).items()} == {
        "head.weight": 90,
        "body.weight": 80,
    }
    # Everything is at least 0 standard deviations; of 1..100 the root mean square is 58.2, so 42 are at least 1.
    thresholds = What(weights, Threshold(0.0, {"last": 1.0}))
    assert {n: int(k.sum()) for n, k in bound(thresholds, net, 10).select(scores, 0.5).items()} == {
        "head.weight": 42,
        "body.weight": 100,
    }


def test_times_and_blocks_count_from_the_layer_that_runs_last():
    net = HeadFirst((2,), 3)
    what = bound(What(weights, per_layer), net, 2)
    assert layer_times({"first": 2.0, "last": 5.0}, what.names, what.ends) == {
        "fc2.weight": 1.0,
        "head.weight": 5.0,
        "fc1.weight": 2.0,
    }
    assert [layers(block(what.in_order, number, 3)) for number in range(3)] == ["head", "fc2", "fc1"]
    subnet = Subnet(net.state_dict(), ones(net.state_dict(), what.names))
    axes = Axes(what, Criterion(magnitude))
    mask = dropped(subnet, PruneEvent(1, 1.0, swap=0.5, block=(0, 3)), axes, lambda names, *_: {"params": subnet.params})
    assert [name for name, alive in mask.items() if not alive.all()] == ["head.weight"]


def test_filters_that_are_the_networks_outputs_are_not_pruned():
    fully = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    assert bound(What(filters, globally, ("conv",)), fully, 1, 5, 5).names == ("0.weight",)
    assert bound(What(weights, globally, ("conv",)), fully, 1, 5, 5).names == ("0.weight", "2.weight")
    with pytest.raises(Incompatible, match="the filters of 0 are the network's outputs: choose what=weights_global"):
        bound(What(filters, globally, ("conv",)), nn.Sequential(nn.Conv2d(1, 6, 3)), 1, 5, 5)


def test_a_slice_keeps_the_units_of_the_layer_that_runs_last():
    net = HeadFirst((2,), 3)
    network = Network(net, (2,), order_of(net, 2))
    alive = {name: int(rows.flatten(1).any(1).sum()) for name, rows in leading(network, 0.5).items() if name.endswith("weight")}
    assert alive == {"fc2.weight": 4, "head.weight": 3, "fc1.weight": 6}
    assert output_layers(net, network.order) == ("head.weight",)
    part = Nested(labels="own").bind([1.0], [(0, 2)], network, bound(What(weights, globally), net, 2))
    assert part.slice(part.parts[0])["head.bias"].tolist() == [True, False, True]
    assert part.slice(part.parts[0])["fc1.bias"].all()


def test_labels_of_ones_own_ask_for_one_output_layer():
    net = Net(lambda n, x: (n.a(n.c(x)), n.b(n.c(x))))
    network = Network(net, (4,), order_of(net))
    with pytest.raises(Incompatible, match="the outputs are those of a, b: choose whose.labels=all"):
        Nested(labels="own").bind([1.0], [(0,)], network, bound(What(weights, globally), net))


def test_a_fresh_head_is_the_layer_that_runs_last():
    net = HeadFirst((2,), 3)
    assert head_names(net, order_of(net, 2)) == ("head.weight", "head.bias")
    assert head_names(Net(None)) == ("c.weight", "c.bias")  # nothing is known: as they are defined


def test_dropout_goes_by_the_layers_that_run_before():
    # Inputs of fc2 are made by fc1, of which a quarter lives: 0.4 sqrt(1/4) = 0.2; those of head by fc2, which is dense: 0.4.
    net = HeadFirst((2,), 3)
    mask = {"fc1.weight": torch.arange(24).view(12, 2) % 4 == 0}
    rates = {"fc2": pytest.approx(0.2), "head": pytest.approx(0.4)}
    assert adjusted_rates(net, mask, 0.4, order_of(net, 2)) == rates
    told = adjusted(0.4).told(order_of(net, 2))
    assert {name: forward.keywords["p"] for name, forward in told.layers(net, mask).items()} == rates
    # Side by side: 16 + 16 weights, of which 16 and 0 live: a half.
    beside = Net(lambda n, x: n.c(n.a(x) + n.b(x)))
    assert adjusted_rates(beside, {"b.weight": torch.zeros(4, 4, dtype=torch.bool)}, 0.4, order_of(beside)) == {
        "c": pytest.approx(0.4 * 0.5**0.5)
    }


def test_hidden_layers_are_scaled_and_the_one_that_runs_last_is_not():
    net = HeadFirst((2,), 3)
    mask = {name: alive for name, alive in leading(Network(net, (2,), order_of(net, 2)), 0.5).items() if alive.dim() > 1}
    assert living_units(net, mask, order_of(net, 2)) == {"fc2": 4, "fc1": 6}
    seen = {}
    net.head.register_forward_hook(lambda layer, inputs, outputs: seen.update(head=(inputs[0], outputs)))
    with regularised(net, mask, (scaler().told(order_of(net, 2)),), 1):
        net(torch.ones(1, 2))
    inputs, outputs = seen["head"]
    assert torch.equal(outputs, F.linear(inputs, net.head.weight, net.head.bias))


@pytest.fixture
def head_first(tiny):
    return lambda *overrides: tiny("model=lenet_300_100", f"model._target_={__name__}.HeadFirst", *overrides)


def test_a_run_prunes_no_class_of_a_head_that_is_defined_first(head_first, play):
    state = play(head_first("what=neurons_global", "density=0.2", "when=before_training", "how_often=one_shot"))[-1][0]
    assert [*state.server.mask] == ["fc2.weight", "fc1.weight"]  # 4 of the 20 hidden neurons live, and all ten classes
    assert sum(int(alive.flatten(1).any(1).sum()) for alive in state.server.mask.values()) == 4


def test_workers_are_told_the_order(head_first):
    experiment = head_first("local/dropout=adjusted", "whose=shared")
    (regulariser,) = [one for one in experiment.regularisers if one.layers]
    assert [*regulariser.layers(experiment.net, {})] == ["fc2", "head"]
    assert experiment.axes.what.order.problem == ""


class Unused(HeadFirst):
    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(shape, classes)
        self.spare = nn.Linear(2, 2)


def test_what_cannot_be_told_is_said_once(tiny, caplog):
    tiny("model=lenet_300_100", f"model._target_={__name__}.Unused")
    said = [record.getMessage() for record in caplog.records if "first and last" in record.getMessage()]
    assert said == [
        "which layers are first and last: spare is never called for one example, so its place is that of definition"
    ]
