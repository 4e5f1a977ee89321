"""What is wrong with a configuration: every rule on its own, all at once, and which kind of wrong it is."""

import functools
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from fedprune.errors import ConfigError, DataError, Incompatible, RunError
from fedprune.experiment.checks import (
    Problems,
    composition,
    evidence,
    kept_back,
    min_per_layer,
    obstacles,
    of_single_weights,
    on_clients,
    outcomes,
    outcomes_of_clients,
    ranges,
    regrown,
    scope,
    validation,
)
from fedprune.federated.masks import PersonalMask, Shared, Voted
from fedprune.federated.masks.voting import by_layer_density, by_votes
from fedprune.federated.where import AllClients, Cohort, OneClient, Server
from fedprune.pruning.criterion import Adjusted, Compensated, Criterion, gradient, magnitude, magnitude_increase, random, snip
from fedprune.pruning.criterion.curvature import obd_sweep
from fedprune.pruning.criterion.structured import activation, bn_scale
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.gate import Accurate, Moving, Settled
from fedprune.pruning.rewind import Early, Keep, LearningRate, RandomReinit, Replaced, shuffle
from fedprune.pruning.what import What
from fedprune.pruning.what.fixed_density import NOfM, Threshold
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import filters, weights
from fedprune.types import Gate, Plan, PruneEvent

CONF = Path(__file__).parents[2] / "conf"
NAMES = {"criterion": "mine", "how_often": "often", "where": "there", "rewind": "none", "what": "that", "when": "then"}


def config(**changes: object) -> DictConfig:
    """The defaults, with some values changed ("federated.cohort" as federated__cohort)."""
    sound = OmegaConf.load(CONF / "config.yaml")
    made = OmegaConf.create({key: sound[key] for key in ("density", "rounds", "eval_every", "seed", "checkpoint_every")})
    made.federated = OmegaConf.load(CONF / "federated" / "fedavg.yaml")
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made


# --- ranges ----------------------------------------------------------------------------------------------------------------


def test_the_defaults_are_in_range():
    assert ranges(config()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.0}, "density=0.0 is the fraction alive"),
        ({"density": -0.1}, "density=-0.1 is the fraction alive"),
        ({"density": 1.01}, "density=1.01 is the fraction alive"),
        ({"density": float("nan")}, "density=nan is the fraction alive"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"eval_every": 0}, "eval_every=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1 is in seconds"),
        ({"federated__clients": 0, "federated__cohort": 1}, "federated.clients=0 must be at least 1"),
        ({"federated__cohort": 0}, "federated.cohort=0 must be from 1 to federated.clients=20"),
        ({"federated__cohort": 21}, "federated.cohort=21 must be from 1 to federated.clients=20"),
        ({"federated__weighting": "votes"}, "federated.weighting=votes: choose one of examples, uniform"),
        ({"federated__regrown": "init"}, "federated.regrown=init: choose one of zero, server"),
        ({"federated__broken": "ignore"}, "federated.broken=ignore: choose one of stop, drop"),
    ],
)
def test_a_value_out_of_range_is_reported_by_name_and_alone(changes, message):
    problems = ranges(config(**changes))
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"density": 1.0},
        {"density": 1e-6},
        {"rounds": 1, "eval_every": 1, "seed": 0, "checkpoint_every": 0},
        {"federated__cohort": 20},
        {"federated__clients": 1, "federated__cohort": 1},
        {"federated__regrown": "server"},
        {"federated__weighting": "uniform", "federated__broken": "drop"},
    ],
)
def test_values_at_the_edge_are_fine(changes):
    assert ranges(config(**changes)) == []


def test_all_values_out_of_range_are_reported_at_once():
    wrong = {"density": 2.0, "rounds": 0, "eval_every": 0, "seed": -1, "federated__cohort": 99, "federated__weighting": "x"}
    assert len(ranges(config(**wrong))) == len(wrong)


# --- evidence --------------------------------------------------------------------------------------------------------------


def test_formulas_that_ask_for_what_nobody_can_measure_are_reported_with_what_there_is():
    def lunar(params, moon_phase): ...

    (problem,) = evidence(Criterion(magnitude, lunar), NAMES)
    assert "criterion=mine" in problem
    assert "grow" in problem
    assert "unknown evidence moon_phase; known: params," in problem
    assert len(evidence(Criterion(lunar, lunar), NAMES)) == 2
    assert evidence(Criterion(snip, random), NAMES) == []
    assert evidence(Criterion(magnitude), NAMES) == []


