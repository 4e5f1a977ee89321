"""What units put out: by hand, and against a forward pass written out."""

import pytest
import torch
from torch import nn

from fedprune.local.module import LocalModule
from fedprune.pruning.evidence import mean
from fedprune.pruning.evidence.activations import activations, activity
from helpers.measuring import SGD, assert_no_trace, batchnorm_dropout, cnn, data, elsewhere, prunable


def test_activity_by_hand():
    # Two units w x with w = (1, -1) on x = 1, -2, 3: outputs (1, -1), (-2, 2), (3, -3).
    # After ReLU unit 0 gives 1, 0, 3 (mean 4/3, two of three not zero), unit 1 gives 0, 2, 0 (mean 2/3, one of three).
    module = LocalModule(nn.Linear(1, 2, bias=False), SGD)
    params, batches = {"weight": torch.tensor([[1.0], [-1.0]])}, [(torch.tensor([[1.0], [-2.0], [3.0]]), torch.zeros(3))]
    torch.testing.assert_close(activations(module, params, ("weight",), batches)["weight"], torch.tensor([[4 / 3], [2 / 3]]))
    torch.testing.assert_close(activity(module, params, ("weight",), batches)["weight"], torch.tensor([[2 / 3], [1 / 3]]))


@pytest.mark.parametrize("make_net", [cnn, batchnorm_dropout])
def test_outputs_are_those_after_the_normalisation_that_follows_and_in_evaluation(make_net):
    module, params = elsewhere(make_net)
    x, y = data(12)
    net = make_net().eval()
    net.load_state_dict(params)
    first = "1.weight" if make_net is cnn else "0.weight"
    out = net[:2](x).relu()  # the convolution, or the linear layer and its BatchNorm
    dims = [d for d in range(out.dim()) if d != 1]
    found = {
        f: f(module.train(), params, (first,), zip(x.split(5), y.split(5), strict=True))[first] for f in (activations, activity)
    }
    for function, expected in {activations: out.mean(dims), activity: (out > 0).float().mean(dims)}.items():
        assert found[function].shape == params[first].shape
        for unit, value in enumerate(expected):
            torch.testing.assert_close(found[function][unit], value.expand(params[first].shape[1:]))


def test_units_of_a_layer_on_sequences_are_its_last_dimension():
    net = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 4), nn.Flatten())
    module, params = LocalModule(net, SGD), dict(net.state_dict())
    x, y = data(5)
    found = activations(module, params, ("1.weight",), [(x, y)])["1.weight"]
    torch.testing.assert_close(found[:, 0], net[:2](x).relu().mean((0, 1)).detach())


def test_clients_averaged_by_examples_are_the_pooled_data():
    module, params = elsewhere(cnn)
    names, (x, y) = prunable(module.net), data(12)
    parts = [
        (activations(module, params, names, [batch]), len(batch[0]))
        for batch in zip(x.split((2, 10)), y.split((2, 10)), strict=True)
    ]
    torch.testing.assert_close(mean(parts), activations(module, params, names, [(x, y)]))


@pytest.mark.parametrize("measure", [activations, activity], ids=lambda f: f.__name__)
def test_measuring_leaves_no_trace(measure):
    module, params = elsewhere(batchnorm_dropout)
    assert_no_trace(module, params, lambda: measure(module, params, prunable(module.net), [data(8), data(8, seed=1)]))
