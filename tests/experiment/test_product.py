"""Each four answers of what x criterion x when x how_often x where x whose x rewind are built, or refused with what to choose
instead.

And a sample, in which the answers meet in as many pairs as they can, is run, with the invariants of masks checked every round.
"""

from __future__ import annotations

import functools
import itertools
import operator
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from fedprune.config import CONF
from fedprune.config.instantiate import make
from fedprune.errors import Incompatible
from fedprune.experiment import build as builder
from fedprune.experiment import ground, options, training
from fedprune.experiment.experiment import Experiment
from fedprune.pruning.criterion import Adjusted
from fedprune.pruning.evidence import FROM_DATA, OBSTACLES, needs
from fedprune.pruning.mask import apply, count, ones, shrink, size
from fedprune.pruning.what import What
from fedprune.pruning.what.fixed_density import Like, NOfM
from fedprune.pruning.what.scope import erk, globally, layer_density
from fedprune.pruning.what.top_k import nearest
from fedprune.pruning.what.unit import weights
from fedprune.storage.checkpoint import save_ticket
from fedprune.types import Mask, Personal, PruneEvent, State
from helpers.covering import fewer

pytestmark = pytest.mark.slow

AXES = ("what", "criterion", "when", "how_often", "where", "whose", "rewind")
OPTIONS = {axis: sorted(path.stem for path in (CONF / axis).glob("*.yaml")) for axis in AXES}
Cell = tuple[str, ...]

TINY = (
    *("rounds=6", "density=0.5", "model=cnn_fedavg", "federated.clients=4", "federated.cohort=2", "partition=iid"),
    *("local.epochs=null", "local.steps=1", "local.batch_size=8", "eval_every=100", "executor=serial", "logger=none"),
)
TWEAKS = {
    ("how_often", "gradual"): {"every": 2},
    ("how_often", "dynamic"): {"every": 1},
    ("how_often", "progressive"): {"every": 1, "blocks": 2},
    ("how_often", "iterative"): {"rate": 0.3},
    ("how_often", "stepwise"): {"rate": 0.3},
    ("when", "once_accurate"): {"accuracy": 0.0},
    ("when", "once_moving"): {"accuracy": 0.0, "shift": 0.0},
    ("when", "once_settled"): {"shift": 1.0},
    ("rewind", "early"): {"round": 1},
    ("criterion", "fedtiny"): {"candidates": 2, "adapt": False},
}
"""So that a run of a few rounds sees several events, gates let all of them through, and no BatchNorm is needed."""

GATES = ("once_accurate", "once_moving", "once_settled")
EXCHANGES = ("dynamic", "progressive")
VOTES = ("voted", "voted_densities")
PROPOSE = (*VOTES, "personal")
"""Where clients carry out events themselves."""

TIERS = {"_target_": "fedprune.federated.masks.capacity.Tiers", "levels": [1.0, 0.5], "shares": None}
"""What clients can carry where networks are nested: of the four, some all and some half of it."""

SAMPLES = 52

CRITERIA = ("magnitude", "random", "rigl", "set", "snip", "synflow")
"""Those with which all pairs of answers are sampled; of the others one cell each is run."""

ELSEWHERE = {
    **{"bn_scale": "needs normalisation layers", "obd_exact": "needs a small network"},
    **{"hard_concrete": "needs local/penalty=l0", "signal_to_noise": "needs local/dropout=variational"},
}
"""Criteria that do not go with the network of these tests."""

FROM_START = ("large_final_same_sign", "magnitude_increase")
"""Criteria that compare with the weights at the start."""

CROSSED = (*CRITERIA, "activation", "bn_scale", "large_final_same_sign", "prunefl")
"""One criterion of every kind, which meets every answer; the others meet all of `what` and `where`."""

GATED = ("weights_global", "weights_threshold", "weights_2of4", "filters_per_layer")
"""One `what` of every kind, which meets the gates."""

REWINDS = ("none", "init", "early")
"""Those that meet every answer; the others, which differ from `init` in the values alone, all of `when` and `how_often`."""


UNSHARED = ("weights_global", "weights_erk", "weights_2of4", "weights_threshold", "filters_per_layer", "neurons_per_layer")
"""One `what` of every kind, which meets all of `whose`, in the company of one criterion of every kind."""

