"""What is evaluated is what was trained: on the same examples, a client's evaluation has the loss of its training.

Clients train with a learning rate of 0, in one batch of all their examples, so that the loss of training is that of the network
that they were sent. Noise of training is turned off by its own key.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprune.data.batches import Slice
from fedprune.execution import employed

CONF = Path(__file__).parents[3] / "conf"

STILL = {
    "none": (),
    "scaled": (),
    "adjusted": ("local.dropout.rate=0.0",),
    "targeted": ("local.dropout.alpha=0.0",),
    "variational": ("local.dropout.log_sigma2=-80.0", "local.dropout.strength=0.0"),
    "ordered": ("local.dropout.levels=[1.0]",),
    "ordered_distilled": (),  # the loss that is told is the first, of the client's whole width
    "swat": ("local.dropout.density=1.0",),
}
"""Each dropout without its noise."""

DROPOUTS = sorted(path.stem for path in (CONF / "local" / "dropout").glob("*.yaml"))
PENALTIES = sorted(path.stem for path in (CONF / "local" / "penalty").glob("*.yaml"))

PRUNED = ("how_often=one_shot", "when=during_training", "when.start=0.3", "density=0.4")
TIERS = ("federated/capacity=tiers", "federated.capacity.levels=[1.0,0.5,0.25]", "how_often=never")

WHOSE = {
    "shared": PRUNED,
    "voted": PRUNED,
    "voted_densities": PRUNED,
    "personal": PRUNED,
    "nested": TIERS,
    "nested whose.labels=own": TIERS,
    "nested whose.by=magnitude": TIERS,
}

MODEL = ("model=lenet_300_100", "local.optimizer.lr=0.0", "local.steps=null", "local.epochs=1", "local.batch_size=1000")
OF_ALL = ("partition=dirichlet", "federated.cohort=4", "rounds=4", "eval_every=10")


def losses(experiment, play) -> list[tuple[float, float]]:
    """Return (that of training, that of evaluation) of each client after two rounds, on its training examples."""
    (state, _), pairs, start = play(experiment, stop=2)[-1], [], 0
    with employed(experiment.executor()) as executor:
        loop, worker = experiment.loop(executor), executor._client_round
        block = loop.exchange.wire.subnet_block(state.server)
        for client, job in enumerate(loop._jobs(state, range(4))):
            where = Slice("train", start, start := start + len(experiment.clients.train[client]))
            outcomes = worker.evaluate(block, {}, loop.whose.client_mask(state, client), where)
            pairs.append((worker.perform(job).metrics["loss"], float(outcomes.values["loss"].mean())))
    return pairs


def assert_alike(pairs) -> None:
    assert len(pairs) == 4
    for trained, evaluated in pairs:
        assert evaluated == pytest.approx(trained, rel=1e-5)


def test_every_dropout_is_here():
    assert sorted(STILL) == DROPOUTS


@pytest.mark.parametrize("whose", ["shared", "nested"])
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_under_every_dropout(dropout, whose, tiny, play):
    overrides = (*MODEL, *OF_ALL, f"whose={whose}", f"local/dropout={dropout}", *STILL[dropout], *WHOSE[whose])
    assert_alike(losses(tiny(*overrides), play))


@pytest.mark.parametrize("penalty", [penalty for penalty in PENALTIES if penalty not in ("bn_l1", "l0")])
def test_under_every_penalty(penalty, tiny, play):
    """The loss that is told is without the penalty. Left out: bn_l1, for BatchNorm normalises in training by the batch and in
    evaluation by its running statistics; l0, whose gates are random in training, with no key to still them."""
    assert_alike(losses(tiny(*MODEL, *OF_ALL, *PRUNED, f"local/penalty={penalty}"), play))


@pytest.mark.parametrize("dropout", ["none", "scaled"])
@pytest.mark.parametrize("whose", WHOSE)
def test_whosever_the_mask_is(whose, dropout, tiny, play):
    overrides = (*MODEL, *OF_ALL, *WHOSE[whose], f"whose={whose.split()[0]}", *whose.split()[1:], f"local/dropout={dropout}")
    assert_alike(losses(tiny(*overrides), play))
