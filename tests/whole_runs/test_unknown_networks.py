"""Runs on networks, layers and losses that are not ours: evidence is served, or refused when the run is built, with a criterion
that works; a mask is refused where it takes no effect."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedprune.errors import Incompatible, RunError
from fedprune.experiment.build import build
from fedprune.local.module import LocalModule
from helpers.composed import TINY

ONE_SHOT = ("how_often=one_shot", "when=before_training", "rounds=1", "local.steps=1", "where.examples=8")


class Recurrent(nn.Module):
    """An image as a sequence of its rows."""

    def __init__(self, shape: tuple[int, ...], classes: int, kind: str):
        super().__init__()
        self.rnn, self.head = getattr(nn, kind)(shape[2], 6, batch_first=True), nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.rnn(x[:, 0])[0][:, -1])


class Standardised(nn.Linear):
    def forward(self, x):
        w = self.weight
        return F.linear(x, (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5), self.bias)


class Cosine(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.normalize(self.weight, dim=1))


def mlp(shape: tuple[int, ...], classes: int, first: str = "Linear") -> nn.Module:
    kinds = {"Linear": nn.Linear, "Standardised": Standardised, "Cosine": Cosine}
    return nn.Sequential(nn.Flatten(), kinds[first](torch.Size(shape).numel(), 8), nn.ReLU(), nn.Linear(8, classes))


class StraightThrough(torch.autograd.Function):
    """The sign, with the derivative of the identity, written as torch.func cannot read it."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Binary(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.first, self.head = nn.Linear(torch.Size(shape).numel(), 8), nn.Linear(8, classes)

    def forward(self, x):
        return self.head(StraightThrough.apply(self.first(x.flatten(1))) * self.first.weight.mean())


class Penalised(LocalModule):
    def training_step(self, batch, batch_idx):
        decay = 1e-4 * sum(w.square().sum() for w in self.net.parameters())
        return F.cross_entropy(self.net(batch[0]), batch[1]) + decay


@pytest.fixture
def made(assemble):
    """made(network, *typed, **options) -> the experiment on that network, a function or class of this file."""

    def make(network: str, *typed: str, module: str = "", **options):
        config, names = assemble(*TINY, *typed)
        config.model = {"_target_": f"{__name__}.{network}", **options}
        if module:
            config.local.module._target_ = f"{__name__}.{module}"
        return build(config, names)

    return make


@pytest.mark.parametrize("kind", ["GRU", "RNN", "LSTM"])
@pytest.mark.parametrize(
    "criterion", ["fisher_empirical", "fisher_true", "obd_gauss_newton", "woodfisher", "grasp", "movement"]
)
def test_recurrent_networks_are_pruned_by_any_curvature(kind, criterion, made, play):
    ((_, metrics),) = play(made("Recurrent", *ONE_SHOT, f"criterion={criterion}", kind=kind))
    assert metrics["density/weights"] == pytest.approx(0.3, abs=0.005)


def test_evidence_that_cannot_be_measured_is_refused_with_a_criterion_that_works(made, play):
    with pytest.raises(Incompatible, match="criterion=obd_exact: hessian_diag cannot be measured of this network") as caught:
        made("Binary", *ONE_SHOT, "criterion=obd_exact")
    assert str(caught.value).endswith(": choose criterion=fisher_empirical")
    play(made("Binary", *ONE_SHOT, "criterion=fisher_empirical"))
    play(made("Binary", *ONE_SHOT, "criterion=woodfisher"))


def test_a_training_step_that_looks_at_the_weights_has_no_gauss_newton_matrix(made):
    with pytest.raises(Incompatible, match="looks at the network's layers or parameters") as caught:
        made("mlp", *ONE_SHOT, "criterion=obd_gauss_newton", module="Penalised")
    assert str(caught.value).endswith("choose criterion=fisher_empirical")
    made("mlp", *ONE_SHOT, "criterion=fisher_empirical", module="Penalised")


def test_a_layer_on_which_a_mask_takes_no_effect_is_refused_by_name_and_what_to_type_works(made):
    with pytest.raises(Incompatible, match=r"a mask takes no effect on 1 \(Standardised\).*choose what.skip=\[1\]"):
        made("mlp", *ONE_SHOT, first="Standardised")
    made("mlp", *ONE_SHOT, "what.skip=[1]", first="Standardised")
    made("mlp", "how_often=never", first="Standardised")
    made("mlp", *ONE_SHOT, first="Cosine")


@pytest.mark.parametrize(
    "added", ["local/dropout=targeted", "local/dropout=variational", "local/dropout=swat", "local/penalty=l0"]
)
def test_noise_that_goes_by_a_formula_is_refused_on_a_layer_with_a_forward_of_its_own(added, made):
    with pytest.raises(
        Incompatible, match=r"and 1 has a forward or a hook of its own: choose what.skip=\[1\], or local/"
    ) as caught:
        made("mlp", *ONE_SHOT, added, first="Cosine")
    assert str(caught.value).endswith(f"or {added.partition('=')[0]}=none")
    made("mlp", *ONE_SHOT, added, "what.skip=[1]", first="Cosine")


def test_dropout_of_what_goes_into_a_layer_is_accepted_for_any_layer(made, play):
    play(made("mlp", *ONE_SHOT, "local/dropout=adjusted", first="Cosine"))


class NormOfNothing(nn.Module):
    """It adds a norm that is always 0, where a norm has no derivative."""

    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.first, self.head = nn.Linear(torch.Size(shape).numel(), 8), nn.Linear(8, classes)

    def forward(self, x):
        hidden = self.first(x.flatten(1))
        return self.head(hidden.relu()) + (hidden * 0).square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("whose", ["whose=shared", "whose=personal"])
def test_evidence_that_is_not_a_number_is_named_with_its_layer_and_is_no_divergence(whose, made, play):
    typed = ("how_often=one_shot", "when=before_training", "rounds=1", "local.steps=1", whose)
    with pytest.raises(RunError) as caught:
        play(made("NormOfNothing", *typed, "criterion=snip"))
    told = str(caught.value)
    assert "client " in told
    assert "in round 0: the evidence grads of first is not finite, and the weights are" in told
    assert "diverged" not in told
    assert "leave it out with what.skip=[first], or choose criterion=magnitude" in told
    assert made("NormOfNothing", *typed, "criterion=snip", "what.skip=[first]")
    assert made("NormOfNothing", *typed, "criterion=magnitude")