VARIANTS = (
    "channels_per_layer",
    "filters_and_weights",
    "filters_global",
    "kernels_global",
    "neurons_global",
    "weights_4of8",
    "weights_uniform",
)
"""Those which differ from another `what` in a detail, and meet a few criteria only."""


def crossed(cell: Cell) -> bool:
    """Whether a cell is in the table."""
    what, criterion, when, how_often, where, whose, rewind = cell
    usual = what == "weights_global" or (criterion == "rigl" and rewind == "none") or (rewind == "none" and whose == "shared")
    if whose != "shared":
        kinds = ("magnitude", "rigl", "prunefl", "large_final_same_sign") if where == "cohort" else ("rigl",)
        return what in UNSHARED and criterion in kinds and where in ("cohort", "server") and rewind in REWINDS and usual
    if when == "once_moving":
        return (what, criterion, where, rewind) == ("weights_global", "magnitude", "cohort", "none")
    if how_often == "progressive" and (criterion not in ("rigl", "prunefl", "magnitude") or rewind not in ("none", "init")):
        return False
    if rewind not in REWINDS:
        return what == "weights_global" and criterion in ("rigl", *FROM_START) and where == "cohort"
    if when in GATES or how_often == "stepwise":
        return what in GATED and criterion in ("magnitude", "rigl", "snip", "large_final_same_sign")
    if what in VARIANTS or criterion == "prunefl":
        return criterion in ("magnitude", "rigl", "activation", "prunefl") and what in (*VARIANTS, *UNSHARED) and usual
    if criterion in ("bn_scale", "random", "set", "synflow") and where in ("all_clients", "one_client"):
        return False  # where they are asked makes no difference to them
    return criterion in CROSSED or (when, how_often, whose, rewind) == ("during_training", "one_shot", "shared", "none")


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    """A third of the table: each four answers which meet in it meet in one of these, and no rule is about more."""
    return fewer([cell for cell in itertools.product(*OPTIONS.values()) if crossed(cell)], 4)


class Plain(dict):
    """A configuration that is read without ceremony: OmegaConf takes most of the time that a cell takes."""

    __getattr__ = dict.__getitem__


@pytest.fixture(scope="module")
def parts(compose, assemble, tmp_path_factory) -> dict[tuple[str, ...], DictConfig]:
    """Each option's own configuration, composed once."""
    found = {}
    path = half_a_ticket(compose, tmp_path_factory.mktemp("ticket"))
    for axis, choices in OPTIONS.items():
        for option in choices:
            node = assemble(f"{axis}={option}")[0][axis]
            with open_dict(node):
                node.merge_with(TWEAKS.get((axis, option), {}))
            if option == "weights_like":
                node.scope.ticket = str(path)
            found[axis, option] = node
    for moving in ("once_moving", "once_settled"):
        found["whose", "personal", moving] = OmegaConf.merge(found["whose", "personal"], {"at": "end"})
    return found


def nodes(parts: dict[tuple[str, ...], DictConfig], cell: Cell) -> dict[str, DictConfig]:
    """The configuration of each axis. Whether a client's mask moves can only be told at the end of its round."""
    is_ = dict(zip(AXES, cell, strict=True))
    found = {axis: parts[axis, option] for axis, option in is_.items()}
    return found | {"whose": parts.get(("whose", is_["whose"], is_["when"]), found["whose"])}


def half_a_ticket(compose, folder: Path) -> Path:
    """A ticket for the network of these tests, in which exactly half of the weights live, each with even chances."""
    net = builder.build(*compose(*TINY)).net
    what = What(weights, globally).bind(net)
    scores = {name: torch.rand(net.state_dict()[name].shape) for name in what.names}
    params = dict(net.state_dict())
    save_ticket(params, shrink(ones(params, what.names), scores, 0.5, what), {}, folder / "ticket.safetensors")
    return folder / "ticket.safetensors"


