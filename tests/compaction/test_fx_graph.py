"""ChannelGraph against networks whose units can be counted by hand, and forwards that must not be taken apart."""

from __future__ import annotations

import random

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from fedprune.compaction.fx_graph import ChannelGraph, channel_graph
from fedprune.models.cnn import cnn_small
from fedprune.models.lenet import lenet_300_100
from fedprune.models.resnet import resnet20

SHAPE = (1, 8, 8)


class Small(nn.Module):
    """1 x 8 x 8 -> 2 channels -> pooled 2 x 2 x 2 -> 3 -> 2; what stands between is up to the subclass."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(8, 3), nn.Linear(3, 2)

    def flat(self, x):
        return torch.flatten(x, 1)

    def between(self, x):
        return x

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 4)
        return self.fc2(F.relu(self.between(self.fc1(self.flat(x)))))


class Method(Small):
    def flat(self, x):
        return x.flatten(1)


class View(Small):
    def flat(self, x):
        return x.view(x.size(0), -1)


class Reshape(Small):
    def flat(self, x):
        return torch.reshape(x, (x.shape[0], -1))


class Named(Small):
    def flat(self, x):
        return torch.flatten(x, start_dim=1, end_dim=3)


class Module(Small):
    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()

    def flat(self, x):
        return self.flatten(x)


def traceable(net):
    try:
        return bool(fx.symbolic_trace(net))
    except TypeError:
        return False


@pytest.mark.parametrize("kind", [Small, Method, View, Reshape, Named, Module])
def test_units_are_followed_from_those_who_make_them_to_those_who_read_them(kind):
    wired = channel_graph(kind(), SHAPE)
    if kind is Reshape and not traceable(kind()):
        assert wired is None  # older releases of torch cannot trace it, and the network is trained whole
        return
    conv, fc1, fc2 = wired.layers.values()
    assert (conv.makes.tolist(), conv.reads.tolist()) == ([0, 1], [-1])
    assert (fc1.makes.tolist(), fc1.reads.tolist()) == ([2, 3, 4], [0, 0, 0, 0, 1, 1, 1, 1])  # 2 x 2 places each
    assert (fc2.makes.tolist(), fc2.reads.tolist()) == ([5, 6], [2, 3, 4])
    assert wired.fixed.tolist() == [False] * 5 + [True] * 2  # what the network puts out
    assert (conv.before, conv.products) == ((8, 8), 9 * 2 * 64)
    assert wired.bare == frozenset()


class Mean(Small):
    """Over places."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 3)

    def flat(self, x):
        return x.mean((-2, -1))


class MeanOfUnits(Small):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 3)

    def flat(self, x):
        return x.mean((1, 3))


def test_means_over_places_are_passed_and_no_others():
    assert channel_graph(Mean(), SHAPE).layers["fc1"].reads.tolist() == [0, 1]
    wired = channel_graph(MeanOfUnits(), SHAPE)
    assert wired.layers["fc1"].reads.tolist() == [-1, -1]
    assert wired.fixed[wired.layers["conv"].makes].all()


class FixedView(Small):
    """Counts on its width."""

    def flat(self, x):
        return x.view(-1, 8)


class Dropout(Small):
    """Draws as many numbers as there are units."""

    def between(self, x):
        return F.dropout(x, 0.5, self.training)


class Added(Small):
    def between(self, x):
        return x + 1.5 * x


class Joined(Small):
    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(6, 2)

    def between(self, x):
        return torch.cat([x, x], 1)


class Normalised(Small):
    """Over units."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)

    def between(self, x):
        return self.norm(x)


class Pooled(Small):
    """Over units: a pooling of [B, C] takes C for places."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool1d(3, 1, 1)

    def between(self, x):
        return self.pool(x)


class Softmax(Small):
    def between(self, x):
        return F.softmax(x, 1)


class Looked(Small):
    """What becomes of a unit is nobody's business, but where its size is asked for, more than the batch is."""

    def between(self, x):
        return x * x.shape[1]


