"""Recurrent, attention and embedding weights: which they are, what fits them, and evidence about them against autograd."""

from functools import partial

import pytest
import torch
from torch import nn

from fedprune.errors import Incompatible
from fedprune.local.module import LocalModule
from fedprune.models.char_lstm import char_lstm
from fedprune.models.char_transformer import char_transformer
from fedprune.pruning.connectivity import unfollowed
from fedprune.pruning.evidence.activations import activations, puts_out
from fedprune.pruning.evidence.curvature import by_place, hessian_diag, sq_grads, sq_grads_sampled, too_large
from fedprune.pruning.evidence.data_free import no_flow, unscaled
from fedprune.pruning.evidence.fisher import BLOCK, DAMPING, fisher_inverse_diag
from fedprune.pruning.evidence.gradients import grads, hessian_grads
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.what import What
from fedprune.pruning.what.layers import prunable
from fedprune.pruning.what.scope import globally, per_layer
from fedprune.pruning.what.unit import blocks, channels, filters, kernels, neurons, weights
from helpers.measuring import SGD, assert_no_trace, living, state

EVERYTHING = ("conv", "linear", "recurrent", "attention", "embedding")
T, C = 5, 4


def lstm() -> nn.Module:
    return char_lstm((T,), C, embedding=3, hidden=4)


def transformer() -> nn.Module:
    return char_transformer((T,), C, width=4, heads=2, layers=1)


TEXT = pytest.mark.parametrize("make", [lstm, transformer])


def module(make) -> tuple[LocalModule, dict]:
    torch.manual_seed(0)
    net = make()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.6)
    params = state(net)
    return LocalModule(make(), SGD), params


def batches(sizes=(3, 2)) -> list:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(C, (n, T), generator=generator), torch.randint(C, (n, T), generator=generator)) for n in sizes]


def names(net: nn.Module) -> tuple[str, ...]:
    return tuple(name for weights in prunable(net).values() for name in weights)