@pytest.fixture(scope="module")
def outcomes(cells, parts, compose) -> dict[Cell, Experiment | Incompatible]:
    """What the real `build` makes of every cell. What does not depend on the axes is made once."""
    config, names = compose(*TINY)
    whole = builder.build(config, names)
    local = training._module_maker(SimpleNamespace(config=config))  # type: ignore[arg-type]  # reads nothing else
    plain = Plain({**config, "federated": Plain(OmegaConf.to_container(config.federated))})
    found: dict[Cell, Experiment | Incompatible] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "OmegaConf", SimpleNamespace(select=select))
        patch.setattr(options, "make_option", by_node(options.make_option))
        for module, name in ((options, "make"), (ground, "make"), (ground, "federate"), (ground, "Network")):
            patch.setattr(module, name, once(getattr(module, name)))
        patch.setattr(What, "bind", once(What.bind))
        patch.setattr(What, "units", once(What.units))
        for evidence, obstacle in OBSTACLES.items():
            patch.setitem(OBSTACLES, evidence, once(obstacle))
        for name in ("smallest", "task", "masked"):
            patch.setattr(builder.checks, name, once(getattr(builder.checks, name)))
        patch.setattr(builder, "rehearse_evidence", by_answers(builder.rehearse_evidence))
        of_the_ground = {"_network": whole.net, "_traced": whole.axes.what.order, "_recipe": whole.recipe, "chosen": "cpu"}
        of_training = {"_module_maker": local, "_checked_module": local(whole.net)}
        of_the_build = {"try_first_step": None, "count_flops": whole.flops}
        for module, same in ((ground, of_the_ground), (training, of_training), (builder, of_the_build)):
            for name, answer in same.items():
                patch.setattr(module, name, lambda *_, answer=answer: answer)
        for cell in cells:
            chosen = dict(zip(AXES, cell, strict=True))
            unequal = {"federated": Plain(plain["federated"] | {"capacity": TIERS})} if chosen["whose"] == "nested" else {}
            try:
                found[cell] = builder.build(Plain(plain | unequal | nodes(parts, cell)), names | chosen)
            except Incompatible as error:
                found[cell] = error
    return found


def select(config: Any, key: str) -> Any:
    """The node that a key with dots names."""
    return functools.reduce(operator.getitem, key.split("."), config)


def by_node(make_option: Callable) -> Callable:
    """The object of an option, made once for each node. The nodes are those of `parts` and `compose`, which live on."""
    answers: dict[tuple[str, int], Any] = {}

    def ask(config: Any, group: Any) -> Any:
        key = (group.key, id(select(config, group.key)))
        if key not in answers:
            answers[key] = make_option(config, group)
        return answers[key]

    return ask


def by_answers(rehearse: Callable) -> Callable:
    """The rehearsal of evidence, done once for each criterion on each `what`, by plans that prune and others."""
    answers: dict[tuple, Any] = {}

    def ask(chosen: ground.Chosen, laid: ground.Ground, trained: training.Training) -> Any:
        key = (bool(laid.plan.events), *(chosen.names[axis] for axis in ("what", "criterion", "where", "whose")))
        if key not in answers:
            answers[key] = rehearse(chosen, laid, trained)
        return answers[key]

    return ask


def once(function: Callable) -> Callable:
    """The function, asked only once for the same arguments: one object, or equal plain values (state dicts are the net's)."""
    answers: dict[tuple, Any] = {}
    alive: list[object] = []  # so that no id is given to another object

    def ask(*arguments: object) -> Any:
        plain = (str(a) if isinstance(a, int | str | tuple) or type(a) is dict else id(a) for a in arguments if not _tensors(a))
        key = tuple(plain)
        if key not in answers:
            alive.append(arguments)
            answers[key] = function(*arguments)
        return answers[key]

    return ask


def _tensors(argument: object) -> bool:
    return isinstance(argument, dict) and "_target_" not in argument


def test_every_cell_is_built_or_refused_with_what_to_choose_instead(outcomes, cells):
    assert set(outcomes) == set(cells)
    refused = {cell: error for cell, error in outcomes.items() if isinstance(error, Incompatible)}
    assert 0 < len(refused) < 0.6 * len(cells)
    for cell, error in refused.items():
        assert error.problems and all("choose" in problem for problem in error.problems), (cell, error)


def test_every_option_is_built_somewhere(outcomes):
    built = [cell for cell, outcome in outcomes.items() if isinstance(outcome, Experiment)]
    for place, axis in enumerate(AXES):
        assert {cell[place] for cell in built} | ELSEWHERE.keys() >= set(OPTIONS[axis])


