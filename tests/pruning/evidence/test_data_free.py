"""Flow and scales: what is in the network itself."""

import pytest
import torch
from torch import nn

from fedprune.models.cnn import cnn_small
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg11
from fedprune.pruning.criterion import synflow
from fedprune.pruning.evidence.activations import puts_out
from fedprune.pruning.evidence.data_free import flow_grads, no_flow, scales, unscaled, unscaled_filters
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.evidence.normalisation import normalised
from fedprune.types import Params


def chain() -> tuple[Network, Params]:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    return Network(net, (2,)), {"0.weight": torch.tensor([[1.0, -2.0], [3.0, 0.0]]), "2.weight": torch.tensor([[-4.0, 5.0]])}


def test_flow_by_hand():
    # |W1| 1 = (1 + 2, 3 + 0) = (3, 3); R = 4 * 3 + 5 * 3 = 27. dR/d|W1| is the weight behind: rows of 4 and of 5; dR/d|W2| is
    # what arrives: (3, 3).
    network, params = chain()
    found = flow_grads(network, params, ("0.weight", "2.weight"))
    assert found["0.weight"].tolist() == [[4, 4], [5, 5]]
    assert found["2.weight"].tolist() == [[3, 3]]
    # |w dR/d|w||: (4, 8), (15, 0) and (12, 15). Each layer's sum is R = 27: the flow is conserved.
    scores = synflow({n: params[n] for n in found}, found)
    assert scores["0.weight"].tolist() == [[4, 8], [15, 0]]
    assert scores["2.weight"].tolist() == [[12, 15]]


def test_the_flow_through_a_weight_is_what_is_lost_without_it():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    )
    params = {n: v.detach().clone() for n, v in net.state_dict().items()}
    network, names = Network(net, (2, 4, 4)), ("0.weight", "5.weight")
    scores = synflow({n: params[n] for n in names}, flow_grads(network, params, names))

    def flow(changed: Params) -> float:
        positive = {n: v.abs().double() if v.is_floating_point() else v for n, v in (params | changed).items()}
        return float(network.run(positive, torch.ones(1, 2, 4, 4).double()).sum())

    for name in names:
        for place in range(0, params[name].numel(), 7):
            without = params[name].clone()
            without.view(-1)[place] = 0
            assert flow({}) - flow({name: without}) == pytest.approx(float(scores[name].view(-1)[place]), abs=1e-9)


def test_deep_flow_does_not_overflow():
    net = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(20)))
    params = {f"{i}.weight": torch.full((512, 512), 0.5) for i in range(20)}
    found = flow_grads(Network(net, (512,)), params, tuple(params))
    assert all(bool(value.isfinite().all()) and value.dtype == torch.float64 for value in found.values())  # 256^20 is 1e48


def test_flow_is_measured_in_evaluation_and_leaves_no_trace():
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    net[3].eval()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    params = {n: v.clone() for n, v in before.items()}
    params["0.weight"][0, 0] = -0.3
    signs, random = params["0.weight"].clone(), torch.get_rng_state()
    first = flow_grads(Network(net, (6,)), params, ("0.weight",))
    scales(Network(net, (6,)), params, ("0.weight",))
    assert torch.equal(first["0.weight"], flow_grads(Network(net, (6,)), params, ("0.weight",))["0.weight"])  # no dropout
    assert [part.training for part in net.modules()] == [True, True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(params["0.weight"], signs)
    assert not any(value.requires_grad for value in params.values())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(part._forward_hooks for part in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_scales_stand_at_every_entry_of_the_filter_that_they_scale():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    params = dict(net.state_dict()) | {"1.weight": torch.tensor([-0.5, 2.0])}
    found = scales(Network(net, (1, 2, 2)), params, ("0.weight", "4.weight"))
    assert found["0.weight"].tolist() == [[[[0.5, 0.5], [0.5, 0.5]]], [[[2, 2], [2, 2]]]]
    assert not found["4.weight"].any()


def test_the_normalisation_of_a_layer_is_found_by_what_flows_and_not_by_the_order_of_names():
    network = Network(resnet20((1, 8, 8), 10), (1, 8, 8))
    names = tuple(f"{n}.weight" for n, m in network.net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    expected = {name: name.replace("conv", "norm").removesuffix(".weight") for name in names if "conv" in name}
    assert normalised(network, names) == expected

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.other, self.conv = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.norm(self.conv(self.other(x)).relu()) + self.other(self.conv(x))

    assert normalised(Network(Backwards(), (2, 3, 3)), ("conv.weight",)) == {"conv.weight": "other"}


def test_what_the_network_cannot_give_is_said_with_what_to_choose():
    fc = Network(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,))
    group, batch = (Network(resnet20((1, 8, 8), 10, norm), (1, 8, 8)) for norm in ("group", "batch"))
    convs = tuple(f"{n}.weight" for n, m in group.net.named_modules() if isinstance(m, nn.Conv2d))
    assert unscaled(group, convs) is None
    assert "no normalisation follows fc: choose what.skip=[fc]" in str(unscaled(group, (*convs, "fc.weight")))
    assert "choose model=resnet20" in str(unscaled(fc, ("0.weight", "2.weight")))
    assert unscaled_filters(group, (*convs, "fc.weight")) is None
    assert unscaled_filters(fc, ("0.weight", "2.weight")) is None
    plain, scaled = (Network(cnn_small((1, 16, 16), 3, norm), (1, 16, 16)) for norm in ("none", "batch"))
    layers = ("conv1.weight", "conv2.weight", "fc1.weight")
    assert "no normalisation follows conv1, conv2: choose model.norm=batch" in str(unscaled_filters(plain, layers))
    assert unscaled_filters(scaled, layers) is None
    assert no_flow(fc, ()) is None and no_flow(batch, ()) is None
    assert "norm1 (GroupNorm), stage1.0.norm1 (GroupNorm)" in str(no_flow(group, ()))
    assert "choose model.norm=batch" in str(no_flow(group, ()))
    assert puts_out(fc, ("0.weight",)) is None
    assert "choose what.skip=[2]" in str(puts_out(fc, ("0.weight", "2.weight")))
    assert puts_out(Network(vgg11((3, 32, 32), 10), (3, 32, 32)), ("conv1.weight",)) is None