def loss(net: nn.Module, tensors: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean over examples and places of -log softmax, written out."""
    logits = torch.func.functional_call(net, tensors, (x,))
    return -logits.log_softmax(1).gather(1, y[:, None]).mean()


# --- which weights there are ------------------------------------------------------------------------------------------------


def several() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "words": nn.Embedding(3, 4),
            "lstm": nn.LSTM(4, 4, num_layers=2, bidirectional=True, proj_size=2),
            "gru": nn.GRU(4, 4),
            "cell": nn.LSTMCell(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "cross": nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
            "out": nn.Linear(4, 2),
        }
    )


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("linear",), ["out.weight"]),
        (("embedding",), ["words.weight"]),
        (("attention",), [
            *("attention.in_proj_weight", "attention.out_proj.weight", "cross.q_proj_weight", "cross.k_proj_weight"),
            *("cross.v_proj_weight", "cross.out_proj.weight"),
        ]),
        (("recurrent",), [
            *(f"lstm.weight_{part}_l{place}" for place in ("0", "0_reverse", "1", "1_reverse") for part in ("ih", "hh", "hr")),
            *("gru.weight_ih_l0", "gru.weight_hh_l0", "cell.weight_ih", "cell.weight_hh"),
        ]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_the_weights_of_every_kind_of_layer(kinds, expected):
    assert [name for weights in prunable(several(), kinds).values() for name in weights] == expected


def test_embeddings_are_pruned_by_choice_and_the_others_by_default():
    assert What(weights, globally).bind(lstm()).names == ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "fc.weight")
    assert What(weights, globally).bind(transformer()).names == (
        *("blocks.0.attention.in_proj_weight", "blocks.0.attention.out_proj.weight"),
        *("blocks.0.fc1.weight", "blocks.0.fc2.weight", "fc.weight"),
    )
    chosen = What(weights, globally, layers=("embedding", "recurrent")).bind(lstm()).names
    assert chosen == ("embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0")


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (("lstm",), ("fc.weight",)),
        (("lstm.weight_ih_l0",), ("lstm.weight_hh_l0", "fc.weight")),
        (("first", "last"), ("lstm.weight_hh_l0",)),
    ],
)
def test_a_layer_stands_for_all_of_its_weights_and_each_for_itself(skip, left):
    assert What(weights, globally, skip=skip).bind(lstm()).names == left


def test_rates_of_a_layer_are_those_of_all_its_weights():
    what = What(weights, partial(per_layer, rates={"lstm": 0.0}), layers=("linear", "recurrent")).bind(lstm())
    mask = what.select(
        {name: torch.rand(value.shape) for name, value in lstm().state_dict().items() if name in what.names}, 0.9
    )
    assert mask["lstm.weight_ih_l0"].all() and mask["lstm.weight_hh_l0"].all() and not mask["fc.weight"].all()


@pytest.mark.parametrize("unit", [filters, neurons, channels, kernels, partial(filters, reduce="sum")])
@TEXT
def test_units_of_channels_are_refused_by_the_layers_name(unit, make):
    layer = r"layer lstm \(LSTM\)" if make is lstm else r"layer blocks.0.attention \(MultiheadAttention\)"
    with pytest.raises(Incompatible, match=rf"{layer} has no .*choose what.layers=\[conv,linear\]"):
        What(unit, globally).bind(make())


def test_neurons_of_the_transformers_linear_layers_and_blocks_of_the_lstm_can_be_pruned():
    assert What(neurons, globally, layers=("linear",), skip=("last",)).bind(transformer()).names == (
        *("blocks.0.fc1.weight", "blocks.0.fc2.weight"),
    )
    assert What(partial(blocks, h=4, w=2), globally, layers=("recurrent",), skip=("first",)).bind(lstm()).names


# --- evidence -----------------------------------------------------------------------------------------------------------------


@TEXT
def test_gradients_are_autograds(make):
    local, params = module(make)
    found = grads(local, params, names(local.net), batches())
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    wanted = {name: params[name].clone().requires_grad_() for name in names(local.net)}
    expected = torch.autograd.grad(loss(make(), params | wanted, x, y), list(wanted.values()))
    for name, value in zip(wanted, expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@TEXT
def test_squares_are_those_of_each_sequences_own_gradient(make):
    local, params = module(make)
    found = sq_grads(local, params, names(local.net), batches())
    expected = {name: torch.zeros_like(params[name]) for name in names(local.net)}
    for x, y in batches():
        for one in range(len(x)):
            wanted = {name: params[name].clone().requires_grad_() for name in expected}
            slopes = torch.autograd.grad(
                loss(make(), params | wanted, x[one : one + 1], y[one : one + 1]), list(wanted.values())
            )
            for name, slope in zip(wanted, slopes, strict=True):
                expected[name] += slope.square() / 5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7)


@TEXT
def test_hessian_times_gradient_is_a_difference_of_gradients(make):
    # H g = d/de grad(w + e g) at 0, by central differences in double precision, where recurrent layers run by another kernel.
    local, params = module(make)
    wanted = names(local.net)
    found = hessian_grads(local, params, living(params, wanted), batches())
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    double = {name: value.double() if value.is_floating_point() else value for name, value in params.items()}

    def slopes(at: dict) -> list:
        tensors = {name: at[name].clone().requires_grad_() for name in wanted}
        return list(torch.autograd.grad(loss(make().double(), double | tensors, x, y), list(tensors.values())))

    along = dict(zip(wanted, slopes(double), strict=True))
    ahead, behind = (slopes({name: double[name] + e * along[name] for name in wanted}) for e in (1e-4, -1e-4))
    for name, plus, minus in zip(wanted, ahead, behind, strict=True):
        torch.testing.assert_close(found[name].double(), (plus - minus) / 2e-4, rtol=1e-2, atol=1e-6)


def test_a_label_is_drawn_for_each_place_by_hand():
    # The network is a table of logits, one character at two places, p = (3/4, 1/4). The gradient of the logit of class 0 is the
    # mean of two draws of p - 1{drawn}, each of variance p (1 - p) = 3/16: on average its square is 3/32. One draw for both
    # places would give 3/16.
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(1, 2)

        def forward(self, x):
            return self.table(x).transpose(1, 2)

    params = {"table.weight": torch.tensor([[3.0, 1.0]]).log()}
    torch.manual_seed(0)
    batch = (torch.zeros(20_000, 2, dtype=torch.int64), torch.zeros(20_000, 2, dtype=torch.int64))
    found = sq_grads_sampled(LocalModule(Table(), SGD), params, ("table.weight",), [batch])["table.weight"]
    torch.testing.assert_close(found, torch.full((1, 2), 3 / 32), rtol=0.03, atol=0)


@TEXT
def test_the_inverse_of_the_fisher_blocks_is_that_of_each_sequences_gradients(make):
    local, params = module(make)
    (name, *_) = names(local.net)[2:]
    found = fisher_inverse_diag(local, params, living(params, (name,)), batches())[name]
    rows = []
    for x, y in batches():
        for one in range(len(x)):
            w = params[name].clone().requires_grad_()
            rows.append(
                torch.autograd.grad(loss(make(), params | {name: w}, x[one : one + 1], y[one : one + 1]), w)[0].flatten()
            )
    slopes = torch.stack(rows).double()[:, :BLOCK]
    fisher = slopes.T @ slopes / len(rows) + DAMPING * torch.eye(slopes.shape[1], dtype=torch.float64)
    expected = torch.linalg.inv(fisher).diagonal().float()
    torch.testing.assert_close(found.flatten()[:BLOCK], expected, rtol=1e-2, atol=1e-3)


def test_the_exact_hessian_goes_through_attention():
    local, params = module(transformer)
    name, one = "blocks.0.attention.out_proj.weight", batches((2,))
    found = hessian_diag(local, params, (name,), one)[name]
    net = transformer().eval()

    def value(flat: torch.Tensor) -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return loss(net, params | {name: flat.view(4, 4)}, *one[0])

    expected = torch.autograd.functional.hessian(value, params[name].flatten()).diagonal().view(4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("measure", [grads, hessian_grads, sq_grads, sq_grads_sampled, fisher_inverse_diag])
@TEXT
def test_measuring_leaves_no_trace(measure, make):
    local, params = module(make)
    assert_no_trace(local, params, lambda: measure(local, params, living(params, names(local.net)), batches()))


def test_units_of_linear_layers_on_sequences_are_in_the_last_dimension_however_long_they_are():
    # Four units at four places: both dimensions have the same size. Unit u puts out u at every place.
    net = nn.Linear(1, 4)
    params = {"weight": torch.zeros(4, 1), "bias": torch.arange(4.0)}
    found = activations(LocalModule(net, SGD), params, ("weight",), [(torch.zeros(2, 4, 1), torch.zeros(2))])
    assert found["weight"].flatten().tolist() == [0, 1, 2, 3]


# --- what cannot be had -------------------------------------------------------------------------------------------------------


@TEXT
def test_what_there_is_not_is_said_with_what_to_choose(make):
    net = make()
    network, wanted = Network(net, (T,)), What(weights, globally).bind(net).names
    assert "choose criterion=snip" in no_flow(network, wanted)
    assert "choose criterion=fisher_true" in by_place(network, wanted)
    assert "followed by a normalisation" in unscaled(network, wanted)
    others = "" if make is lstm else "what.layers=[conv,linear] or "  # of the LSTM's network that leaves the output layer alone
    assert f"put out no activation of their own: choose {others}criterion=taylor" in puts_out(network, wanted)
    assert "none is idle: choose criterion=taylor" in puts_out(network, ("fc.weight",))
    assert unfollowed(net, (T,)) == "embedding (Embedding) cannot be followed"
    if make is lstm:
        assert "no forward derivative through lstm: choose criterion=fisher_true" in too_large(network, wanted)
    else:
        assert too_large(network, wanted) is None


def test_images_and_vectors_are_as_before():
    net = nn.Linear(6, 2)
    assert by_place(Network(net, (6,)), ("weight",)) is None
    assert no_flow(Network(net, (6,)), ("weight",)) is None
    assert unfollowed(net, (6,)) == ""