def test_whether_a_cell_is_built_follows_from_the_rules_that_the_messages_state(outcomes, parts):
    single = {option for option in OPTIONS["what"] if option.startswith("weights")}
    own_density = {"weights_2of4", "weights_4of8", "weights_threshold", "weights_like"}
    blockwise = {"weights_erk", "weights_per_layer", "weights_uniform", "filters_per_layer", "filters_and_weights"}
    partial = {o for o in OPTIONS["what"] if parts["what", o].skip or not {"conv", "linear"} <= {*parts["what", o].layers}}
    criteria = {option: make(parts["criterion", option]) for option in OPTIONS["criterion"]}
    grows = {option for option, criterion in criteria.items() if criterion.grow}
    on_data = {o for o, c in criteria.items() if FROM_DATA.keys() & {*needs(c.drop), *(needs(c.grow) if c.grow else ())}}
    assert {"rigl", "set"} <= grows and {"snip", "rigl"} <= on_data and not {"synflow", "magnitude"} & on_data
    for cell, outcome in outcomes.items():
        is_ = dict(zip(AXES, cell, strict=True))
        exchanges = is_["how_often"] in EXCHANGES and is_["when"] == "during_training"
        needs_window = is_["how_often"] in ("gradual", *EXCHANGES)
        gated = is_["when"] in GATES
        drops = is_["how_often"] != "never"
        refusals = [
            needs_window and is_["when"] in ("before_training", "after_training"),
            is_["how_often"] in EXCHANGES and gated,
            is_["how_often"] == "stepwise" and not gated,
            exchanges and is_["criterion"] not in grows,
            exchanges and is_["rewind"] != "none" and is_["whose"] not in VOTES,
            drops and is_["criterion"] in on_data and is_["where"] == "server",  # no proxy set by default
            drops and is_["rewind"] == "early" and is_["when"] == "before_training",
            drops and is_["rewind"] == "early" and is_["how_often"] in EXCHANGES,  # the first event is before round 0
            drops and is_["what"] in ("weights_2of4", "weights_4of8") and is_["how_often"] != "one_shot",
            exchanges and is_["what"] == "weights_threshold",
            drops and is_["criterion"] in ELSEWHERE,
            drops and is_["criterion"] == "bn_scale_or_magnitude" and not is_["what"].startswith("neurons"),  # no normalisation
            drops
            and is_["criterion"] in ("activation", "apoz")
            and is_["what"] in (*single, "filters_and_weights"),  # the output layer
            drops and is_["criterion"] in FROM_START and (is_["when"] == "before_training" or is_["how_often"] in EXCHANGES),
            is_["criterion"] in FROM_START
            and is_["rewind"] not in ("none", "init", "early", "learning_rate")
            and is_["how_often"] in ("iterative", "gradual", "stepwise"),  # several events, and the first replaced the start
            exchanges and is_["how_often"] == "progressive" and is_["what"] not in blockwise,  # layers that do not compete
            exchanges and is_["criterion"] == "prunefl" and (is_["what"] not in single or is_["how_often"] == "progressive"),
            drops and is_["criterion"] == "prunefl" and is_["where"] == "server",  # which trains nothing
            drops and is_["criterion"] == "fedtiny" and (is_["where"] == "server" or is_["what"] in own_density),  # candidates
            drops and is_["whose"] == "voted_densities" and (is_["what"] not in single or is_["what"] in own_density),
            drops and is_["whose"] in PROPOSE and is_["criterion"] in on_data and is_["where"] != "cohort",
            drops and is_["whose"] in PROPOSE and is_["criterion"] == "prunefl",  # what clients add up is for the server
            drops and is_["whose"] == "personal" and is_["rewind"] in ("early", "learning_rate"),
            drops and is_["when"] == "once_moving" and is_["whose"] != "personal",
            drops and is_["whose"] == "nested" and is_["criterion"] in on_data,  # not everybody has the whole network
            is_["whose"] == "nested" and is_["what"] in partial,  # layers are cut, and all of them
        ]
        assert isinstance(outcome, Incompatible) == any(refusals), (cell, outcome)


def test_a_plan_ends_at_the_density_and_in_order(outcomes):
    for cell, outcome in outcomes.items():
        if isinstance(outcome, Incompatible) or not outcome.plan.events:
            continue
        events, plan = outcome.plan.events, outcome.plan
        assert events[-1].density == 0.5, cell
        assert [event.round for event in events] == sorted(event.round for event in events), cell
        assert [event.density for event in events] == sorted((event.density for event in events), reverse=True), cell
        assert events[-1].round < plan.rounds, cell  # what is left trains at least once


