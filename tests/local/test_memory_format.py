"""Layout: where it is changed, nothing but time and rounding is different; where it cannot be, nothing is changed at all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.local.memory_format import channels_last
from fedprune.models.cnn import cnn_fedavg, cnn_small
from fedprune.models.lenet import lenet1, lenet5, lenet_300_100
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg_small


class Viewing(nn.Module):
    """As many a network is written: `view` counts on channels that lie one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 26 * 26, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).view(len(x), -1))


class Striding(Viewing):
    """Reads memory as it lies: it would give other outputs, and no error."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.fc(x.as_strided((len(x), x[0].numel()), (x[0].numel(), 1)))


def laid_out(net: nn.Module) -> set[bool]:
    """Of the convolutions' weights that can tell (more than one channel, more than one pixel): whether channels are last."""
    weights = [layer.weight for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    telling = [weight for weight in weights if weight.shape[1] > 1 and weight[0, 0].numel() > 1]
    return {weight.is_contiguous(memory_format=torch.channels_last) for weight in telling}


NETWORKS = {
    "cnn_fedavg": lambda: cnn_fedavg((1, 28, 28), 10),
    "cnn_small": lambda: cnn_small((1, 28, 28), 10, norm="batch"),
    "lenet1": lambda: lenet1((1, 28, 28), 10),
    "lenet5": lambda: lenet5((1, 28, 28), 10),
    "resnet20": lambda: resnet20((1, 28, 28), 10, norm="batch"),
    "vgg_small": lambda: vgg_small((1, 28, 28), 10, norm="group"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_gives_the_same_gradients_up_to_rounding(name):
    torch.manual_seed(0)
    net = NETWORKS[name]()
    other, x, y = copy.deepcopy(net), torch.randn(8, 1, 28, 28), torch.randint(10, (8,))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert channels_last(net, (1, 28, 28))
    assert laid_out(net) == {True} and laid_out(other) == {False}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training and all(layer.training for layer in net.modules())
    for one in (net, other):
        F.cross_entropy(one(x), y).backward()
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine.grad, its.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [Viewing, Striding, lambda: lenet_300_100((1, 28, 28), 10)], ids=["view", "strides", "linear"])
def test_a_network_that_would_not_give_the_same_is_left_as_it_is(make):
    net = make()
    x, before = torch.randn(3, 1, 28, 28), {key: value.clone() for key, value in net.state_dict().items()}
    expected = net(x)
    assert not channels_last(net.eval(), (1, 28, 28))
    assert torch.equal(net(x), expected) and not net.training
    assert all(torch.equal(value, before[key]) and value.is_contiguous() for key, value in net.state_dict().items())


def test_clients_train_in_it(tiny, fashion_mnist_root):
    words = ("model=cnn_small", "data=fashion_mnist", f"data.root={fashion_mnist_root(400)}")
    worker = tiny(*words).executor()._client_round
    assert laid_out(worker.context.module.net) == {True}
