"""Penalties and dropout in whole runs: with any criterion and schedule the dead stay dead; what is learnt beside the weights is
trained, merged, sent, rewound and resumed like them; evidence, evaluation and tickets are of the network that is in use."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from fedprune.config import CONF
from fedprune.config.instantiate import make
from fedprune.errors import ConfigError, Incompatible
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.where import measuring
from fedprune.local.regularisers.base import PIECES, Regulariser, none, regularised
from fedprune.local.regularisers.penalty import l0, l1, penalty
from fedprune.pruning.evidence.gates import fold, is_companion, plain
from fedprune.pruning.mask import count, ones, size
from fedprune.run_id import folder_hash
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.ticket import load_ticket
from fedprune.ticket.__main__ import main
from fedprune.ticket.export import load_network
from fedprune.types import Subnet

BATCHNORM = ("model=resnet20", "model.norm=batch", "local.steps=1", "rounds=2")
GATES = ("local/penalty=l0", "local/optimizer=adam", "local.optimizer.lr=0.01")
NOISE = ("local/dropout=variational", "local/optimizer=adam", "local.optimizer.lr=0.01")
ONE_SHOT = ("how_often=one_shot",)
GRADUAL = ("how_often=gradual", "rounds=4", "when.stop=1")
LATER = ("when.start=0.4",)  # so that there is something to be read
EXCHANGE = ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "rounds=4", "when.stop=1")
TICKET = ("when=after_training", "how_often=iterative", "how_often.rate=0.5", "rewind=init", "rounds=2")

CELLS = [
    ("local/penalty=l1", *GRADUAL),
    ("local/penalty=l2", "criterion=snip", *ONE_SHOT),
    ("local/penalty=group_lasso", "what=neurons_per_layer", "criterion=filter_norm", "what.skip=[last]", *GRADUAL),
    ("local/penalty=bn_l1", "what=filters_global", "criterion=bn_scale", *ONE_SHOT, *BATCHNORM),
    ("local/penalty=bn_l1", "criterion=magnitude", *ONE_SHOT, *BATCHNORM),
    (*GATES, "criterion=hard_concrete", *GRADUAL, *LATER),
    (*GATES, "criterion=magnitude", *TICKET),
    (*GATES, "criterion=grasp", *ONE_SHOT),
    (*GATES, "criterion=synflow", "when=before_training", *ONE_SHOT),
    (*GATES, *EXCHANGE),
    (*GATES, "model=cnn_fedavg", "what=filters_global", "criterion=taylor", "local.steps=1", *ONE_SHOT),
    ("local/dropout=adjusted", "criterion=snip", *TICKET),
    ("local/dropout=adjusted", "local/penalty=group_lasso", *EXCHANGE),
    ("local/dropout=targeted", *GRADUAL),
    ("local/dropout=targeted", "local/penalty=l1", "criterion=movement", *ONE_SHOT),
    (*NOISE, "criterion=signal_to_noise", *GRADUAL, *LATER),
    (*NOISE, "criterion=random", "rewind=random_reinit", "when=after_training", *ONE_SHOT),
    (*NOISE, "criterion=obd_sweep", *ONE_SHOT),
    (*NOISE, *EXCHANGE),
    (*NOISE, "model=cnn_fedavg", "what=kernels_global", "criterion=taylor", "local.steps=1", *ONE_SHOT),
]


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_with_any_criterion_and_schedule_the_dead_stay_dead_after_every_round(cell, tiny, play):
    experiment = tiny(*cell)
    for state, metrics in play(experiment):
        used = fold(state.server.params)
        for name, alive in state.server.mask.items():
            for params in (state.server.params, used, state.ticket):
                assert not params[name][~alive].view(torch.int32).any(), name  # not even -0.0
        assert all(torch.isfinite(tensor).all() for tensor in state.server.params.values())
        assert metrics["density/weights"] == count(state.server.mask) / size(state.server.mask)
    assert state.events == len(experiment.plan.events) > 0
    assert count(state.server.mask) < size(state.server.mask)
    grown = [name for name in state.server.params if is_companion(name)]
    assert bool(grown) == any(regulariser.companion for regulariser in experiment.regularisers)
    assert all(not torch.equal(state.server.params[name], state.init[name]) for name in grown)


@pytest.mark.parametrize("words", [(*GATES, *EXCHANGE), (*NOISE, *GRADUAL)], ids=["l0", "variational"])
def test_noise_is_the_same_in_processes_and_after_resuming(words, tiny, play, differences, tmp_path):
    experiment = tiny(*words)
    reference = [state for state, _ in play(experiment)]
    assert differences(play(tiny(*words, "executor=processes", "executor.workers=2"))[-1][0], reference[-1]) == []
    save_state(reference[1], tmp_path / "state.safetensors")
    resumed = play(experiment, state=load_state(tmp_path / "state.safetensors"))
    assert differences(resumed[-1][0], reference[-1]) == []


def test_rewinding_takes_gates_back_too(tiny, play):
    state = play(tiny(*GATES, "when=after_training", *ONE_SHOT, "rewind=init", "rounds=2"), stop=3)[-1][0]
    for name, tensor in state.init.items():
        if is_companion(name):
            assert torch.equal(state.ticket[name], tensor) and not torch.equal(state.server.params[name], tensor)


def test_none_is_the_run_without(tiny, play, differences):
    runs = [play(tiny(*ONE_SHOT, *words))[-1][0] for words in ((), ("local/penalty=none", "local/dropout=none"))]
    assert differences(*runs) == []
    zero = play(tiny(*ONE_SHOT, "local/penalty=l1", "local.penalty.strength=0"))[-1][0]
    assert differences(zero, runs[0]) == []


def test_a_run_without_penalty_and_dropout_is_what_it_was_before_there_were_any(assemble):
    before, now, other = (assemble(*words)[0] for words in ((), (), ("local/penalty=l1",)))
    before = OmegaConf.create(OmegaConf.to_container(before, resolve=False))
    del before.local.penalty, before.local.dropout
    assert folder_hash(before) == folder_hash(now) != folder_hash(other)


def test_without_a_regulariser_training_is_left_alone():
    net = nn.Sequential(nn.Linear(2, 2))
    mask = {"0.weight": torch.ones(2, 2, dtype=torch.bool)}
    with regularised(net, mask, (none(), none()), 1) as term:
        assert term is None
        assert "forward" not in net[0].__dict__


def test_terms_add_up_with_their_strengths():
    net = nn.Sequential(nn.Linear(2, 1, bias=False))
    net[0].weight.data.copy_(torch.tensor([[1.0, -3.0]]))
    mask = {"0.weight": torch.ones(1, 2, dtype=torch.bool)}
    examples = Regulariser(lambda examples: torch.tensor(float(examples)), 0.1)
    with regularised(net, mask, (penalty(l1, 0.5), examples), 7) as term:
        assert term().item() == pytest.approx(0.5 * 4 + 0.1 * 7)
        net[0].weight.data.mul_(2)
        assert term().item() == pytest.approx(0.5 * 8 + 0.1 * 7)  # of the weights as they are


def test_pieces_are_those_of_the_prunable_and_what_is_dead_is_marked(tiny):
    net = tiny(*GATES, "what.skip=[last]").net
    mask = ones(dict(net.state_dict()), ("fc1.weight", "fc2.weight"))
    mask["fc1.weight"][0] = False
    assert list(PIECES["weights"](net, mask, 1)) == list(PIECES["log_alpha"](net, mask, 1)) == list(mask)
    assert PIECES["alive"](net, mask, 1)["fc1.weight"][:2, 0].tolist() == [0, 1]
    assert not hasattr(net.fc3, "weight_log_alpha")


# --- the network that is in use --------------------------------------------------------------------------------------------


def with_some_gates_closed(params):
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(t.shape, generator=generator) * 4 if is_companion(n) else t for n, t in params.items()}


def test_evidence_is_of_the_network_that_is_in_use(tiny, equal):
    """Gated, it is measured as on a plain network with the weights that the gates make, wherever it is measured."""
    asked = ("params", "init_params", "flow_grads", "grads", "activity")
    gated, bare = (tiny(*words, "what.skip=[last]") for words in (GATES, ()))
    closed = with_some_gates_closed(gated.loop(gated.executor()).start().server.params)
    found = []
    for experiment, params in ((gated, closed), (bare, plain(closed))):
        executor = experiment.executor()
        loop = experiment.loop(executor)
        state, mask = loop.start(), ones(params, experiment.axes.what.names)
        measure = measuring(loop.exchange, loop.network, state, (0, 1), Tally())
        found.append(measure(asked, Subnet(params, mask), "alive"))
    for name in ("params", "flow_grads", "grads", "activity"):
        assert equal(found[0][name], found[1][name]), name
    assert equal(found[0]["init_params"], {n: fold(gated.net.state_dict())[n] for n in gated.axes.what.names})
    assert bool((found[0]["params"]["fc1.weight"] == 0).float().mean() > 0.1)  # some are closed indeed


def test_evaluation_is_of_the_network_that_is_in_use(tiny):
    gated, bare = tiny(*GATES), tiny()
    start = gated.loop(gated.executor()).start()
    closed = with_some_gates_closed(start.server.params)
    loops = [experiment.loop(experiment.executor()) for experiment in (gated, bare)]
    states = [replace(start, server=Subnet(params, start.server.mask)) for params in (closed, plain(closed))]
    assert loops[0].evaluation(states[0]) == loops[1].evaluation(states[1])


def test_parameters_are_counted_without_companions(tiny, play):
    _, with_gates = play(tiny(*GATES, *ONE_SHOT))[-1]
    _, without = play(tiny(*ONE_SHOT))[-1]
    assert with_gates["density/params"] == without["density/params"]
    assert with_gates["wire/up_bytes"] > without["wire/up_bytes"]


@pytest.mark.parametrize("words", [GATES, NOISE], ids=["l0", "variational"])
def test_a_ticket_is_a_plain_network_that_others_start_from_and_that_is_exported(
    words, command, folder, tiny, equal, monkeypatch
):
    tiny_run = ("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "logger=none", "executor=serial")
    result = command(*tiny_run, *words, *ONE_SHOT, "density=0.3")
    assert result.rc == 0, result.text
    run = folder()
    state, ticket = load_state(run / "state" / "state.safetensors"), load_ticket(run)
    assert any(map(is_companion, state.server.params)) and not any(map(is_companion, ticket.params))
    assert equal(ticket.params, plain(state.ticket))
    exported = load_network(run, [CONF]).net.state_dict()
    assert equal(dict(exported), plain(state.server.params))
    monkeypatch.setattr("sys.argv", ["ticket", "export", str(run), "--to", str(run / "model.safetensors")])
    main()
    assert equal(load_file(run / "model.safetensors"), dict(sorted(exported.items())))

    for more in ((), words):  # into a plain run, and into one with companions, which begin anew
        experiment = tiny(f"ticket.path={run}", *more)
        start = experiment.loop(experiment.executor()).start()
        assert equal({n: t for n, t in start.server.params.items() if not is_companion(n)}, ticket.params)
        anew = experiment.net.state_dict()
        assert all(torch.equal(t, anew[n]) for n, t in start.server.params.items() if is_companion(n))


# --- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("local/penalty=bn_l1",), "choose model=resnet20 with model.norm=batch, or local/penalty=group_lasso"),
        (("local/penalty=bn_l1", "model=resnet20"), "choose model=resnet20 with model.norm=batch"),  # GroupNorm
        (("local/penalty=l0", "local/dropout=variational"), "choose local/dropout=none"),
        (("local/penalty=l0", "local/dropout=adjusted"), "choose local/dropout=none"),
        (("criterion=hard_concrete", *ONE_SHOT, *LATER), "criterion=hard_concrete: weights have no gates of their own: choose"),
        ((*GATES, "criterion=hard_concrete", *ONE_SHOT), "before any training: choose when=after_training"),
        (("criterion=signal_to_noise", "local/penalty=l0", *ONE_SHOT, *LATER), "choose local/dropout=variational"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_choose(words, message, tiny):
    with pytest.raises(Incompatible) as refused:
        tiny(*words)
    assert message in str(refused.value)


def test_all_values_out_of_range_are_reported_at_once(tiny):
    words = ("local/penalty=l0", "local.penalty.strength=-1", "local.penalty.drop_rate=2")
    with pytest.raises(ConfigError) as refused:
        tiny(*words, "local/dropout=targeted", "local.dropout.gamma=2", "rounds=0")
    assert len(refused.value.problems) == 4


@pytest.mark.parametrize("path", [*CONF.glob("local/penalty/*.yaml"), *CONF.glob("local/dropout/*.yaml")], ids=lambda p: p.stem)
def test_every_option_can_travel_to_a_worker_that_is_spawned(path, compose):
    group = path.parent.name
    option = make(compose(f"local/{group}={path.stem}")[0].local[group])
    there = pickle.loads(pickle.dumps(option))
    assert isinstance(there, Regulariser) and there.strength == option.strength and there.companion == option.companion


def test_constructors_say_what_they_are():
    assert l0(1e-6, 0.5).companion == ("log_alpha", 0.0, 0.01)
    assert none() == Regulariser()