# --- composition -----------------------------------------------------------------------------------------------------------

ONCE = Plan((PruneEvent(3, 0.1),), 10)
NEVER = Plan((), 10)
DYNAMIC = Plan((PruneEvent(0, 0.1), PruneEvent(2, 0.1, 0.3)), 10)
RIGL = Criterion(magnitude, gradient)


OPTIONS = {
    "none": Keep(),
    **{"init": Early(0), "round_3": Early(3), "round_4": Early(4)},
    **{"learning_rate_3": LearningRate(3), "learning_rate_4": LearningRate(4)},
    **{"random_reinit": RandomReinit(), "shuffle": Replaced(shuffle, False)},
}


def composed(plan: Plan = ONCE, criterion: Criterion | None = None, where: object = None, rewind: str = "none") -> list[str]:
    names = NAMES | {"rewind": rewind}
    return composition(plan, criterion or Criterion(magnitude), where or Cohort(), OPTIONS[rewind], Shared(), names)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"plan": DYNAMIC, "criterion": RIGL},
        {"criterion": RIGL},  # never grows, but that is a warning
        {"criterion": Criterion(snip)},
        {"criterion": Criterion(snip), "where": OneClient()},
        {"criterion": Criterion(snip), "where": AllClients()},
        {"criterion": Criterion(snip), "where": Server(proxy=100)},
        {"criterion": Criterion(magnitude), "where": Server()},
        {"criterion": Criterion(random), "where": Server()},
        {"criterion": Criterion(snip), "where": Server(), "plan": NEVER},
        {"rewind": "init"},
        {"rewind": "round_3"},  # the first event is after 3 rounds
        {"rewind": "round_4", "plan": NEVER},
        {"rewind": "random_reinit"},
        {"rewind": "learning_rate_3"},
        {"rewind": "learning_rate_4", "plan": NEVER},
        {"rewind": "shuffle"},
    ],
)
def test_what_means_something_is_accepted(choices):
    assert composed(**choices) == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"plan": DYNAMIC},
            "how_often=often exchanges units, and criterion=mine has no formula to grow by: choose criterion=rigl",
        ),
        (
            {"plan": DYNAMIC, "criterion": RIGL, "rewind": "random_reinit"},
            "rewind=random_reinit would undo that: choose rewind=none",
        ),
        (
            {"criterion": Criterion(snip), "where": Server()},
            "criterion=mine needs grads, and where=there has no data: choose where=cohort, or set where.proxy=500",
        ),
        ({"plan": DYNAMIC, "criterion": RIGL, "where": Server()}, "criterion=mine needs grads, and where=there has no data"),
        (
            {"rewind": "round_4"},
            "rewind.round=4 comes after the first prune event, which is after 3 rounds: choose",
        ),
        (
            {"rewind": "learning_rate_4"},
            "rewind.round=4 comes after the first prune event, which is after 3 rounds: choose",
        ),
        (
            {"plan": DYNAMIC, "criterion": RIGL, "rewind": "shuffle"},
            "rewind=shuffle would undo that: choose rewind=none",
        ),
    ],
)
def test_what_means_nothing_is_refused_with_what_to_choose_instead(choices, message):
    (problem,) = composed(**choices)
    assert message in problem


def test_all_contradictions_are_reported_at_once():
    assert len(composed(DYNAMIC, Criterion(snip), Server(), "round_4")) == 4


FROM_START = Criterion(magnitude_increase)


@pytest.mark.parametrize("choices", [{}, {"rewind": "random_reinit"}, {"rewind": "init"}, {"plan": NEVER}])
def test_the_weights_at_the_start_may_be_compared_with_after_some_training(choices):
    assert composed(criterion=FROM_START, **choices) == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"plan": Plan((PruneEvent(0, 0.1),), 10)}, "is before any training: choose when=after_training"),
        (
            {"plan": Plan((PruneEvent(3, 0.5), PruneEvent(6, 0.1)), 10), "rewind": "random_reinit"},
            "rewind=random_reinit replaces them: choose rewind=init",
        ),
        (
            {"plan": Plan((PruneEvent(3, 0.5), PruneEvent(6, 0.1)), 10), "rewind": "shuffle"},
            "rewind=shuffle replaces them: choose rewind=init",
        ),
    ],
)
def test_the_weights_at_the_start_must_be_others_and_still_count(choices, message):
    (problem,) = composed(criterion=FROM_START, **choices)
    assert message in problem


