"""Options from outside the package: one Python file and a yaml each, in a folder of somebody's own, given by --config-dir."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.experiment.build import build
from fedprune.randomness import numpy_stream
from tests.conftest import TINY

MINE = '''
import torch
from torch import nn
from fedprune.data.datasets import Dataset
from fedprune.federated.availability import Fate
from fedprune.federated.client.upload import Upload
from fedprune.federated.loop import FederatedLoop
from fedprune.federated.masks.shared import under
from fedprune.local.regularisers.base import Regulariser
from fedprune.pruning.mask import ones, pack
from fedprune.pruning.rewind import Rewound
from fedprune.pruning.when import Window
from fedprune.types import Plan, PruneEvent, Subnet


def by_place(params):
    """The later an entry stands, the better."""
    return {name: torch.arange(w.numel(), dtype=torch.float64).view(w.shape) for name, w in params.items()}


def in_pairs(scores):
    return scores.reshape(len(scores), -1, 2).mean(2).reshape(len(scores), -1)


def best_of_each(units, density, shapes):
    return {name: better_half(score, density) for name, score in units.items()}


def better_half(score, density):
    return score >= score.flatten().sort(descending=True).values[int(density * score.numel()) - 1]


def later(rounds):
    return Window(1, 2, rounds, gate=always_open)


def always_open(val_accuracy):
    return True


def half_at_one(window, density):
    return Plan((PruneEvent(1, 0.5),), window.rounds)


def the_last(cohort, clients, seed):
    return (clients - 1,)


class WithoutTheFirst:
    """Nobody has the first entry of any layer."""

    def on_server(self, plan, state):
        return ()

    def client_mask(self, state, client):
        mask = {name: alive.clone() for name, alive in state.server.mask.items()}
        for alive in mask.values():
            alive.view(-1)[0] = False
        return pack(mask)

    def merged(self, state, params, summaries, context):
        return under(state.server.mask, state, params, context.fresh)


def to_ones(mask, anchors, draws):
    return Rewound({name: torch.ones_like(tensor) for name, tensor in draws.fresh().items()}, None)


def by_turns(labels, clients, rng):
    return [torch.arange(client, len(labels), clients + 1).numpy() for client in range(clients)]


class Sevens:
    def __init__(self, server):
        self.server = server

    def add(self, subnet, weight):
        pass

    def result(self):
        return {name: torch.full_like(tensor, 7) for name, tensor in self.server.items()}


def all_seven(server):
    return Sevens(server)


def sent(sent, trained):
    return trained


def half_way(sent, arrived):
    return Subnet({name: (sent.params[name] + tensor) / 2 for name, tensor in arrived.params.items()}, arrived.mask)


def halves():
    return Upload(sent, half_way)


class Quarters:
    """Weights begin at a quarter."""

    def prepare(self, net, names):
        for name in names:
            net.get_parameter(name).data.fill_(0.25)

    def client_round(self, worker, start, seed):
        return worker


class Alone:
    """One client a round."""

    def loop(self, **parts):
        return FederatedLoop(**{**parts, "cohort": 1})

    def traffic(self, wire, subnet, each, cohort):
        return each


def a_half(client, seed):
    return 0.5


def only_the_first(seed, work):
    return answers


def answers(client, clock):
    return Fate.ANSWERS if client == 0 else Fate.SILENT


def stays(server, mean, momentum, trained):
    return server, momentum


def total(weights):
    return sum(w.sum() for w in weights.values())


def lighter():
    return Regulariser(total, 2.0)


def narrow(shape, classes, width):
    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], width), nn.ReLU(), nn.Linear(width, classes))
    nn.init.constant_(net[1].bias, 0.5)
    return net


def stripes(root):
    x = torch.arange(80 * 16, dtype=torch.uint8).view(80, 1, 4, 4)
    return Dataset("stripes", x[:60], torch.arange(60) % 2, x[60:], torch.arange(20) % 2, classes=2)
'''

FUNCTION = {
    "when": "later",
    "how_often": "half_at_one",
    "where": "the_last",
    "rewind": "to_ones",
    "partition": "by_turns",
    "federated/aggregate": "all_seven",
    "federated/capacity": "a_half",
    "federated/availability": "only_the_first",
}
"""Groups whose options are called again and again: functions, with `_partial_: true`."""

OBJECT = {
    "whose": "WithoutTheFirst",
    "federated/upload": "halves",
    "federated/client": "Quarters",
    "federated/round": "Alone",
    "local/penalty": "lighter",
    "data": "stripes",
}
"""Groups whose options are objects: classes and functions that return one, without `_partial_`."""

YAML = {
    **{f"{group}/mine": f"_target_: options_from_outside.{name}\n_partial_: true\n" for group, name in FUNCTION.items()},
    **{f"{group}/mine": f"_target_: options_from_outside.{name}\n" for group, name in OBJECT.items()},
    "data/mine": "_target_: options_from_outside.stripes\nroot: nowhere\n",
    "model/mine": "_target_: options_from_outside.narrow\nwidth: 6\n",
    "criterion/mine": "_target_: fedprune.pruning.criterion.Criterion\n"
    "drop: {_target_: options_from_outside.by_place, _partial_: true}\ngrow: null\n",
    "what/mine": "_target_: fedprune.pruning.what.What\nunit: {_target_: options_from_outside.in_pairs, _partial_: true}\n"
    "scope: {_target_: options_from_outside.best_of_each, _partial_: true}\n",
    "experiment/mine": "# @package _global_\n# Mine.\ndefaults:\n  - override /criterion: mine\n"
    "  - override /how_often: one_shot\n  - override /when: before_training\nname: mine\ndensity: 0.25\n",
    **{f"{group}/uncalled": f"_target_: options_from_outside.{name}\n_partial_: true\n" for group, name in OBJECT.items()},
    **{f"{group}/called": f"_target_: options_from_outside.{name}\n" for group, name in FUNCTION.items()},
    "where/strange": "_target_: options_from_outside.always_open\n_partial_: true\n",
    "whose/strange": "_target_: options_from_outside.Quarters\n",
    "criterion/called": "_target_: fedprune.pruning.criterion.Criterion\n"
    "drop: {_target_: options_from_outside.by_place}\ngrow: null\n",
}

ONCE = ("how_often=one_shot", "when=before_training", "density=0.5")


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file and the yamls, which is where Python looks for modules."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "options_from_outside.py").write_text(MINE)
    for name, text in YAML.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def run(outside: Path, compose, play) -> Callable[..., Any]:
    """run(*overrides) -> (the experiment, the state after each of two rounds with its metrics)."""

    def two_rounds(*overrides: str):
        given = (*TINY, "rounds=2", "density=0.5", *overrides, f"hydra.searchpath=[file://{outside / 'conf'}]")
        experiment = build(*compose(*given))
        return experiment, play(experiment)

    return two_rounds


def test_a_criterion_keeps_what_it_scores_highest(run):
    _, ((state, _), _) = run("criterion=mine", *ONCE, "what=weights_uniform")
    for alive in state.server.mask.values():
        assert alive.flatten().tolist() == [place >= alive.numel() / 2 for place in range(alive.numel())]


def test_a_method_is_an_experiment(run):
    experiment, ((state, _), _) = run("+experiment=mine", "density=0.25", "what=weights_per_layer")
    assert experiment.config.name == "mine"
    assert all(not alive.flatten()[0] and alive.flatten()[-1] for alive in state.server.mask.values())


def test_what_is_of_units_and_a_scope(run):
    experiment, ((state, _), _) = run("what=mine", "criterion=magnitude", *ONCE, "model=mine")
    assert not experiment.axes.what.kind.single and not experiment.axes.what.pool.own_density
    for alive in state.server.mask.values():
        pairs = alive.view(-1, 2)
        assert torch.equal(pairs[:, 0], pairs[:, 1]) and int(pairs[:, 0].sum()) == len(pairs) // 2


def test_when_says_in_which_rounds_and_behind_which_gate(run):
    experiment, ((before, _), (_, metrics)) = run("when=mine", "how_often=one_shot")
    assert [event.round for event in experiment.plan.events] == [1]
    assert before.opened and metrics["prune/events"] == 1 and metrics["density/weights"] == pytest.approx(0.5, abs=1e-4)
    assert str(experiment.plan.gate.opens) == "always_open"


def test_how_often_is_a_plan(run):
    _, rows = run("how_often=mine")
    assert [metrics["density/weights"] for _, metrics in rows] == [1.0, pytest.approx(0.5, abs=1e-4)]


def test_where_the_last_client_measures(run):
    seed = next(seed for seed in range(99) if numpy_stream(seed, "where").integers(4) == 3)
    words = (*ONCE, "criterion=snip", f"seed={seed}")
    masks = [run(*words, f"where={where}")[1][0][0].server.mask for where in ("mine", "one_client", "all_clients")]
    same = [all(torch.equal(alive, other[name]) for name, alive in masks[0].items()) for other in masks[1:]]
    assert same == [True, False]


def test_whose_mask_leaves_out_the_first_entry_of_each_layer(run):
    _, (_, (state, metrics)) = run("whose=mine")
    for name in state.server.mask:
        changed = (state.server.params[name] != state.init[name]).flatten()
        assert not changed[0] and changed.any()
    assert metrics["density/weights"] < 1


def test_a_rewind_goes_where_it_likes(run):
    _, ((state, _), _) = run("rewind=mine", *ONCE)
    assert all(torch.equal(state.ticket[name], alive.float()) for name, alive in state.server.mask.items())


def test_a_partition_deals_by_turns(run):
    experiment, _ = run("partition=mine", "data=mine", "model=mine")
    sizes = [
        len(experiment.clients.train[c]) + len(experiment.clients.val[c]) + len(experiment.clients.test[c]) for c in range(4)
    ]
    assert sizes == [12, 12, 12, 12]


def test_an_aggregate_is_what_the_server_takes(run):
    _, (_, (state, _)) = run("federated/aggregate=mine")
    assert all((tensor == 7).all() for tensor in state.server.params.values())


def test_an_upload_is_undone_where_it_arrives(run):
    one = ("federated.clients=1", "federated.cohort=1")
    (_, ((half, _), _)), (_, ((whole, _), _)) = run("federated/upload=mine", *one), run(*one)
    for name, tensor in half.server.params.items():
        assert torch.equal(tensor, (half.init[name] + whole.server.params[name]) / 2)


def test_a_client_begins_where_it_says(run):
    _, ((state, _), _) = run("federated/client=mine")
    assert all((state.init[name] == 0.25).all() for name in state.server.mask)


def test_a_round_may_be_of_one_client(run):
    _, rows = run("federated/round=mine")
    assert [metrics["train/steps"] for _, metrics in rows] == [3, 3]


def test_a_capacity_is_that_of_every_client(run):
    _, ((_, metrics), _) = run("federated/capacity=mine", "whose=nested")
    assert 0.2 < metrics["density/weights"] < 0.5


def test_availability_says_who_answers(run):
    _, rows = run("federated/availability=mine", "federated.cohort=4")
    assert [metrics["clients/silent"] for _, metrics in rows] == [3, 3]


def test_a_penalty_is_added_to_the_loss(run):
    step = (
        "federated.clients=1",
        "federated.cohort=1",
        "local.steps=1",
        "local.optimizer.lr=0.1",
        "local.optimizer.momentum=0",
    )
    (_, ((lighter, _), _)), (_, ((plain, _), _)) = run("local/penalty=mine", *step), run(*step)
    for name in plain.server.mask:  # the term 2 (w_1 + w_2 + ...) has the gradient 2 everywhere, and -0.1 x 2 is the step
        moved = lighter.server.params[name] - plain.server.params[name]
        assert torch.allclose(moved, torch.tensor(-0.2), atol=1e-6)


def test_a_model_and_a_data_set(run):
    experiment, (_, (state, metrics)) = run("model=mine", "data=mine", "partition=iid")
    assert state.init["1.bias"].tolist() == [0.5] * 6 and state.init["1.weight"].shape == (6, 16)
    assert experiment.dataset.name == "stripes" and len(experiment.dataset.y) == 60 and "test/accuracy" in metrics


def test_a_step_of_the_server(run):
    _, (_, (state, _)) = run("federated.server._target_=options_from_outside.stays", "+federated.server._partial_=true")
    assert all(torch.equal(tensor, state.init[name]) for name, tensor in state.server.params.items())


@pytest.mark.parametrize("group", FUNCTION)
def test_a_function_that_was_called_too_early_is_an_error_and_typing_what_it_says_works(group, run):
    besides = {"when": ["how_often=one_shot"], "federated/capacity": ["whose=nested"]}.get(group, [])
    with pytest.raises(ConfigError) as error:
        run(f"{group}=called", *besides)
    (typed,) = re.findall(r"type (\S+_partial_=true)", str(error.value))
    experiment, _ = run(f"{group}=called", *besides, typed)
    assert experiment.config.rounds == 2


@pytest.mark.parametrize("group", OBJECT)
def test_an_object_that_was_not_made_is_an_error_and_typing_what_it_says_works(group, run):
    root = ["+data.root=nowhere", "model=mine"] * (group == "data")
    with pytest.raises(ConfigError) as error:
        run(f"{group}=uncalled", *root)
    (typed,) = re.findall(r"type (\S+_partial_=false)", str(error.value))
    experiment, _ = run(f"{group}=uncalled", *root, typed)
    assert experiment.config.rounds == 2


def test_a_formula_that_was_called_too_early_is_an_error_and_typing_what_it_says_works(run):
    with pytest.raises(ConfigError, match=r"by_place\(\) missing 1 required") as error:
        run("criterion=called", *ONCE)
    (typed,) = re.findall(r"type (\S+_partial_=true)", str(error.value))
    assert typed == "+criterion.drop._partial_=true"
    experiment, _ = run("criterion=called", *ONCE, typed)
    assert experiment.plan.events


def test_a_function_of_other_arguments_is_told_of_its_own(run):
    with pytest.raises(ConfigError, match=re.escape("where is called with (cohort, clients, seed)")):
        run("where=strange")


def test_an_object_without_a_method_is_told_which(run):
    with pytest.raises(ConfigError, match=re.escape("has no merged, on_server: see fedprune.federated.masks.whose.Whose")):
        run("whose=strange")


def test_the_example_of_the_docs_runs(compose, play, tmp_path, monkeypatch):
    """The file and the yaml of docs/architecture.md, typed as they stand there."""
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text().partition("## From outside the package")[2]
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", page, re.S):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    ((folder, words),) = re.findall(r"--config-dir (\S+) (.*)", page)
    given = (*TINY, "rounds=2", "federated.cohort=4", *words.split(), f"hydra.searchpath=[file://{tmp_path / folder}]")
    experiment = build(*compose(*given))
    assert experiment.options.where((1, 3), 4, 0) == (0, 2) and experiment.options.where.examples == 32
    assert [metrics["prune/events"] for _, metrics in play(experiment)] == [1, 1]


def test_the_command_finds_them_beside_the_working_directory(command, outside, folder):
    words = (
        "criterion=mine",
        "where=mine",
        "whose=mine",
        "federated/aggregate=mine",
        "data=mine",
        "model=mine",
        "partition=iid",
    )
    result = command(*TINY, "rounds=2", "--config-dir", str(outside / "conf"), *words)
    assert result.rc == 0, result.text
    assert json.loads((folder() / "run.json").read_text())["axes"]["whose"] == "mine"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (
            "federated.client=10",
            "federated.client=10: federated/client is a group of options: did you mean federated.clients=10?",
        ),
        ("federated.upload=3", "federated.upload=3: federated/upload is a group of options: `python -m fedprune --help`"),
    ],
)
def test_a_plain_value_in_the_place_of_an_option_is_refused_with_what_is_meant(typed, says, tiny):
    with pytest.raises(ConfigError) as error:
        tiny(typed)
    assert says in str(error.value)


def test_an_aggregate_that_is_a_function_of_the_updates_is_shown_what_an_aggregate_is(tiny):
    for partial in ("false", "true"):
        with pytest.raises(ConfigError) as error:
            tiny(
                "federated/aggregate=intersection",
                "federated.aggregate._target_=operator.add",
                f"federated.aggregate._partial_={partial}",
            )
        assert "federated.aggregate is called with (server)" in str(error.value)
        assert "see fedprune.federated.server.accumulator.Aggregate" in str(error.value)
        assert "_partial_" not in str(error.value)
