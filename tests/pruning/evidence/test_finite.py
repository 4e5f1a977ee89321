"""What is said of a NaN: who it comes from, and what helps."""

import pytest
import torch

from fedprune.errors import NotANumber, RunError
from fedprune.pruning.evidence.finite import explained, unmeasured

FINE = {"a.weight": torch.ones(2), "b.weight": torch.ones(2)}
NAN = FINE | {"b.weight": torch.tensor([1.0, float("nan")])}


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        ({"params": NAN, "grads": NAN}, ["the training has diverged", "Lower local.optimizer.lr"]),
        ({"params": FINE, "grads": NAN}, ["the evidence grads of b is not finite", "what.skip=[b]", "criterion=magnitude"]),
        (
            {"params": FINE, "generator": torch.Generator, "grads": FINE},
            ["its formula has no value there", "criterion=magnitude"],
        ),
    ],
)
def test_a_score_that_is_not_a_number_is_explained_by_the_evidence(evidence, words):
    with pytest.raises(RunError) as caught, explained(evidence):
        raise NotANumber("b.weight")
    assert all(word in str(caught.value) for word in ["gave NaN for layer b", *words])


def test_evidence_that_is_finite_nowhere_is_not_to_be_had_by_leaving_a_layer_out():
    everywhere = {name: torch.full((2,), float("inf")) for name in FINE}
    assert "what.skip" not in str(unmeasured({"grads": everywhere}))
    assert unmeasured({"grads": FINE}) is None