# --- gates -----------------------------------------------------------------------------------------------------------------


def gated(opens) -> Plan:
    return Plan((PruneEvent(3, 0.1),), 10, Gate(opens, 9, 1))


def test_a_gate_that_asks_for_what_no_round_comes_out_with_is_reported_with_what_there_is():
    def lucky(val_accuracy, moon_phase): ...

    assert outcomes(gated(lucky), Shared(), NAMES) == [
        "when=then: the gate asks for unknown outcomes moon_phase; known: val_accuracy, mask_shift, val_metric"
    ]
    for plan in (gated(Accurate(0.5)), gated(Settled(0.1)), ONCE):
        assert outcomes(plan, Shared(), NAMES) == []


def test_a_gate_on_accuracy_needs_validation_data():
    (problem,) = validation(gated(Accurate(0.5)), 0, NAMES)
    assert "when=then looks at the clients' validation data, and partition.val=0 leaves none" in problem
    assert validation(gated(Accurate(0.5)), 1, NAMES) == []
    assert validation(gated(Settled(0.1)), 0, NAMES) == []
    assert validation(ONCE, 0, NAMES) == []


@pytest.mark.parametrize("outcome", ["val_accuracy", "mask_shift"])
def test_outcomes_are_no_evidence_for_a_criterion(outcome):
    formula = eval(f"lambda params, {outcome}: None")
    (problem,) = evidence(Criterion(formula), NAMES)
    assert f"unknown evidence {outcome}" in problem


def test_what_is_known_of_a_removal_is_for_compensation_alone():
    formula = lambda fisher_compensation: None  # noqa: E731
    assert evidence(Compensated(magnitude, compensate=formula), NAMES) == []
    for criterion in (Criterion(formula), Criterion(magnitude, formula)):
        (problem,) = evidence(criterion, NAMES)
        assert "unknown evidence fisher_compensation; known: params," in problem
        assert "fisher_compensation" not in problem.partition("known:")[2]
    (problem,) = evidence(Compensated(magnitude, compensate=lambda moon_phase: None), NAMES)
    assert "compensate asks for unknown evidence moon_phase" in problem and "fisher_compensation" in problem


# --- events on clients -----------------------------------------------------------------------------------------------------

OWN = NAMES | {"whose": "theirs"}


def of_clients(plan=ONCE, whose=None, criterion=None, where=None, rewind="none") -> list[str]:
    axes, names = Axes(What(weights, globally), criterion or Criterion(snip)), OWN | {"rewind": rewind}
    return on_clients(plan, whose or PersonalMask(), axes, where or Cohort(), OPTIONS[rewind], names)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"rewind": "init"},
        {"rewind": "random_reinit"},
        {"rewind": "shuffle"},
        {"criterion": Criterion(magnitude), "where": Server()},  # no data is asked for, so nobody measures elsewhere
        {"whose": Shared(), "where": Server(proxy=5), "rewind": "round_3"},  # which carries out nothing on clients
        {"whose": Voted(by_votes), "rewind": "round_3"},  # whose server rewinds
        {"whose": Voted(by_votes), "rewind": "learning_rate_3"},
        {"plan": NEVER, "where": OneClient(), "rewind": "round_3"},
        {"plan": gated(Moving(0.1, 0.5)), "whose": PersonalMask("end")},
    ],
)
def test_what_clients_can_do_by_themselves_is_accepted(choices):
    assert of_clients(**choices) == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"where": OneClient()},
            "whose=theirs: each client scores on its own data, and where=there measures elsewhere: choose wh",
        ),
        ({"where": Server(proxy=9)}, "whose=theirs: each client scores on its own data, and where=there measures elsewhere"),
        ({"whose": Voted(by_votes), "where": AllClients()}, "each client scores on its own data"),
        ({"rewind": "round_3"}, "a client knows the weights of the start, and not those of round 3: choose rewind=init"),
        (
            {"rewind": "learning_rate_3"},
            "rewind=learning_rate_3 would set back one client's: choose rewind=init or rewind=none",
        ),
        (
            {"plan": gated(Moving(0.1, 0.5))},
            "when=then compares the masks after the first and the last epoch: choose whose.at=end",
        ),
        ({"plan": gated(Settled(0.1))}, "when=then compares the masks after the first and the last epoch: choose whose.at=end"),
    ],
)
def test_what_clients_cannot_do_by_themselves_is_refused_with_what_to_choose_instead(choices, message):
    (problem,) = of_clients(**choices)
    assert message in problem


