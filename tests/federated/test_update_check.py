"""The server believes nothing that a client says of itself: an honest update passes, and each lie about it is told by name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedprune.federated.update_check import UpdateCheck
from fedprune.local.recipe import Recipe
from fedprune.types import SERVER, Job, PruneEvent, Subnet, Update

MASK = {"w": torch.tensor([True, True, False])}
SENT = Subnet({"w": torch.tensor([1.0, 2.0, 0.0]), "b": torch.zeros(1), "n.running_var": torch.ones(1)}, MASK)
TRAIN = Job(client=1, round=4, clock=4, seed=0, subnet=SENT)
ASKED = replace(TRAIN, measure=("grads",))
TRAINED = Update(1, SENT, 10, metrics={"loss": 0.5, "steps": 3, "seen": 20})
MEASURED = Update(1, None, 4, evidence={"grads": {"w": torch.tensor([1.0, -1.0, 0.0])}})
CHECK = UpdateCheck(examples=(5, 10), validation=(1, 6), measured_on=4, recipe=Recipe(epochs=2, batch_size=4))


def test_honest_updates_pass():
    assert CHECK(TRAINED, TRAIN) is None
    assert CHECK(MEASURED, ASKED) is None
    assert CHECK(replace(MEASURED, client=SERVER, examples=77), replace(ASKED, client=SERVER)) is None  # the server's own
    largest = replace(CHECK, top=True)
    assert largest(replace(MEASURED, about="top"), replace(ASKED, about="dead")) is None
    assert "was asked about `top`" in str(largest(replace(MEASURED, about="dead"), replace(ASKED, about="dead")))
    loss = replace(MEASURED, evidence={"candidate_loss": {"loss": torch.tensor(0.3)}}, examples=6)
    assert CHECK(loss, replace(ASKED, measure=("candidate_loss",))) is None  # of the validation examples
    assert CHECK(replace(TRAINED, logged={"train/mine": ("max", math.nan)}), TRAIN) is None  # a user's own numbers
    assert CHECK(replace(TRAINED, metrics={"loss": 0.0, "steps": 0, "seen": 0}), TRAIN) is None  # hooks may end a round at once


def with_metrics(**changed: object) -> Update:
    metrics = {**TRAINED.metrics, **changed}
    return replace(TRAINED, metrics={name: value for name, value in metrics.items() if value is not None})


def with_params(**changed: list[float]) -> Update:
    params = {name: torch.tensor(changed.get(name.replace(".", "_"), value.tolist())) for name, value in SENT.params.items()}
    return replace(TRAINED, subnet=Subnet(params, MASK))


def with_mask(*alive: int) -> Update:
    params = SENT.params | {"w": torch.tensor([float(one) for one in alive])}
    return replace(TRAINED, subnet=Subnet(params, {"w": torch.tensor(alive).bool()}))


# Client 1 has 10 training examples. Two epochs of batches of 4 are 2 x 3 batches, and 20 examples are seen.
LIES = {
    "another client": (replace(TRAINED, client=0), "it says that it is of client 0"),
    "more examples": (replace(TRAINED, examples=11), "it is of 11 examples, and the client has 10"),
    "fewer examples": (replace(TRAINED, examples=9), "it is of 9 examples, and the client has 10"),
    "no loss": (with_metrics(loss=None), "its metrics have no loss"),
    "no steps": (with_metrics(steps=None), "its metrics have no steps"),
    "no seen": (with_metrics(seen=None), "its metrics have no seen"),
    "negative count": (with_metrics(seen=-1), "seen -1, which is no whole number from 0 to 20"),
    "a count beyond its passes": (with_metrics(seen=21), "seen 21, which is no whole number from 0 to 20"),
    "a count that is no whole number": (with_metrics(seen=2.5), "seen 2.5, which is no whole number"),
    "an infinite count": (with_metrics(seen=math.inf), "seen inf, which is no whole number"),
    "endless steps": (with_metrics(steps=10**9), "steps 1000000000, which is no whole number from 0 to 6000"),
    "a loss without a value": (with_metrics(loss=math.nan), "the training has diverged (loss nan"),
    "an infinite loss": (with_metrics(loss=-math.inf), "the training has diverged (loss -inf"),
    "an accuracy beyond 1": (with_metrics(accuracy=1.5), "accuracy 1.5, which is a fraction"),
    "another infinite metric": (with_metrics(mine=math.inf), "mine inf, which cannot be"),
    "a metric of the run": (
        replace(TRAINED, logged={"test/accuracy": ("mean", 1.0)}),
        "test/* are names of metrics of the run",
    ),
    "a count of the run": (replace(TRAINED, logged={"train/examples": ("sum", 1.0)}), "is the name of a metric of the run"),
    "an unknown reduction": (replace(TRAINED, logged={"mine": ("last", 1.0)}), "mean, sum, min or max"),
    "a name that terminals obey": (replace(TRAINED, logged={"\x1b[2J": ("sum", 1.0)}), r"logged \x1b[2J: the name of a metric"),
    "no network": (replace(TRAINED, subnet=None), "it has evidence and no network"),
    "evidence unasked": (replace(TRAINED, evidence=MEASURED.evidence), "asked for the evidence [] and has [grads]"),
    "entries unasked": (replace(TRAINED, about="dead"), "about the entries `dead`, and it was asked about `alive`"),
    "an event that was not due": (replace(TRAINED, pruned=True), "it says that it has pruned, and no event was due"),
    "a control unasked": (replace(TRAINED, control={"w": torch.zeros(3)}), "its control is not of the parameters"),
    "an infinite weight": (with_params(b=[math.inf]), "not all numbers are finite"),
    "a weight without a value": (with_params(w=[math.nan, 1.0, 0.0]), "not all numbers are finite"),
    "a negative variance": (with_params(n_running_var=[-1.0]), "a negative variance in n.running_var"),
    "a grown mask": (with_mask(1, 1, 1), "its mask has entries in w that are dead in the mask it was sent"),
    "a lost mask": (with_mask(1, 0, 0), "its mask has lost entries in w, and no event was due"),
}

LIES_ABOUT_EVIDENCE = {
    "all examples": (replace(MEASURED, examples=10), "it is of 10 examples, and the client has 4"),
    "other evidence": (
        replace(MEASURED, evidence={"sq_grads": MEASURED.evidence["grads"]}),
        "evidence [grads] and has [sq_grads]",
    ),
    "no evidence": (replace(MEASURED, evidence={}), "evidence [grads] and has []"),
    "other entries": (replace(MEASURED, about="all"), "about the entries `all`, and it was asked about `alive`"),
    "a training": (replace(MEASURED, metrics=TRAINED.metrics), "has the metrics loss, steps, seen, which cannot be"),
    "a loss": (replace(MEASURED, metrics={"accuracy": 0.5}), "has the metrics accuracy, which cannot be"),
    "a network": (replace(MEASURED, subnet=SENT), "it has a network where evidence was asked for"),
    "infinite evidence": (
        replace(MEASURED, evidence={"grads": {"w": torch.tensor([math.inf, 0, 0])}}),
        "the evidence grads of",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_about_a_training_is_told(lie):
    update, told = LIES[lie]
    assert told in str(CHECK(update, TRAIN))


@pytest.mark.parametrize("lie", LIES_ABOUT_EVIDENCE)
def test_each_lie_about_evidence_is_told(lie):
    update, told = LIES_ABOUT_EVIDENCE[lie]
    assert told in str(CHECK(update, ASKED))


def test_a_mask_may_change_where_an_event_is_due_and_grow_where_it_exchanges():
    pruning, exchanging = (replace(TRAIN, event=PruneEvent(4, 0.5, swap)) for swap in (0.0, 0.2))
    assert CHECK(replace(with_mask(1, 0, 0), pruned=True), pruning) is None
    assert CHECK(replace(with_mask(0, 1, 1), pruned=True), exchanging) is None
    assert "that are dead in the mask it was sent" in str(CHECK(with_mask(0, 1, 1), pruning))
    part = replace(CHECK, whole=False)  # of an upload of the greatest weights
    assert part(with_mask(0, 1, 0), TRAIN) is None


def test_buffers_that_nobody_learns_stay_infinite_where_they_were_and_become_it_nowhere_else():
    check = replace(CHECK, learnt=("w",))
    causal = Subnet(SENT.params | {"b": torch.tensor([-math.inf])}, MASK)
    assert check(replace(TRAINED, subnet=causal), replace(TRAIN, subnet=causal)) is None
    assert "not all numbers are finite" in str(check(replace(TRAINED, subnet=causal), TRAIN))
