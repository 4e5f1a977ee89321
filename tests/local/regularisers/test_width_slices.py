"""Width slices: counts by hand, nesting, and that a masked network is the smaller one, in evaluation and in training."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedprune.errors import Incompatible
from fedprune.local.regularisers.width_slices import leading, output_layers, width
from fedprune.models.cnn import _TwoConvs, cnn_fedavg, cnn_small
from fedprune.models.lenet import lenet_300_100
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg_small
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import apply, count

LEVELS = (1.0, 0.5, 0.25, 0.125, 0.0625)


def test_how_many_units_a_capacity_carries():
    """ceil(c n): of 10 units 10, 5, 3 (2.5), 2 (1.25), 1 (0.625); 0.29 x 100 is 29, though it is 28.999999999999996 in floats,
    and 0.07 x 100 = 7.000000000000001 is 7; one at least."""
    assert [width(10, level) for level in LEVELS] == [10, 5, 3, 2, 1]
    assert (width(100, 0.29), width(100, 0.07), width(3, 1e-12)) == (29, 7, 1)


def test_a_perceptron_by_hand():
    """784 - 300 - 100 - 10 at 1/4: 75 and 25 units. Weights 784 x 75, 75 x 25, 25 x 10; biases 75, 25, 10."""
    mask = leading(Network(lenet_300_100((1, 28, 28), 10), (1, 28, 28)), 0.25)
    assert {name: count({name: alive}) for name, alive in mask.items()} == {
        **{"fc1.weight": 784 * 75, "fc1.bias": 75, "fc2.weight": 75 * 25, "fc2.bias": 25},
        **{"fc3.weight": 25 * 10, "fc3.bias": 10},
    }
    assert mask["fc2.weight"][:25, :75].all() and mask["fc3.weight"][:, :25].all() and mask["fc1.bias"][:75].all()


def test_a_convolutional_network_by_hand():
    """cnn_small at 1/2: 10 and 20 channels become 5 and 10, of 16 pixels each behind the pools; 50 hidden units become 25.

    5 x 25 + 5; 10 x 5 x 25 + 10; 25 x (10 x 16) + 25; 10 x 25 + 10: 5675 of 21,840.
    """
    mask = leading(Network(cnn_small((1, 28, 28), 10), (1, 28, 28)), 0.5)
    assert [count({name: alive}) for name, alive in mask.items()] == [125, 5, 1250, 10, 4000, 25, 250, 10]
    assert mask["conv2.weight"][:10, :5].all() and mask["fc1.weight"][:25, :160].all()
    assert output_layers(cnn_small((1, 28, 28), 10)) == ("fc2.weight",)


NETWORKS = {
    "lenet_300_100": (lenet_300_100, (1, 16, 16)),
    "cnn_fedavg": (cnn_fedavg, (1, 16, 16)),
    "vgg_small": (lambda shape, classes: vgg_small(shape, classes, norm="batch"), (3, 16, 16)),
    "resnet20": (lambda shape, classes: resnet20(shape, classes, norm="batch"), (3, 8, 8)),
}


def network(name: str) -> Network:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make(shape, 10)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape))  # so that shifts and statistics are no zeros
    return Network(net, shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_slices_nest_and_the_whole_network_is_one(name):
    of = network(name)
    masks = [leading(of, level) for level in LEVELS]
    assert all(alive.all() for alive in masks[0].values())
    trained = {n for n, _ in of.net.named_parameters()}
    assert trained <= set(masks[0])
    for wider, narrower in itertools.pairwise(masks):
        assert all(not (alive & ~wider[n]).any() for n, alive in narrower.items())
        assert count(narrower) < count(wider)


def sliced(of: Network, capacity: float) -> nn.Module:
    """The smaller module, cut without a mask: layer after layer, from what the layer before it puts out."""
    small, last = copy.deepcopy(of.net), [m for m in of.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
    into = {}  # module: how many of its inputs are left
    x = torch.zeros(2, *of.shape)
    made: dict[int, int] = {}

    def before(module, inputs):
        whole = inputs[0].shape[1]
        into[module] = (made.get(whole, whole), whole)

    def after(module, inputs, output):
        if isinstance(module, nn.Conv2d | nn.Linear) and module is not last:
            made[output.shape[1]] = math.ceil(output.shape[1] * capacity)
            if output.dim() == 4:
                pixels = {4, 8, 16, 1}
                for p in pixels | {output.shape[2] * output.shape[3], output.shape[2] * output.shape[3] // 4}:
                    made.setdefault(output.shape[1] * p, math.ceil(output.shape[1] * capacity) * p)

    hooks = []
    for module in of.net.modules():
        if not list(module.children()):
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    of.net.eval()
    of.net(x)
    for hook in hooks:
        hook.remove()
    twins = dict(zip(of.net.modules(), small.modules(), strict=True))
    for module, twin in twins.items():
        if isinstance(module, nn.Conv2d | nn.Linear):
            columns = into[module][0]
            rows = len(module.weight) if module is last else math.ceil(len(module.weight) * capacity)
            twin.weight = nn.Parameter(module.weight.detach()[:rows, :columns].clone())
            if module.bias is not None:
                twin.bias = nn.Parameter(module.bias.detach()[:rows].clone())
        elif isinstance(module, nn.BatchNorm2d):
            rows = math.ceil(module.num_features * capacity)
            twin.num_features = rows
            for key in ("weight", "bias"):
                setattr(twin, key, nn.Parameter(getattr(module, key).detach()[:rows].clone()))
            twin.running_mean, twin.running_var = module.running_mean[:rows].clone(), module.running_var[:rows].clone()
        elif getattr(module, "grown", 0):
            twin.grown = math.ceil((module.grown * 2) * capacity) - math.ceil(module.grown * capacity)
    return small


@pytest.mark.parametrize("capacity", [0.5, 0.3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_masked_network_computes_what_the_smaller_one_does(name, capacity):
    of = network(name)
    small, mask = sliced(of, capacity), leading(of, capacity)
    assert count({n: mask[n] for n, _ in of.net.named_parameters()}) == sum(p.numel() for p in small.parameters())
    masked = copy.deepcopy(of.net)
    masked.load_state_dict(apply(of.net.state_dict(), mask))
    x, y = torch.randn(8, *of.shape), torch.arange(8)
    for train in (False, True):  # in training mode statistics are those of the batch
        outputs = [net.train(train)(x) for net in (masked, small)]
        assert torch.allclose(*outputs, atol=1e-5)
    losses = [F.cross_entropy(net.train()(x), y) for net in (masked, small)]
    for loss in losses:
        loss.backward()
    pairs = zip(masked.named_parameters(), small.parameters(), strict=True)
    for (n, whole), part in pairs:
        assert torch.allclose(whole.grad[mask[n]], part.grad.flatten(), atol=1e-5), n
    masked.eval(), small.eval()
    for (n, whole), part in zip(masked.named_buffers(), small.buffers(), strict=True):
        if n in mask:
            assert torch.allclose(whole[mask[n]], part, atol=1e-6), n
            assert not whole[~mask[n]].any(), n  # what is dead of running statistics stays zero


def test_the_sliced_network_is_the_model_built_with_fewer_channels():
    torch.manual_seed(1)
    net = cnn_small((1, 28, 28), 10)
    small = _TwoConvs(1, 5, 10, 25, 16, 10, padding=0)
    cut = {"conv1": (5, 1), "conv2": (10, 5), "fc1": (25, 160), "fc2": (10, 25)}
    state = net.state_dict()
    small.load_state_dict(
        {f"{n}.weight": state[f"{n}.weight"][:o, :i] for n, (o, i) in cut.items()}
        | {f"{n}.bias": state[f"{n}.bias"][:o] for n, (o, _) in cut.items()}
    )
    net.load_state_dict(apply(state, leading(Network(net, (1, 28, 28)), 0.5)))
    x = torch.randn(4, 1, 28, 28)
    assert torch.allclose(net(x), small(x), atol=1e-6)


class Shuffled(nn.Module):
    """Channels change their places on the way."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)).flip(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.embedding(x))


