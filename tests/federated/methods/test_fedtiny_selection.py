"""FedTiny's selection: candidate masks are compared by their loss after BatchNorm's statistics are measured anew."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedprune.data.federate import Clients
from fedprune.errors import ConfigError, Incompatible, Unheard
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.federated.availability import Fate
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.where import comparing
from fedprune.pruning.candidates import Compared, apportioned, candidate_masks, lowest_loss
from fedprune.pruning.criterion import Selected, magnitude
from fedprune.pruning.evidence.batchnorm import LOSS, STATISTICS
from fedprune.pruning.mask import apply, count
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import erk
from fedprune.pruning.what.unit import weights
from fedprune.randomness import torch_stream
from fedprune.types import Subnet
from helpers.composed import assemble
from helpers.federation import PLAIN, federation
from helpers.spy import spied

NO_MORE = ("partition.min_examples=0", "partition.val=0", "partition.test=0")

SELECTED = ("criterion=fedtiny", "how_often=one_shot", "when=before_training", "what=weights_erk", "density=0.4")


class Normed(nn.Module):
    """F - BatchNorm - linear."""

    def __init__(self, features: int, hidden: int, classes: int):
        super().__init__()
        self.fc1 = nn.Linear(features, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.fc1(x.flatten(1))))


def normed(shape: tuple[int, int, int], classes: int, hidden: int = 5) -> nn.Module:
    """What `model._target_` names."""
    return Normed(shape[-1], hidden, classes)


MODEL = {"_target_": f"{__name__}.normed", "hidden": 5}


def selecting(*overrides: str, **parts):
    return federation(*SELECTED, *overrides, **{"model": MODEL, **parts})


def stream(name: str) -> torch.Generator:
    return torch_stream(0, name)


# --- the pool --------------------------------------------------------------------------------------------------------------


def test_units_are_apportioned_by_hand():
    """Counts of 4 and 4 with factors of 1.5 and 0.5 are in the proportion 6 : 2. Seats of a are worth 12, 4, 2.4, 1.7, 1.33,
    1.09 and those of b 4, 1.33, 0.8: the best eight are six and two. If a has only five places, b gets the third."""
    assert apportioned({"a": 4, "b": 4}, {"a": 9, "b": 9}, {"a": 1.5, "b": 0.5}) == {"a": 6, "b": 2}
    assert apportioned({"a": 4, "b": 4}, {"a": 5, "b": 9}, {"a": 1.5, "b": 0.5}) == {"a": 5, "b": 3}


def test_all_candidates_have_the_density_and_the_best_of_each_layer():
    params = {"a": torch.randn(30, 20, generator=stream("a")), "b": torch.randn(20, 10, generator=stream("b"))}
    what, scores = What(weights, erk, names=("a", "b")), magnitude(params)
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in params.items()}
    masks = candidate_masks(everything, scores, 0.1, what, Selected(magnitude, candidates=8, noise=0.5), stream)
    assert len(masks) == 8 and {count(mask) for mask in masks} == {80}
    layers = [tuple(int(alive.sum()) for alive in mask.values()) for mask in masks]
    assert len(set(layers)) > 4
    plain = layers[0]
    for mask, kept in zip(masks, layers, strict=True):
        assert all(abs(number - n) <= 0.75 * n for number, n in zip(kept, plain, strict=True))
        for name, alive in mask.items():
            assert scores[name][alive].min() > scores[name][~alive].max()
    again = candidate_masks(everything, scores, 0.1, what, Selected(magnitude, candidates=8, noise=0.5), stream)
    assert all(torch.equal(mask[name], same[name]) for mask, same in zip(masks, again, strict=True) for name in mask)


def test_the_candidate_of_the_lowest_loss_is_taken_and_of_equals_the_first():
    candidates = [Subnet({"w": torch.tensor([float(n)])}, {"w": torch.tensor([True])}) for n in range(4)]
    losses = [0.9, 0.3, 0.3, 0.5]

    def compare(given, adapt):
        assert adapt
        return [Compared(loss, {"w": 10 + c.params["w"]}) for loss, c in zip(losses, given, strict=True)]

    best = lowest_loss(candidates, compare, adapt=True)
    assert best.params["w"].item() == 11 and best.mask is candidates[1].mask


# --- statistics and losses -------------------------------------------------------------------------------------------------


def test_statistics_of_two_clients_by_hand():
    """BatchNorm takes in the two outputs of a layer with the weights 1, 3, 5 and 0, 0, 2 for the three features.

    Client 0 has examples of the features 0 and 1: its first outputs are 1 and 3, with the mean 2 and the variance
    (1 + 1) / (2 - 1) = 2; the second are 0 and 0. Client 1 has the features 1, 1 and 2: 3, 3, 5, with the mean 11/3 and the
    variance (4/9 + 4/9 + 16/9) / 2 = 4/3; and 0, 0, 2, with the mean 2/3 and the variance (4/9 + 4/9 + 16/9) / 2 = 4/3.
    By examples, 2 : 3, the means are (2 * 2 + 3 * 11/3) / 5 = 3 and (3 * 2/3) / 5 = 0.4; the variances, averaged alike,
    (2 * 2 + 3 * 4/3) / 5 = 1.6 and (3 * 4/3) / 5 = 0.8. (Of all five outputs together they would be 2 and 0.8.)
    """
    experiment = by_hand()
    loop = experiment.loop(experiment.executor())
    state = loop.start()
    params = state.server.params | {"fc1.weight": torch.tensor([[1.0, 3.0, 5.0], [0.0, 0.0, 2.0]])}
    subnet = Subnet(params, state.server.mask)
    tally = Tally()
    (found,) = comparing(loop.exchange, state, (0, 1), tally)([subnet], True)
    torch.testing.assert_close(found.params["norm.running_mean"], torch.tensor([3.0, 0.4]))
    torch.testing.assert_close(found.params["norm.running_var"], torch.tensor([1.6, 0.8]))
    assert torch.equal(found.params["fc1.weight"], params["fc1.weight"])

    # The loss, on training examples as there are no others: cross-entropy of each at these very statistics.
    x = torch.eye(3)[[0, 1, 1, 1, 2]]
    h = ((x @ params["fc1.weight"].T) - torch.tensor([3.0, 0.4])) / (torch.tensor([1.6, 0.8]) + 1e-5).sqrt()
    logits = h @ params["fc2.weight"].T + params["fc2.bias"]
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1, 0]))
    assert found.loss == pytest.approx(float(expected), abs=1e-6)


def by_hand() -> Experiment:
    """Two clients, of the first two and of the last three examples, and a BatchNorm of two channels."""
    config, names = assemble(*PLAIN, "federated.clients=2", "federated.cohort=2", "partition=iid", *NO_MORE)
    examples = [(0, 0), (1, 1), (1, 0), (1, 1), (2, 0)]  # (the feature that is 1, the class)
    config.data = {"_target_": "helpers.by_hand.rows", "examples": examples, "features": 3}
    config.model = {"_target_": f"{__name__}.normed", "hidden": 2}
    nothing = torch.empty(0, dtype=torch.int64)
    train = torch.arange(5).tensor_split([2])
    return replace(build(config, names), clients=Clients(train, (nothing,) * 2, (nothing,) * 2, nothing))


def test_the_loss_is_of_validation_examples_where_there_are_some():
    """Client 1 has none for validation, so its training examples are taken."""
    experiment = selecting(train=(range(12), range(12, 30)), val=(range(36, 42), ()), test=((), ()))
    spy = spied(experiment)
    loop = experiment.loop(spy)
    state = loop.start()
    answers = list(loop.exchange.measure(state, state.server, (0, 1), (LOSS,), "alive", Tally()))
    assert [update.examples for update in answers] == [6, 18]


# --- a run -----------------------------------------------------------------------------------------------------------------


def test_a_run_takes_the_best_of_all_candidates_and_counts_every_byte():
    experiment = selecting("criterion.candidates=4", "rounds=1")
    spy = spied(experiment)
    loop = experiment.loop(spy)
    start = loop.start()
    after, metrics = loop.round(start)
    asked = [job.measure for job, *_ in spy.seen if job.measure]
    assert asked == [(STATISTICS,)] * 12 + [(LOSS,)] * 12  # four candidates, three clients, two exchanges
    assert (metrics["wire/down_bytes"], metrics["wire/up_bytes"]) == spy.bytes_of(0)
    # In the second exchange no prunable weight is sent: it is shorter by the living, 4 bytes each.
    first, second = ([down for job, down, _ in spy.seen if job.measure == (name,)] for name in (STATISTICS, LOSS))
    living = count(after.server.mask)
    assert living == round(0.4 * sum(alive.numel() for alive in after.server.mask.values()))
    assert all(a - b > 4 * living - 20 for a, b in zip(first, second, strict=True))
    # Each candidate's loss, by measuring it again; the run went on with the lowest.
    candidates = [job.subnet for job, *_ in spy.seen if job.measure == (STATISTICS,)][::3]
    compared = comparing(loop.exchange, start, (0, 1, 2), Tally())(candidates, True)
    best = min(range(4), key=lambda number: compared[number].loss)
    chosen = candidates[best].mask
    assert all(torch.equal(alive, chosen[name]) for name, alive in after.server.mask.items())
    assert len({round(one.loss, 6) for one in compared}) > 1


def test_exchanges_keep_the_number_of_units_of_each_layer_that_was_selected():
    """Erdos-Renyi would have other numbers; half of the living of a layer are exchanged in its turn."""
    overrides = ("how_often=progressive", "how_often.every=1", "how_often.swap=0.5", "how_often.decay=constant")
    experiment = selecting(*overrides, "how_often.blocks=2", "when=during_training", "when.start=0", "when.stop=1", "rounds=3")
    loop = experiment.loop(experiment.executor())
    states = [loop.start()]
    for _ in range(3):
        states.append(loop.round(states[-1])[0])
    layers = [{name: int(alive.sum()) for name, alive in state.server.mask.items()} for state in states[1:]]
    assert layers[0] == layers[1] == layers[2]
    initial = magnitude({name: states[0].server.params[name] for name in layers[0]})
    plain = experiment.axes.what.select(initial, 0.4)
    assert layers[0] != {name: int(alive.sum()) for name, alive in plain.items()}
    changed = [
        {name for name in layers[0] if not torch.equal(before.server.mask[name], after.server.mask[name])}
        for before, after in itertools.pairwise(states[1:])
    ]
    assert changed == [{"fc2.weight"}, {"fc1.weight"}]


def test_the_network_goes_on_with_the_statistics_of_its_mask():
    experiment = selecting("criterion.candidates=3", "rounds=1")
    loop = experiment.loop(experiment.executor())
    pruned, _ = loop.pruning.before_round(loop.start(), Tally())
    mean = pruned.server.params["norm.running_mean"]
    inputs = experiment.dataset.normalise(experiment.dataset.x[:36]).flatten(1)
    # Of one layer alone the mean over clients is the mean over all their examples.
    torch.testing.assert_close(mean, (inputs @ pruned.server.params["fc1.weight"].T).mean(0), rtol=0, atol=1e-5)


def test_without_adaptation_there_is_one_exchange_also_without_batchnorm():
    experiment = federation(*SELECTED, "criterion.candidates=3", "criterion.adapt=false", "rounds=1")
    spy = spied(experiment)
    loop = experiment.loop(spy)
    after, _ = loop.round(loop.start())
    assert [job.measure for job, *_ in spy.seen if job.measure] == [(LOSS,)] * 9
    assert count(after.server.mask) == round(0.4 * sum(alive.numel() for alive in after.server.mask.values()))


def test_one_candidate_is_the_criterion_alone():
    one, plain = (selecting(*more, "rounds=1") for more in (("criterion.candidates=1",), ("criterion=magnitude",)))
    states = [loop.round(loop.start())[0] for loop in (each.loop(each.executor()) for each in (one, plain))]
    assert all(torch.equal(states[0].server.params[name], value) for name, value in states[1].server.params.items())


def test_executors_agree_and_an_event_begun_again_is_the_same():
    serial = selecting("criterion.candidates=3", "rounds=1")
    several = selecting("criterion.candidates=3", "rounds=1", "executor=processes", "+executor.workers=2")
    found = []
    for experiment in (serial, several):
        executor = experiment.executor()
        loop = experiment.loop(executor)
        start = loop.start()
        found.append(loop.round(start)[0])
        if experiment is serial:
            found.append(loop.round(start)[0])
        executor.close()
    for other in found[1:]:
        assert (other.up_bytes, other.down_bytes) == (found[0].up_bytes, found[0].down_bytes)
        for name, value in found[0].server.params.items():
            assert torch.equal(other.server.params[name], value), name


def test_an_event_about_which_nobody_answers_waits():
    experiment = selecting("criterion.candidates=2", "rounds=1")
    loop = experiment.loop(experiment.executor())
    silent = replace(loop.exchange, fates=lambda client, clock: Fate.SILENT)
    state = loop.start()
    with pytest.raises(Unheard):
        comparing(silent, state, (0, 1), Tally())([state.server], True)
    only_one = replace(loop.exchange, fates=lambda client, clock: Fate.ANSWERS if client else Fate.SILENT)
    (found,) = comparing(only_one, state, (0, 1), Tally())([state.server], True)
    assert found.params["norm.running_mean"].isfinite().all()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("criterion.candidates=0",), "criterion.candidates=0 must be at least 1"),
        (("criterion.noise=0.0",), "set criterion.candidates=1"),
        (("criterion.noise=1.5",), "more than 0, at most 1"),
        (("where=server",), "choose where=cohort"),
        (("whose=personal",), "choose whose=shared"),
        (("what=weights_threshold",), "choose what=weights_erk"),
        (("federated.batchnorm=local",), "set federated.batchnorm=average"),
        (("federated.batchnorm=frozen",), "set federated.batchnorm=average"),
    ],
)
def test_what_cannot_be_is_refused(overrides, problem):
    with pytest.raises((ConfigError, Incompatible)) as error:
        selecting(*overrides)
    assert problem in str(error.value)


def test_a_network_without_batchnorm_is_refused_with_what_to_type():
    with pytest.raises(Incompatible) as error:
        selecting(model={"_target_": "helpers.federation.mlp", "hidden": 5})
    assert "choose model=vgg_small, or criterion.adapt=false" in str(error.value)


def test_apply_of_a_candidate_leaves_only_its_weights():
    """What is sent of a candidate is the network under its mask."""
    experiment = selecting("criterion.candidates=2", "rounds=1")
    spy = spied(experiment)
    loop = experiment.loop(spy)
    loop.round(loop.start())
    for job, *_ in spy.seen:
        if job.measure == (STATISTICS,):
            masked = apply(job.subnet.params, job.subnet.mask)
            assert all(torch.equal(masked[name], job.subnet.params[name]) for name in job.subnet.mask)
