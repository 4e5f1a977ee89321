"""A user's functions are called once before the first round: what is wrong with them is told in a line or two."""

from __future__ import annotations

import pytest
import torch

from fedprune.errors import ConfigError, FedpruneError, RunError
from fedprune.experiment.build import build
from fedprune.federated.server.accumulator import result
from fedprune.pruning.criterion.scores import scored
from fedprune.pruning.rewind import Draws, rewound
from tests.conftest import TINY

ONCE = ("how_often=one_shot", "when=before_training", "density=0.5")
LATER = ("how_often=one_shot", "when=during_training", "density=0.5")
MERGE = ("federated/aggregate=intersection", "federated.aggregate._partial_=true")
HERE = __name__


def wrong_shape(params):
    return {name: w.abs().flatten()[:3] for name, w in params.items()}


def one_number(params):
    return {name: w.abs().mean() for name, w in params.items()}


def forgets_a_layer(params):
    return dict(list(params.items())[1:])


def no_dict(params):
    return None


def whole_numbers(params):
    return {name: torch.ones(w.shape, dtype=torch.int64) for name, w in params.items()}


def raises(params):
    raise KeyError("fc9")


def nan(params):
    return {name: w * float("nan") for name, w in params.items()}


def of_gradients(params, grads):
    return {name: grads[name].mean(0) for name in params}


CRITERIA = {
    "wrong_shape": ["test_tried.wrong_shape", "a tensor of shape [3] for", "which is of shape ["],
    "one_number": ["a tensor of shape [] for"],
    "forgets_a_layer": ["gives nothing for"],
    "no_dict": ["gives None and no dict of tensors"],
    "whole_numbers": ["gives int64 numbers for"],
    "raises": ["KeyError: 'fc9' (", "test_tried.py:", "in raises"],
    "of_gradients": ["a tensor of shape [", "which is of shape ["],
}


def short(error: FedpruneError) -> str:
    assert str(error).count("\n") < 2, error
    return str(error)


def refused(assemble, *typed: str) -> str:
    with pytest.raises(ConfigError) as error:
        build(*assemble(*TINY, *typed))
    return short(error.value)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("when", [ONCE, LATER])
def test_a_criterion_is_tried_before_the_first_round(criterion, when, assemble):
    told = refused(assemble, *when, f"criterion.drop._target_={HERE}.{criterion}")
    assert all(word in told for word in CRITERIA[criterion]), told


def test_a_formula_by_which_units_grow_is_tried_too(assemble):
    told = refused(assemble, "how_often=dynamic", "criterion=rigl", f"criterion.grow._target_={HERE}.wrong_shape")
    assert "test_tried.wrong_shape" in told


def test_nothing_is_asked_of_a_criterion_that_no_event_asks(assemble):
    build(*assemble(*TINY, "how_often=never", f"criterion.drop._target_={HERE}.raises"))


def test_a_score_that_is_no_number_is_told_where_it_arises(assemble, play):
    experiment = build(*assemble(*TINY, *ONCE, "rounds=1", f"criterion.drop._target_={HERE}.nan"))
    with pytest.raises(RunError, match="gave NaN for layer") as error:
        play(experiment)
    short(error.value)


def test_scores_are_looked_at_wherever_they_are_made():
    mask = {"fc.weight": torch.ones(2, 3, dtype=torch.bool)}
    with pytest.raises(RunError, match=r"of shape \[3\] for fc.weight, which is of shape \[2, 3\]"):
        scored(wrong_shape, {"params": {"fc.weight": torch.ones(2, 3)}}, mask)


# --- other options -----------------------------------------------------------------------------------------------------------


def number(*args, **settings):
    return 3


def mistaken(*args, **settings):
    raise ValueError("mine")


def mistaken_term(weights, **settings):
    raise ValueError("mine")


def nobody(cohort, clients, seed, **settings):
    return ()


def beyond(cohort, clients, seed, **settings):
    return (clients,)


def weights_alone(mask, anchors, draws, **settings):
    return {name: torch.zeros(3) for name in mask}


def rewinds_to_little(mask, anchors, draws, **settings):
    return {name: torch.zeros(3) for name in mask}, 0


class Forgets:
    """Merges into a network without its first tensor."""

    def __init__(self, server, **settings):
        self.server = server

    def add(self, subnet, weight):
        pass

    def result(self):
        return dict(list(self.server.items())[1:])


class Shortens(Forgets):
    """Merges into a network of other shapes."""

    def result(self):
        return {name: torch.zeros(1) for name in self.server}


def of_layers(weights, **settings):
    return torch.stack([w.sum() for w in weights.values()])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["when._target_=HERE.number", "+when._partial_=true", *ONCE[:1]], "when, HERE.number: it gives 3: return"),
        (["when._target_=HERE.mistaken", "+when._partial_=true", *ONCE[:1]], "HERE.mistaken: ValueError: mine ("),
        (["+how_often._partial_=true", "how_often._target_=HERE.number"], "HERE.number: it gives 3: return window.plan("),
        (
            [*ONCE, "criterion=snip", "where._target_=HERE.beyond", "+where._partial_=true"],
            "HERE.beyond: it gives (4,): return",
        ),
        ([*ONCE, "where._target_=HERE.nobody", "+where._partial_=true"], "gives (): return a tuple of one or more numbers"),
        ([*ONCE, "where._target_=HERE.mistaken", "+where._partial_=true"], "ValueError: mine ("),
        ([*ONCE, "rewind._target_=HERE.weights_alone", "+rewind._partial_=true"], "return fedprune.pruning.rewind.Rewound"),
        ([*ONCE, "rewind._target_=HERE.rewinds_to_little", "+rewind._partial_=true"], "a tensor of shape [3] for"),
        ([*ONCE, "rewind._target_=HERE.mistaken", "+rewind._partial_=true"], "ValueError: mine ("),
        ([*MERGE, "federated.aggregate._target_=HERE.Forgets"], "gives nothing for"),
        ([*MERGE, "federated.aggregate._target_=HERE.Shortens"], "a tensor of shape [1] for"),
        ([*MERGE, "federated.aggregate._target_=HERE.mistaken"], "ValueError: mine ("),
        (["federated.server._target_=HERE.number", "+federated.server._partial_=true"], "gives 3: return the server's new"),
        ([*ONCE, "what.unit._target_=HERE.number"], "gave 3 for scores of shape ["),
        ([*ONCE, "what.scope._target_=HERE.number"], "gives a value of type int and no dict"),
        (["local/penalty=l1", "local.penalty.formula._target_=HERE.of_layers"], "gives a tensor of shape ["),
        (["local/penalty=l1", "local.penalty.formula._target_=HERE.mistaken_term"], "ValueError: mine ("),
    ],
)
def test_what_another_option_gives_is_looked_at_before_the_first_round(words, says, assemble):
    told = refused(assemble, *(word.replace("HERE", HERE) for word in words))
    assert says.replace("HERE", HERE) in told


def test_a_merge_that_goes_wrong_later_is_told():
    server = {"w": torch.zeros(2)}
    with pytest.raises(RunError, match="its result gives nothing for w, which is of shape"):
        result(Forgets(server), server)


def test_a_rewind_that_goes_wrong_later_is_told():
    mask, params = {"w": torch.ones(2, dtype=torch.bool)}, {"w": torch.zeros(2)}
    with pytest.raises(RunError, match=r"a tensor of shape \[3\] for w, which is of shape \[2\]"):
        rewound(rewinds_to_little, mask, {}, Draws(lambda: params, torch.Generator), params)