def test_what_clients_grow_starts_from_zero_and_nowhere_else():
    (problem,) = regrown("server", DYNAMIC, Voted(by_votes), OWN)
    assert problem.endswith("choose federated.regrown=zero, or whose=shared")
    assert regrown("zero", DYNAMIC, Voted(by_votes), OWN) == regrown("server", DYNAMIC, Shared(), OWN) == []
    assert regrown("server", ONCE, Voted(by_votes), OWN) == []  # nothing grows


def test_a_gate_that_only_clients_can_answer_is_refused_where_the_server_asks():
    (problem,) = outcomes_of_clients(gated(Moving(0.1, 0.5)), Shared(), OWN)
    assert problem == "when=then is for clients with masks of their own: choose whose=personal, or when=once_accurate"
    assert outcomes_of_clients(gated(Moving(0.1, 0.5)), Voted(by_votes), OWN) == [problem]
    assert outcomes_of_clients(gated(Moving(0.1, 0.5)), PersonalMask("end"), OWN) == []

    def lucky(moon_phase): ...

    (problem,) = outcomes(gated(lucky), PersonalMask(), OWN)
    assert "unknown outcomes moon_phase; known: val_accuracy, mask_shift, val_metric, pruned_accuracy" in problem


@pytest.mark.parametrize(
    ("what", "criterion", "whose", "block", "choose"),
    [
        (What(filters, globally), Adjusted(magnitude, gradient), Shared(), None, "choose what=weights_global"),
        (What(weights, globally), Adjusted(magnitude, gradient), Shared(), (0, 2), "choose how_often=dynamic"),
        (What(filters, globally), Criterion(magnitude, random), "voted", None, "choose what=weights_global, or whose=voted"),
        (What(weights, NOfM(2, 4)), Criterion(magnitude, random), "voted", None, "choose what=weights_global, or whose=voted"),
        (What(weights, globally), Adjusted(magnitude, gradient), Shared(), None, None),
        (What(weights, globally), Criterion(magnitude, random), "voted", None, None),
        (What(filters, globally), Criterion(magnitude, random), Voted(by_votes), None, None),
    ],
)
def test_methods_that_count_single_weights_are_refused_larger_units_and_other_counts(what, criterion, whose, block, choose):
    plan = Plan((PruneEvent(0, 0.5), PruneEvent(1, 0.5, 0.3, block)), 4)
    whose = Voted(functools.partial(by_layer_density)) if whose == "voted" else whose
    found = of_single_weights(plan, Axes(what, criterion), whose, OWN)
    assert len(found) == (choose is not None) and all(choose in problem for problem in found)


# --- obstacles -------------------------------------------------------------------------------------------------------------


def test_evidence_that_the_network_cannot_give_is_refused_if_it_would_be_asked_for():
    network = Network(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Sigmoid(), torch.nn.Linear(5, 3)), (6,))
    both, first = ("0.weight", "2.weight"), ("0.weight",)
    for formula, words in {
        bn_scale: ["criterion=mine: no layer", "choose"],
        obd_sweep: ["criterion=mine: the backward sweep does not pass 1 (Sigmoid): choose criterion=obd_gauss_newton"],
        activation: ["criterion=mine: what 2 puts out", "choose what.skip=[2]"],
    }.items():
        (problem,) = obstacles(ONCE, Criterion(formula), network, both, NAMES)
        assert all(word in problem for word in words)
        assert obstacles(NEVER, Criterion(formula), network, both, NAMES) == []
    assert obstacles(ONCE, Criterion(activation), network, first, NAMES) == []
    assert obstacles(ONCE, Criterion(snip, gradient), network, both, NAMES) == []


