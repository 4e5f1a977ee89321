"""Whether zeros of a weight are zeros of what the network multiplies by: of layers that make other weights of their own."""

import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask_effect import every_other, problems, without_effect
from fedprune.pruning.what.unit import filters, weights


def standardised(w: torch.Tensor) -> torch.Tensor:
    rows = w.flatten(1)
    return ((rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-5)).view_as(w)


class Standardised(nn.Linear):
    def forward(self, x):
        return F.linear(x, standardised(self.weight), self.bias)


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, standardised(self.weight), self.bias)


class Transposed(nn.Linear):
    def forward(self, x):
        return x @ standardised(self.weight).T + self.bias


class EntryByEntry(nn.Linear):
    def forward(self, x):
        return (x[:, None, :] * standardised(self.weight)).sum(2) + self.bias


class Cosine(nn.Linear):
    def forward(self, x):
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).t()


class WeightNorm(nn.Linear):
    """As it is done by hand, with a norm that may be 0."""

    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


class Spectral(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / torch.linalg.matrix_norm(self.weight, 2))


class Remasked(nn.Linear):
    """Standardised, and zero again where the weight is."""

    def forward(self, x):
        return F.linear(x, standardised(self.weight) * (self.weight != 0), self.bias)


class Centring(nn.Linear):
    """It changes its inputs, and not its weight."""

    def forward(self, x):
        return F.linear(x - x.mean(1, keepdim=True), self.weight, self.bias)


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return F.linear(x, standardised(self.fc.weight))


def patched() -> nn.Linear:
    layer = nn.Linear(4, 3)
    layer.forward = types.MethodType(Standardised.forward, layer)
    return layer


def alone(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), layer)


@pytest.mark.parametrize(
    ("make", "astray"),
    [
        (lambda: alone(Standardised(4, 3)), ["1.weight"]),
        (lambda: alone(Transposed(4, 3)), ["1.weight"]),
        (lambda: alone(EntryByEntry(4, 3)), ["1.weight"]),
        (lambda: alone(patched()), ["1.weight"]),
        (ByHand, ["fc.weight"]),
        (lambda: alone(Cosine(4, 3)), []),
        (lambda: alone(WeightNorm(4, 3)), []),
        (lambda: alone(Spectral(4, 3)), []),
        (lambda: alone(Remasked(4, 3)), []),
        (lambda: alone(Centring(4, 3)), []),
        (lambda: alone(nn.Linear(4, 3)), []),
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3)), []),
    ],
)
def test_a_mask_of_single_weights(make, astray):
    torch.manual_seed(0)
    net = make()
    names = tuple(n for n, p in net.named_parameters() if p.dim() == 2)
    assert without_effect(Network(net, (4,)), names, weights) == astray


def test_rows_that_are_dead_are_zero_after_standardising_and_no_number_after_dividing_by_their_norm():
    names = ("0.weight", "1.weight")
    assert without_effect(Network(alone(Standardised(4, 3)), (4,)), names, filters) == []
    assert without_effect(Network(alone(WeightNorm(4, 3)), (4,)), names, filters) == ["1.weight"]


def test_convolutions_recurrent_layers_attention_and_embeddings():
    class Net(nn.Module):
        def __init__(self, convolution: type):
            super().__init__()
            self.conv, self.rnn = convolution(1, 2, 2), nn.GRU(4, 4, batch_first=True)
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            x = self.rnn(self.conv(x).flatten(2))[0]
            return self.head(self.attention(x, x, x)[0].flatten(1))

    for convolution, astray in ((nn.Conv2d, []), (StandardisedConv, ["conv.weight"])):
        net = Net(convolution)
        names = tuple(n for n, p in net.named_parameters() if p.dim() > 1)
        assert without_effect(Network(net, (1, 3, 3)), names, weights) == astray
    table = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    assert without_effect(Network(table, (3,)), ("0.weight", "2.weight"), weights) == []


def test_the_network_is_left_as_it_is():
    net = alone(nn.BatchNorm1d(4)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    without_effect(Network(net, (4,)), ("0.weight",), weights)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_every_other_unit():
    assert every_other(torch.ones(2, 3), weights).tolist() == [[True, False, True], [False, True, False]]
    assert every_other(torch.ones(3, 2, 1, 1), filters).flatten(1).tolist() == [[True] * 2, [False] * 2, [True] * 2]


def test_what_to_choose_instead():
    (told,) = problems(Network(alone(Standardised(4, 3)), (4,)), ("0.weight", "1.weight"), weights)
    assert "a mask takes no effect on 1 (Standardised)" in told
    assert told.endswith("choose what.skip=[1]")
    (told,) = problems(Network(ByHand(), (4,)), ("fc.weight",), weights)
    assert told.endswith("choose another model, or how_often=never")