# --- a sample, run ---------------------------------------------------------------------------------------------------------


def pairs(cell: Cell) -> Iterator[tuple]:
    """Each two answers of a cell."""
    return itertools.combinations(enumerate(cell), 2)


OTHERS = [criterion for criterion in OPTIONS["criterion"] if criterion not in (*CRITERIA, *ELSEWHERE)]
OTHER_REWINDS = [rewind for rewind in OPTIONS["rewind"] if rewind not in REWINDS]


def spread(cells: list[Cell], number: int) -> list[Cell]:
    """A few cells in which as many pairs of answers meet as in so few they can: greedily, the same ones every time."""
    shuffled = random.Random(0).sample(cells, len(cells))
    chosen, met = [], set()
    for _ in range(number):
        best = max(shuffled[:1500], key=lambda cell: sum(pair not in met for pair in pairs(cell)))
        chosen.append(best)
        met |= set(pairs(best))
        shuffled.remove(best)
    return chosen


@pytest.fixture(scope="module")
def sample(outcomes) -> list[Cell]:
    built = [cell for cell, outcome in outcomes.items() if isinstance(outcome, Experiment)]
    others = [cell for cell in random.Random(0).sample(built, len(built)) if outcomes[cell].plan.events]
    return [
        *spread([cell for cell in built if cell[1] in CRITERIA and cell[-1] in REWINDS], SAMPLES),
        *(next(cell for cell in others if cell[1] == criterion) for criterion in OTHERS),
        *(next(cell for cell in others if cell[-1] == rewind) for rewind in OTHER_REWINDS),
    ]


@pytest.fixture(scope="module")
def assembled(parts, compose) -> Callable[[Cell], Experiment]:
    """The cell's experiment, with nothing left out."""
    config, names = compose(*TINY)

    def assemble(cell: Cell) -> Experiment:
        whole, chosen = config.copy(), dict(zip(AXES, cell, strict=True))
        for axis, node in nodes(parts, cell).items():
            whole[axis] = node
        if chosen["whose"] == "nested":
            whole.federated.capacity = TIERS
        whole.rounds = 2 if chosen["when"] == "after_training" else config.rounds
        return builder.build(whole, names | chosen)

    return assemble


def test_the_sample_has_every_option_and_most_pairs(sample, outcomes, cells):
    answers = {answer for cell in cells for answer in enumerate(cell)} - {(1, criterion) for criterion in ELSEWHERE}
    assert {answer for cell in sample for answer in enumerate(cell)} == answers
    built = [cell for cell, outcome in outcomes.items() if isinstance(outcome, Experiment)]
    possible = {pair for cell in built if cell[1] in CRITERIA and cell[-1] in REWINDS for pair in pairs(cell)}
    assert len({pair for cell in sample for pair in pairs(cell)}) > 0.75 * len(possible)


@pytest.mark.parametrize("number", range(SAMPLES + len(OTHERS) + len(OTHER_REWINDS)))
def test_a_cell_runs_and_its_masks_keep_their_word_in_every_round(number, sample, assembled, differences):
    cell = sample[number]
    experiment = assembled(cell)
    loop = experiment.loop(experiment.executor())
    before = loop.start()
    whole, own = cell[AXES.index("whose")] in ("shared", *VOTES), cell[AXES.index("whose")] == "personal"
    while before.round < experiment.plan.rounds:
        after, metrics = loop.round(before)
        due = experiment.plan.events[before.events : after.events]
        (check_clients if own else check_round)(cell, experiment, before, after, due)
        voted = cell[AXES.index("whose")] in VOTES  # at the end of the round
        sent = before.server.mask if voted and before.round else after.server.mask
        assert not whole or metrics["density/weights"] == count(sent) / size(sent)
        assert metrics["prune/events"] == (before.events if voted and before.round else after.events)
        if after.round == experiment.plan.rounds:
            again, _ = loop.round(before)
            assert differences(again, after) == []
        before = after
    assert 0 <= metrics["test/accuracy"] <= 1
    assert own or before.events == len(experiment.plan.events)
    assert not own or not experiment.plan.events or before.personal


