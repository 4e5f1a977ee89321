"""Densities and operations of small networks, counted by hand: 2 per multiply-accumulate."""

import pytest
import torch
from torch import nn

from fedprune.federated.metrics.costs import densities, flops_per_example, training_flops
from fedprune.local.module import LocalModule
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import filters, weights
from fedprune.types import Subnet


class Summed(LocalModule):
    """The sum of the outputs, whatever their shape: a step for networks that classify nothing."""

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).sum()


def counted(net: nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    return flops_per_example(Summed(net, torch.optim.SGD), (inputs, torch.zeros(len(inputs), dtype=torch.int64)))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def cnn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Dropout(0.5))


@pytest.mark.parametrize("batch", [1, 5])
def test_operations_of_an_mlp(batch):
    # Forward 2 x 4 x 3 = 24 and 2 x 3 x 2 = 12. Backward: the gradient of the weights costs the same again, that of the inputs
    # once more; but nobody asks for the gradient of the data. So 2 x 24 and 3 x 12.
    assert counted(mlp(), torch.zeros(batch, 4)) == {"0": 48, "2": 36, "": 0}


@pytest.mark.parametrize("batch", [1, 5])
def test_operations_of_a_cnn(batch):
    # 5x5 -> 3x3: 9 places x 3 filters x (2 x 3 x 3) = 486 multiply-accumulates, 972 operations, twice.
    # 3x3 -> 2x2: 4 places x 4 filters x (3 x 2 x 2) = 192 multiply-accumulates, 384 operations, three times.
    assert counted(cnn(), torch.zeros(batch, 2, 5, 5)) == {"0": 1944, "3": 1152, "": 0}


def test_layers_inside_others_are_named_as_in_the_network_and_what_is_in_no_layer_is_counted_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 3))
            self.mixing = nn.Parameter(torch.ones(3, 5))

        def forward(self, x):
            return self.block(x) @ self.mixing

    # The product with `mixing`: 2 x 3 x 5 = 30, three times.
    assert counted(Net(), torch.zeros(2, 4)) == {"block.0": 48, "": 90}


def test_counting_leaves_no_trace():
    net = cnn().eval()
    net[0].train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags, random = [part.training for part in net.modules()], torch.get_rng_state()
    counted(net, torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_training_costs_each_layer_in_proportion_to_its_density():
    per_example = {"0": 48.0, "2": 36.0, "": 7.0}
    first, last = torch.zeros(3, 4, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    first.view(-1)[:3] = True  # a quarter
    last.view(-1)[:4] = True  # two thirds
    assert training_flops(per_example, {"0.weight": first, "2.weight": last}) == pytest.approx(12 + 24 + 7)
    assert training_flops(per_example, {"0.weight": first}) == pytest.approx(12 + 36 + 7)  # the last is not prunable
    assert training_flops(per_example, {}) == 91


def test_densities_of_weights_of_all_parameters_of_units_and_of_layers():
    net = mlp()
    what = What(weights, globally).bind(net)
    mask = {"0.weight": torch.zeros(3, 4, dtype=torch.bool), "2.weight": torch.ones(2, 3, dtype=torch.bool)}
    mask["0.weight"][0, :3] = True
    parameters = tuple(name for name, _ in net.named_parameters())
    # Weights: (3 + 6) of (12 + 6). All parameters: those and 3 + 2 biases: (9 + 5) of (18 + 5).
    assert densities(Subnet(dict(net.state_dict()), mask), what, parameters) == {
        "density/weights": 9 / 18,
        "density/params": 14 / 23,
        "density/units": 9 / 18,
        "density/layer/0": 3 / 12,
        "density/layer/2": 6 / 6,
    }


def test_the_density_of_filters_is_not_that_of_weights():
    net = cnn()
    what = What(filters, globally, layers=("conv",)).bind(net)
    mask = {"0.weight": torch.zeros(3, 2, 3, 3, dtype=torch.bool)}
    mask["0.weight"][1] = True
    parameters = tuple(name for name, _ in net.named_parameters())
    found = densities(Subnet(dict(net.state_dict()), mask), what, parameters)
    # The filters of the second convolution are the network's outputs, and not prunable. Of the first: 1 of 3, 18 of 54 weights.
    # With 48 weights of the second, 3 + 4 biases and 3 + 3 of BatchNorm: (18 + 48 + 13) of 115; its running statistics are
    # buffers and no parameters.
    assert found["density/units"] == 1 / 3
    assert found["density/weights"] == 18 / 54
    assert found["density/params"] == 79 / 115


def text(layer: nn.Module) -> nn.Module:
    """An embedding of 3 numbers in front, so that all of the layer's inputs have gradients."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer = nn.Embedding(3, 4), layer

        def forward(self, x):
            y = self.embedding(x)
            return self.layer(y)[0] if isinstance(self.layer, nn.LSTM) else self.layer(y, y, y, need_weights=False)[0]

    return Net()


def test_operations_of_a_recurrent_layer_by_weight():
    # 4 places, 8 rows of 4 inputs and 2 units: 2 x 4 x 8 x 4 = 256 and 2 x 4 x 8 x 2 = 128 forward, three times in all; but
    # nobody asks for the gradient of the first state, so of the smaller one 3 of 4 places: 128 x 2 + 96. In all
    # 768 + 352 = 1120, shared out by the sizes 32 and 16.
    flops = counted(text(nn.LSTM(4, 2, batch_first=True)), torch.zeros(2, 4, dtype=torch.int64))
    assert flops == pytest.approx({"layer.weight_ih_l0": 1120 * 2 / 3, "layer.weight_hh_l0": 1120 / 3, "": 0})


def test_operations_of_attention_by_weight_and_its_own_products_apart():
    # 5 places of width 4: 2 x 5 x 12 x 4 = 480 in, 2 x 5 x 4 x 4 = 160 out, three times. Scores and mixtures: 2 heads, each
    # with 2 products of 2 x 5 x 5 x 2 = 100, that is 400 forward, three times.
    flops = counted(text(nn.MultiheadAttention(4, 2, batch_first=True)), torch.zeros(3, 5, dtype=torch.int64))
    assert flops == pytest.approx({"layer.in_proj_weight": 1440, "layer.out_proj": 480, "": 1200})


def test_each_weight_of_a_layer_counts_with_its_own_density():
    alive = {"layer.weight_ih_l0": torch.tensor([True, False]), "layer.weight_hh_l0": torch.tensor([True, False, False, False])}
    flops = {"layer.weight_ih_l0": 800.0, "layer.weight_hh_l0": 400.0, "": 10.0}
    assert training_flops(flops, alive) == 400 + 100 + 10