# --- min_per_layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minimum", "events", "fine"),
    [
        # 4 and 40 units. A minimum of 3 needs 3 + 3 = 6: 44 x 0.13 = 5.72, nearest 6; 44 x 0.12 = 5.28, nearest 5.
        (3, [(0.5, 0.0), (0.13, 0.0)], True),
        (3, [(0.5, 0.0), (0.12, 0.0)], False),
        # 44 x 0.2 (1 - 0.4) = 5.28: too few in the middle of an exchange.
        (3, [(0.2, 0.0), (0.2, 0.3)], True),
        (3, [(0.2, 0.0), (0.2, 0.4)], False),
        # A layer has no more units than it has: 4 + 10 = 14, 44 x 0.32 = 14.08.
        (10, [(0.32, 0.0)], True),
        (10, [(0.30, 0.0)], False),
        (0, [(0.001, 0.0)], True),
        (99, [], True),
    ],
)
def test_every_event_must_leave_each_layer_its_minimum(minimum, events, fine):
    what = What(weights, globally, min_per_layer=minimum)
    plan = Plan(tuple(PruneEvent(0, density, swap) for density, swap in events), 10)
    problems = min_per_layer(what, plan, {"a": 4, "b": 40})
    assert (problems == []) == fine
    assert all(f"what.min_per_layer={minimum} keeps" in problem for problem in problems)


def test_a_density_that_only_emerges_cannot_fall_short_of_a_minimum():
    what = What(weights, Threshold(), min_per_layer=99)
    assert min_per_layer(what, Plan((PruneEvent(0, 0.01),), 10), {"a": 4, "b": 40}) == []


def test_what_a_scope_with_its_own_density_cannot_keep_is_reported_under_its_name():
    (problem,) = scope(What(weights, NOfM(2, 4)), Plan((PruneEvent(0, 0.1),), 10), {"a": 4}, NAMES)
    assert problem == "what=that: 2 of 4 units is a density of 0.5, not 0.1: choose density=0.5"
    assert scope(What(weights, globally), DYNAMIC, {"a": 4}, NAMES) == []


# --- problems --------------------------------------------------------------------------------------------------------------


def fail(error: Exception):
    raise error


def test_attempt_gives_the_value_where_there_is_no_problem():
    problems = Problems()
    assert problems.attempt(lambda a, b: a + b, 1, 2) == 3
    problems.add([])
    problems.add_incompatible([])
    problems.stop_if_any()


def test_all_problems_are_reported_together_single_values_first():
    problems = Problems()
    problems.add_incompatible(["d together"])
    problems.attempt(fail, Incompatible("e together"))
    problems.attempt(fail, ConfigError(["a alone", "b alone"]))
    problems.attempt(fail, DataError("c is missing"))
    problems.add(["f alone"])
    with pytest.raises(ConfigError) as caught:
        problems.stop_if_any()
    assert type(caught.value) is ConfigError
    assert caught.value.problems == ["a alone", "b alone", "c is missing", "f alone", "d together", "e together"]
    assert str(caught.value).splitlines()[0] == "- a alone"


def test_only_combinations_are_a_cell_that_a_sweep_skips():
    problems = Problems()
    problems.attempt(fail, Incompatible("one", "two"))
    problems.add_incompatible(["three"])
    with pytest.raises(Incompatible) as caught:
        problems.stop_if_any()
    assert caught.value.problems == ["one", "two", "three"]


def test_what_goes_wrong_in_a_users_function_is_a_problem_too():
    problems = Problems()
    problems.attempt(fail, RunError("where, mine.nobody: it gives ()"))
    with pytest.raises(ConfigError, match="mine.nobody"):
        problems.stop_if_any()


def test_one_problem_is_told_without_a_list():
    problems = Problems()
    problems.add(["rounds=0 must be at least 1"])
    with pytest.raises(ConfigError) as caught:
        problems.stop_if_any()
    assert str(caught.value) == "rounds=0 must be at least 1"


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), KeyError("bug")])
def test_anything_else_is_not_the_configurations_fault(error):
    with pytest.raises(type(error)):
        Problems().attempt(fail, error)


def test_late_rewinding_of_batchnorm_that_stays_with_the_clients_is_refused():
    plan, names = Plan((PruneEvent(4, 0.5),), 8), {"rewind": "early"}
    (problem,) = kept_back(("bn.weight",), Early(2), plan, names)
    assert "round 2" in problem
    assert "choose rewind=init" in problem
    assert kept_back((), Early(2), plan, names) == []
    assert kept_back(("bn.weight",), Early(0), plan, names) == []  # the start is known to everybody
    assert kept_back(("bn.weight",), Early(2), Plan((), 8), names) == []