@pytest.mark.parametrize("kind", [Dropout, Added, Joined, Normalised, Pooled, Softmax, Looked])
def test_units_that_meet_others_or_are_drawn_for_are_fixed(kind):
    wired = channel_graph(kind(), SHAPE)
    assert wired.fixed[wired.layers["fc1"].makes].all()
    assert not wired.fixed[wired.layers["conv"].makes].any()


def test_a_forward_that_counts_on_a_width_has_it():
    wired = channel_graph(FixedView(), SHAPE)
    assert wired.fixed[wired.layers["conv"].makes].all()
    assert not wired.fixed[wired.layers["fc1"].makes].any()


class Twice(Small):
    """One layer at two places."""

    def __init__(self):
        super().__init__()
        self.more = nn.Linear(3, 3)

    def between(self, x):
        return self.more(F.relu(self.more(x)))


def test_a_layer_that_is_called_twice_is_left_alone():
    wired = channel_graph(Twice(), SHAPE)
    assert list(wired.layers) == ["conv", "fc1", "fc2"]
    assert wired.fixed[wired.layers["fc1"].makes].all()
    assert wired.layers["fc2"].reads.tolist() == [-1, -1, -1]


class Grouped(Small):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, groups=2))


def test_convolutions_in_groups_are_left_alone():
    wired = channel_graph(Grouped(), SHAPE)
    assert list(wired.layers) == ["conv.0", "fc1", "fc2"]
    assert wired.fixed[wired.layers["conv.0"].makes].all()


class Tanh(Small):
    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(F.relu(F.max_pool2d(self.conv(x), 4)).flatten(1))))


def test_what_is_read_without_a_relu_is_bare():
    assert channel_graph(Tanh(), SHAPE).bare == {"fc1"}


# --- refusals --------------------------------------------------------------------------------------------------------------


class Control(Small):
    def between(self, x):
        return x if x.sum() > 0 else -x


class TorchRandom(Small):
    def between(self, x):
        return x * torch.rand(())


class PythonRandom(Small):
    def between(self, x):
        return -x if random.random() < 0.5 else x


class Alternating(Small):
    calls = 0

    def between(self, x):
        self.calls += 1
        return -x if self.calls % 2 else x


class Weighed(Small):
    """A layer's weight, used beside the layer."""

    def between(self, x):
        return F.linear(x, self.fc1.weight[:, :3])


class Tied(Small):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(8, 3)
        self.more.weight = self.fc1.weight


@pytest.mark.parametrize("kind", [Control, TorchRandom, PythonRandom, Alternating, Weighed, Tied])
def test_what_cannot_be_read_or_does_more_than_call_layers_is_refused(kind):
    assert channel_graph(kind(), SHAPE) is None


def test_hooks_and_other_forwards_are_refused():
    hooked, other = Small(), Small()
    hooked.fc1.register_forward_hook(lambda *_: None)
    other.fc1.forward = lambda x: x[:, :3]
    assert channel_graph(hooked, SHAPE) is None
    assert channel_graph(other, SHAPE) is None


def test_reading_leaves_no_trace():
    net = cnn_small((1, 16, 16), 4, norm="batch").eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    assert isinstance(channel_graph(net, (1, 16, 16)), ChannelGraph)
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_of_residual_networks_what_is_inside_a_block_is_free():
    wired = channel_graph(resnet20((1, 8, 8), 10, norm="batch"), (1, 8, 8))
    free = [name for name, layer in wired.layers.items() if not wired.fixed[layer.makes].any()]
    assert free == [f"stage{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    assert len(wired.norms) == 19


def test_double_precision_and_inputs_of_characters():
    assert list(channel_graph(lenet_300_100((1, 2, 2), 3).double(), (1, 2, 2)).layers) == ["fc1", "fc2", "fc3"]
    text = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 5))
    wired = channel_graph(text, (3,))
    assert wired.layers["2"].reads.tolist() == [-1] * 12
    assert not wired.fixed[wired.layers["2"].makes].any()