class Branches(nn.Module):
    """What two branches give is subtracted and gated by a third."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2))

    def forward(self, x):
        return self.head((F.relu(self.a(x)) - F.relu(self.b(x))) * torch.sigmoid(self.c(x)))


def test_branches_that_are_subtracted_and_gated_are_sliced_alike():
    mask = leading(Network(Branches(), (3,)), 0.5)
    for name in "abc":
        assert mask[f"{name}.weight"].tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
        assert mask[f"{name}.bias"].tolist() == [True, True, False, False]
    assert mask["head.weight"].tolist() == [[True, True, False, False]] * 2


class Sorting(Shuffled):
    def forward(self, x):
        return self.fc2(torch.sort(self.fc1(x)).values)


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (Sorting(), (4,), "sort in its forward cannot be followed: choose whose.by=magnitude"),
        (Shuffled(), (4,), "what is left of fc2 would be no leading slice: choose whose.by=magnitude"),
        (Attention(), (4,), "embedding is a Embedding: choose whose.by=magnitude"),
        (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 2)), (4, 1, 1), "0 is a Conv2d"),
        (resnet20((3, 8, 8), 10, norm="group"), (3, 8, 8), "8 channels are no whole number of the groups of norm1"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)),
            (4,),
            "2 normalises what is no layer's own output",
        ),
    ],
)
def test_a_network_that_has_no_slices_is_refused(net, shape, message):
    with pytest.raises(Incompatible) as error:
        leading(Network(net, shape), 0.5)
    assert message in str(error.value)