def check_clients(cell: Cell, experiment: Experiment, before: State, after: State, due: tuple[PruneEvent, ...]) -> None:
    """Of each client's own mask (b) and (c), and that only those who trained have another; the server's network is whole."""
    assert not due and count(after.server.mask) == size(after.server.mask), cell
    assert all(torch.isfinite(tensor).all() for tensor in after.server.params.values()), cell
    held = {client: unpacked(bytes(one.mask), before.server.mask) for client, one in before.personal.items()}
    changed = {client: one for client, one in after.personal.items() if one is not before.personal.get(client)}
    assert len(changed) <= experiment.config.federated.cohort and before.personal.keys() <= after.personal.keys(), cell
    for client, one in changed.items():
        mask, done = unpacked(bytes(one.mask), before.server.mask), before.personal.get(client, Personal(b"")).events
        events = experiment.plan.events[done : one.events]
        assert events and all(event.round <= before.round for event in events) and one.pruned == before.round, cell
        assert exact(cell, experiment, mask, events[-1]), cell
        assert within(mask, held.get(client, before.server.mask)) or any(event.swap for event in events), cell


def unpacked(bits: bytes, like: Mask) -> Mask:
    """A mask of these shapes from its bits, in the order of the names: written out here without the project's own reading."""
    flat = torch.from_numpy(np.unpackbits(np.frombuffer(bits, np.uint8)).astype(bool))
    sizes = [alive.numel() for alive in like.values()]
    return {name: part.view(like[name].shape) for name, part in zip(like, flat[: sum(sizes)].split(sizes), strict=True)}


def check_round(cell: Cell, experiment: Experiment, before: State, after: State, due: tuple[PruneEvent, ...]) -> None:
    """(a) nothing dead has a value, not even -0.0; (b) counts are exact; (c) masks nest unless units are exchanged; (d) what is
    rewound is what was saved."""
    params, mask = after.server.params, after.server.mask
    assert all(torch.isfinite(tensor).all() for tensor in params.values()), cell
    for name, alive in mask.items():
        assert not params[name][~alive].view(torch.int32).any(), (cell, name)
        assert not after.ticket[name][~alive].view(torch.int32).any(), (cell, name)
    if not due:
        assert same(mask, before.server.mask), cell
        return
    assert exact(cell, experiment, mask, due[-1]), cell
    assert within(mask, before.server.mask) or any(event.swap for event in due), cell
    rewind = cell[AXES.index("rewind")]
    if rewind in ("init", "early"):
        saved = after.init if rewind == "init" else after.anchors[1]
        assert all(torch.equal(after.ticket[name], tensor) for name, tensor in apply(saved, mask).items()), cell
    if rewind != "none":
        trained = cell[AXES.index("whose")] not in VOTES or due[-1].round == 0  # since, in the same round
        assert after.clock == (rewind == "early") + trained, cell


def within(mask: Mask, other: Mask) -> bool:
    return all(not (alive & ~other[name]).any() for name, alive in mask.items())


def same(mask: Mask, other: Mask) -> bool:
    return all(torch.equal(alive, other[name]) for name, alive in mask.items())


def exact(cell: Cell, experiment: Experiment, mask: Mask, event: PruneEvent) -> bool:
    """Whether the number of living units is the nearest to the density, of all or of each layer's; or the scope's own."""
    what, density = experiment.axes.what, event.density
    alive, units = what.alive_units(mask)
    if isinstance(experiment.axes.criterion, Adjusted) and event.swap:
        return 0 < alive <= nearest(density * units)
    if cell[AXES.index("whose")] == "voted_densities" and event.round:  # layers have the clients' densities
        return alive == nearest(density * units)
    scope = getattr(what.scope, "func", what.scope)
    if scope in (globally, erk):
        return alive == nearest(density * units)
    if isinstance(what.scope, NOfM | Like):
        return alive * 2 == units or density != 0.5  # a ticket is followed by layer on the way; where it ends is exact
    if what.emerges:
        return True
    rates = getattr(what.scope, "keywords", {}).get("rates", {})
    by_layer = dict.fromkeys(mask, 1.0) | {list(mask)[-1]: rates.get("last", 1.0)}
    totals = what.units(experiment.net.state_dict())
    return all(
        int((what.unit(mask[name].float()) > 0).sum()) == nearest(layer_density(density, rate, 0.2) * totals[name])
        for name, rate in by_layer.items()
    )
