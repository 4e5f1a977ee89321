"""The loop: what a round does to a state, by hand and bit for bit; rewinding; what BatchNorm policies keep apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from fedprune.capabilities import complete
from fedprune.config.instantiate import make
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.sampling import cohort
from fedprune.federated.server.optimizer import ServerStep
from fedprune.pruning.mask import apply, count
from fedprune.randomness import torch_stream
from fedprune.types import SERVER, ClientState, Job, Mask, Params, State

LTH = ("when=after_training", "how_often=iterative", "rewind=init", "rounds=2", "density=0.512")  # three events, four runs
ALL = ("federated.cohort=4",)


def first_state(experiment) -> State:
    return experiment.loop(experiment.executor()).start()


def module_of(experiment, compose, *overrides: str):
    """The LightningModule that clients train, around a network at its initialisation."""
    config, _ = compose(*overrides)
    module = make(config.local.module, experiment.net, make(config.local.optimizer))
    module.net.load_state_dict(first_state(experiment).init)
    return module


def batches_of(experiment, seed: int, clock: int, client: int, size: int, epochs: int = 1):
    """A client's batches in a round, as the streams of randomness define them, by plain indexing."""
    indices, generator = experiment.clients.train[client], torch_stream(seed, "batches", clock, client)
    for _ in range(epochs):
        order = indices[torch.randperm(len(indices), generator=generator)]
        for part in order.split(size):
            yield experiment.dataset.normalise(experiment.dataset.x[part]), experiment.dataset.y[part]


def sgd(net: torch.nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, fused=True)


def train_plainly(net: torch.nn.Module, batches, optimizer=None, mask: Mask | None = None) -> None:
    """The loop that everybody has written; dead weights are put back to zero after every step."""
    optimizer = optimizer or sgd(net)
    for inputs, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
        with torch.no_grad():
            for name, alive in (mask or {}).items():
                net.get_parameter(name).mul_(alive)


# --- against plain torch ---------------------------------------------------------------------------------------------------

CENTRAL = ("federated=centralized", "federated.clients=1", "federated.cohort=1")
EPOCHS = ("local.steps=null", "local.epochs=2", "local.batch_size=64")


@pytest.mark.parametrize("how_often", ["never", "one_shot"])
def test_a_round_of_fedavg_is_the_mean_of_two_clients_trained_by_hand(how_often, tiny, play):
    experiment = tiny("federated.clients=2", "partition=quantity_skew", *EPOCHS, f"how_often={how_often}")
    ((state, metrics),) = play(experiment, stop=1)
    mask = state.server.mask
    assert count(mask) == {"never": 50_200, "one_shot": 15_060}[how_often]
    trained, sizes = [], []
    for client in (0, 1):
        experiment.net.load_state_dict(apply(first_state(experiment).init, mask))
        train_plainly(experiment.net, batches_of(experiment, 0, 0, client, 64, epochs=2), mask=mask)
        trained.append({name: tensor.clone() for name, tensor in experiment.net.state_dict().items()})
        sizes.append(len(experiment.clients.train[client]))
    assert sizes[0] != sizes[1]
    for name, tensor in state.server.params.items():
        by_hand = sum(s * t[name].double() for s, t in zip(sizes, trained, strict=True)) / sum(sizes)
        assert torch.allclose(tensor.double(), by_hand, atol=1e-6), name
    assert metrics["train/examples"] == 2 * sum(sizes)
    assert metrics["train/steps"] == 2 * sum(-(-size // 64) for size in sizes)


def test_uniform_weighting_is_the_plain_mean(tiny, play):
    skewed = ("federated.clients=2", "partition=quantity_skew")
    experiment = tiny(*skewed, "federated.weighting=uniform")
    ((state, _),) = play(experiment, stop=1)
    alone = trained_alone(experiment, 0, 1)
    for name, tensor in state.server.params.items():
        assert torch.allclose(tensor, (alone[0][name] + alone[1][name]) / 2, atol=1e-6), name
    ((weighted, _),) = play(tiny(*skewed), stop=1)
    assert not torch.allclose(weighted.server.params["fc1.weight"], state.server.params["fc1.weight"], atol=1e-6)


def trained_alone(experiment, *clients: int) -> list[Params]:
    """What each of these clients makes of the initial network."""
    executor = experiment.executor()
    start = experiment.loop(executor).start().server
    return [executor._client_round.train(Job(client, 0, 0, 0, start)).subnet.params for client in clients]


def test_centralized_is_a_plain_training_loop_bit_for_bit(tiny, play, equal):
    experiment = tiny(*CENTRAL, *EPOCHS, "rounds=2")
    played = play(experiment)
    experiment.net.load_state_dict(first_state(experiment).init)
    optimizer = sgd(experiment.net)  # one, with its momentum, from the first round to the last
    for clock, (state, _) in enumerate(played):
        train_plainly(experiment.net, batches_of(experiment, 0, clock, 0, 64, epochs=2), optimizer)
        assert equal(state.server.params, dict(experiment.net.state_dict()))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_kept_optimizer_goes_on_where_a_fresh_one_starts_anew(name, tiny, play, equal):
    """Two rounds of one epoch, against one loop with one optimizer, and against one with an optimizer per round."""
    overrides = (*CENTRAL, *EPOCHS, "local.epochs=1", "rounds=2", f"local/optimizer={name}")
    kinds = {"sgd": sgd, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    for policy in ("kept", "fresh"):
        experiment = tiny(*overrides, f"federated.optimizer_state={policy}")
        last = play(experiment)[-1][0]
        experiment.net.load_state_dict(first_state(experiment).init)
        if name == "sgd":
            optimizers = [sgd(experiment.net) for _ in range(2)]
        else:
            decay = {"weight_decay": experiment.config.local.optimizer.weight_decay}
            optimizers = [kinds[name](experiment.net.parameters(), fused=True, **decay) for _ in range(2)]
        for clock in range(2):
            batches = batches_of(experiment, 0, clock, 0, 64)
            train_plainly(experiment.net, batches, optimizers[0 if policy == "kept" else clock])
        assert equal(last.server.params, dict(experiment.net.state_dict()))
        assert bool(last.kept) is (policy == "kept")


def test_a_rewind_forgets_the_optimizer_and_a_prune_event_only_the_dead(tiny, play):
    overrides = (*CENTRAL, "when=during_training", "when.start=0.5", "how_often=one_shot", "rounds=2", "density=0.3")
    momentum = play(tiny(*overrides))[-1][0].kept[0].optimizer[0]["momentum_buffer"]
    last = play(tiny(*overrides))[-1][0]
    alive = last.server.mask["fc1.weight"]
    assert not momentum[~alive].any() and momentum[alive].count_nonzero() > 0.5 * alive.sum()
    experiment = tiny(*CENTRAL, *LTH[:3], "rounds=1", "density=0.8")
    second = play(experiment)[-1][0]
    fresh = tiny(*CENTRAL, *LTH[:3], "rounds=1", "density=0.8", "federated.optimizer_state=fresh")
    assert torch.equal(second.server.params["fc1.weight"], play(fresh)[-1][0].server.params["fc1.weight"])


def test_centralized_learns_what_a_plain_loop_over_the_whole_pool_learns(tiny):
    experiment = tiny(*CENTRAL, "partition.val=0", "partition.test=0")
    assert sorted(experiment.clients.train[0].tolist()) == list(range(len(experiment.dataset.y)))


def test_a_plain_trainer_trains_the_same_module_to_the_same_weights(tiny, play, compose, equal):
    overrides = (*CENTRAL, *EPOCHS, "local.epochs=1")
    experiment = tiny(*overrides, "rounds=1")
    ((state, metrics),) = play(experiment)
    module = module_of(experiment, compose)
    batches = torch.utils.data.DataLoader(list(batches_of(experiment, 0, 0, 0, 64)), batch_size=None)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches, val_dataloaders=batches)
    assert equal(state.server.params, dict(module.net.state_dict()))
    assert trainer.global_step == metrics["train/steps"]
    assert {"train/loss", "val/loss", "val/accuracy"} <= set(trainer.callback_metrics)


def test_fedprox_pulls_every_step_to_what_was_sent(tiny, play):
    experiment = tiny("local=fedprox", "local.proximal_mu=0.5", *CENTRAL, "rounds=1")
    ((state, _),) = play(experiment)
    sent = first_state(experiment).init
    experiment.net.load_state_dict(sent)
    optimizer = torch.optim.SGD(experiment.net.parameters(), lr=0.05, momentum=0.9)
    for _, (inputs, labels) in zip(range(3), batches_of(experiment, 0, 0, 0, 16), strict=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(experiment.net(inputs), labels)
        distance = sum((p - sent[name]).square().sum() for name, p in experiment.net.named_parameters())
        (loss + 0.5 / 2 * distance).backward()
        optimizer.step()
    for name, tensor in experiment.net.state_dict().items():
        assert torch.allclose(state.server.params[name], tensor, atol=1e-6), name


def test_the_learning_rate_decays_once_per_round(tiny, play):
    overrides = (*CENTRAL, *EPOCHS, "local.epochs=1", "rounds=3", "local.lr_decay=0.5")
    experiment = tiny(*overrides)
    played = play(experiment)
    experiment.net.load_state_dict(first_state(experiment).init)
    optimizer = sgd(experiment.net)
    for clock, (state, _) in enumerate(played):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5**clock
        train_plainly(experiment.net, batches_of(experiment, 0, clock, 0, 64), optimizer)
        for name, tensor in experiment.net.state_dict().items():
            assert torch.allclose(state.server.params[name], tensor, atol=1e-6), (clock, name)


# --- server optimizers -----------------------------------------------------------------------------------------------------


def test_server_momentum_of_zero_at_rate_one_is_fedavg(tiny, play):
    plain = play(tiny())[-1][0]
    same = play(tiny("federated=fedavgm", "federated.server.beta=0", *federation()))[-1][0]
    for name, tensor in plain.server.params.items():
        assert torch.allclose(tensor, same.server.params[name], atol=1e-6), name


def federation() -> tuple[str, ...]:
    """An option of `federated` brings its own numbers of clients: give it those of the tiny experiment."""
    return ("federated.clients=4", "federated.cohort=2")


@pytest.mark.parametrize(("option", "fresh"), [("fedavgm", {"v": 0.0}), ("fedadam", {"m": 0.0, "v": 1e-6})], ids=str)
def test_server_optimizers_keep_masked_momentum_and_forget_it_when_rewound(option, fresh, tiny, play):
    """What is dead has what it started from: FedAdam's v its tau^2 = 0.001^2."""
    experiment = tiny(f"federated={option}", *LTH)
    played = play(experiment)
    for state, metrics in played:
        assert set(state.server_state.momentum) == set(fresh)
        for key, part in state.server_state.momentum.items():
            assert set(part) == {name for name, _ in experiment.net.named_parameters()}
            for name, alive in state.server.mask.items():
                assert torch.equal(part[name][~alive], torch.full_like(part[name][~alive], fresh[key]))
        assert all(torch.isfinite(tensor).all() for tensor in state.server.params.values())
        assert metrics["clients/dropped"] == 0
    assert [state.server_state.momentum for state in starts(experiment, play)] == [{}, {}, {}]
    for state in starts(tiny(f"federated={option}", *LTH, "rewind=none"), play):
        assert set(state.server_state.momentum) == set(fresh)
        assert all(part["fc1.bias"].any() for part in state.server_state.momentum.values())
        for key, part in state.server_state.momentum.items():
            assert not any((part[name][~alive] != np.float32(fresh[key])).any() for name, alive in state.server.mask.items())


def test_whatever_a_server_optimizer_does_the_dead_stay_dead(tiny):
    def noisy(server, mean, momentum, trained):
        return {name: value + 1 for name, value in mean.items()}, {
            "noise": {name: torch.ones_like(mean[name]) for name in trained}
        }

    experiment = tiny("how_often=one_shot", "when=before_training")
    loop = replace(experiment.loop(experiment.executor()), server_step=complete(noisy, ServerStep))
    state, _ = loop.round(loop.start())
    for name, alive in state.server.mask.items():
        assert not state.server.params[name][~alive].any()
        assert not state.server_state.momentum["noise"][name][~alive].any()
        assert state.server.params[name][alive].mean() > 0.5


# --- rewinding -------------------------------------------------------------------------------------------------------------


def starts(experiment, play) -> list[State]:
    """The state right after each prune event, before anything is trained on it."""
    executor = experiment.executor()
    loop = experiment.loop(executor)
    found = []
    for state in [loop.start(), *(state for state, _ in play(experiment, executor))][:-1]:
        remembered = loop._remember(state)
        for event in loop.whose.on_server(loop.plan, remembered):
            remembered = loop.pruning.prune(remembered, event, Tally())
            found.append(remembered)
    return found


@pytest.mark.parametrize("model", [("model=lenet_300_100",), ("model=resnet20", "model.norm=batch", "local.steps=1")])
def test_at_every_level_the_rewound_network_is_the_initial_one_bit_for_bit(model, tiny, play, equal):
    """Parameters and buffers, BatchNorm's statistics included; and the initial one survives all training."""
    experiment = tiny(*LTH, *model)
    saved = {name: tensor.clone() for name, tensor in first_state(experiment).init.items()}
    levels = starts(experiment, play)
    assert len(levels) == 3
    for state in levels:
        assert equal(state.server.params, apply(saved, state.server.mask))
        assert equal(state.ticket, state.server.params)
        assert state.clock == 0
    for state, _ in play(experiment):
        assert equal(state.init, saved)
        assert equal(state.anchors[0], saved)
    densities = [count(state.server.mask) for state in levels]
    assert densities == sorted(densities, reverse=True)
    assert len(set(densities)) == 3


def test_after_an_early_rewind_every_level_starts_from_the_weights_of_that_round(tiny, play, equal):
    experiment = tiny(*LTH, "rounds=3", "rewind=early", "rewind.round=1")
    played = play(experiment)
    saved = played[0][0].server.params  # after one round
    levels = starts(experiment, play)
    assert [state.clock for state in levels] == [1, 1, 1]
    for state in levels:
        assert equal(state.server.params, apply(saved, state.server.mask))
    for state, _ in played[1:]:
        assert list(state.anchors) == [1]
        assert equal(state.anchors[1], saved)
    assert not equal(saved, first_state(experiment).init)


def test_an_early_rewind_in_the_middle_of_the_one_training_run_goes_back_too(tiny, play, equal):
    experiment = tiny("how_often=one_shot", "when.start=0.5", "when.stop=1", "rounds=4", "rewind=early", "rewind.round=1")
    played = play(experiment)
    saved = played[0][0].server.params
    (level,) = starts(experiment, play)
    assert (level.round, level.clock) == (2, 1)
    assert equal(level.server.params, apply(saved, level.server.mask))
    assert played[-1][0].clock == 3


def test_after_a_rewind_cohorts_learning_rates_and_data_order_are_those_of_the_first_level(tiny, play):
    """With nothing pruned by the event, each level must repeat the first one bit for bit."""
    # Density 1 - 1e-6 of 50,200 weights keeps them all: the event happens, and nothing changes but the clock.
    experiment = tiny(
        "when=after_training", "how_often=one_shot", "rewind=init", "rounds=3", "density=0.999999", "local.lr_decay=0.5"
    )
    played = play(experiment)
    assert len(played) == 6
    for (first, metrics), (second, others) in zip(played[:3], played[3:], strict=True):
        assert all(torch.equal(first.server.params[name], second.server.params[name]) for name in first.server.params)
        for key in ("train/loss", "train/examples", "wire/up_bytes"):
            assert abs(metrics[key] - others[key]) < 20 if key == "wire/up_bytes" else metrics[key] == others[key]
    assert [state.clock for state, _ in played] == [1, 2, 3, 1, 2, 3]
    assert [state.round for state, _ in played] == [1, 2, 3, 4, 5, 6]


def test_cohorts_follow_the_clock(tiny, play):
    experiment = tiny(*LTH)
    executor = experiment.executor()
    loop = experiment.loop(executor)
    seen = [loop._cohort(state) for state in (loop.start(), *(state for state, _ in play(experiment, executor)))]
    expected = [cohort(0, clock, 4, 2) for clock in (0, 1)]
    assert seen[0] == expected[0] and seen[1] == expected[1]
    # After the second round the event is due: what trains then is what loop.round makes of the rewound state, at clock 0.
    levels = starts(experiment, play)
    assert [loop._cohort(state) for state in levels] == [expected[0]] * 3


def test_a_random_reinitialisation_is_another_one_each_time_and_a_function_of_the_seed(tiny, play, equal):
    overrides = (*LTH, "rewind=random_reinit")
    levels = starts(tiny(*overrides), play)
    again = starts(tiny(*overrides), play)
    other = starts(tiny(*overrides, "seed=1"), play)
    saved = first_state(tiny(*overrides)).init
    for i, state in enumerate(levels):
        assert equal(state.server.params, again[i].server.params)
        assert not equal(state.server.params, other[i].server.params)
        assert state.clock == 0
        alive = state.server.mask["fc1.weight"]
        fresh = state.server.params["fc1.weight"][alive]
        assert (fresh != saved["fc1.weight"][alive]).all()
        assert fresh.std() == pytest.approx(float(saved["fc1.weight"].std()), rel=0.05)
    weights = [state.server.params["fc3.weight"] for state in levels]
    both = levels[0].server.mask["fc3.weight"] & levels[1].server.mask["fc3.weight"]
    assert (weights[0][both] != weights[1][both]).all()


def test_without_rewinding_training_goes_on_from_the_trained_weights(tiny, play, equal):
    experiment = tiny(*LTH, "rewind=none")
    played = play(experiment)
    levels = starts(experiment, play)
    for i, state in enumerate(levels):
        trained = played[2 * i + 1][0].server.params
        assert equal(state.server.params, apply(trained, state.server.mask))
    assert [state.clock for state, _ in played] == list(range(1, 9))
    assert played[-1][0].anchors == {}


@pytest.mark.parametrize("rewind", ["shuffle", "shuffle_keep_signs", "reinit_keep_signs", "constant", "constant_keep_signs"])
def test_other_values_are_others_at_every_level_and_a_function_of_the_seed(rewind, tiny, play, equal):
    overrides = (*LTH, f"rewind={rewind}")
    levels, again, other = (starts(tiny(*overrides, f"seed={seed}"), play) for seed in (0, 0, 1))
    init = first_state(tiny(*overrides)).init
    for i, state in enumerate(levels):
        weights, alive = state.server.params["fc1.weight"], state.server.mask["fc1.weight"]
        assert equal(state.server.params, again[i].server.params)
        assert not equal(state.server.params, other[i].server.params)
        assert torch.equal(state.server.params["fc1.bias"], init["fc1.bias"])
        assert (state.clock, state.server_state.momentum, state.kept) == (0, {}, {})
        assert (weights[alive] != init["fc1.weight"][alive]).float().mean() > 0.99
        if rewind.endswith("signs"):
            assert torch.equal(weights[alive].sign(), init["fc1.weight"][alive].sign())
        if "shuffle" in rewind:
            assert torch.equal(weights[alive].abs().sort()[0], init["fc1.weight"][alive].abs().sort()[0])
    (first, mask), (second, smaller) = ((s.server.params["fc1.weight"], s.server.mask["fc1.weight"]) for s in levels[:2])
    both = mask & smaller
    assert torch.equal(first[both], second[both]) == (rewind == "constant_keep_signs")


def test_learning_rate_rewinding_keeps_the_weights_and_goes_back_by_the_clock(tiny, play, equal):
    overrides = (*LTH, "rewind=learning_rate", "rewind.round=1", "federated=fedavgm", *federation())
    experiment = tiny(*overrides, "local.lr_decay=0.5")
    played = play(experiment)
    for i, state in enumerate(starts(experiment, play)):
        trained = played[2 * i + 1][0].server.params
        assert equal(state.server.params, apply(trained, state.server.mask))
        assert (state.clock, state.server_state.momentum, state.anchors) == (1, {}, {})
    assert [state.clock for state, _ in played] == [1, 2, 2, 3, 2, 3, 2, 3]


def test_with_trained_weights_kept_clients_keep_what_they_kept(tiny, play):
    after = ("when=after_training", "how_often=one_shot", "rounds=1", "local.steps=1", "federated.batchnorm=local")
    (level,) = starts(tiny(*BATCHNORM, *after, "rewind=learning_rate"), play)
    assert sorted(level.kept) == [0, 1, 2, 3]
    (level,) = starts(tiny(*BATCHNORM, *after, "rewind=shuffle"), play)
    assert level.kept == {}


# --- BatchNorm -------------------------------------------------------------------------------------------------------------

BATCHNORM = ("model=resnet20", "model.norm=batch", "local.steps=2", "rounds=2", *ALL)


def statistics(params: Params) -> Params:
    return {name: tensor for name, tensor in params.items() if "running" in name or "tracked" in name}


def test_average_merges_the_statistics_like_weights(tiny, play):
    experiment = tiny(*BATCHNORM, "federated.batchnorm=average")
    ((state, _),) = play(experiment, stop=1)
    alone = trained_alone(experiment, 0, 1, 2, 3)
    sizes = [len(part) for part in experiment.clients.train]
    for name, tensor in statistics(state.server.params).items():
        mean = sum(s * a[name].double() for s, a in zip(sizes, alone, strict=True)) / sum(sizes)
        assert torch.allclose(tensor.double(), mean, atol=1e-5), name
        assert tensor.dtype == first_state(experiment).init[name].dtype
    assert state.kept == {}


def test_local_tensors_never_cross_the_wire_and_are_kept_by_each_client(tiny, play, equal):
    experiment = tiny(*BATCHNORM, "federated.batchnorm=local")
    init = first_state(experiment).init
    own = {name for name in init if "norm" in name}
    assert own and own.isdisjoint(experiment.wire.layout.shapes)
    assert set(experiment.wire.layout.shapes) == set(init) - own
    played = play(experiment)
    for state, _ in played:
        assert sorted(state.kept) == [0, 1, 2, 3]
        for kept in state.kept.values():
            assert set(kept.batchnorm) == own and kept == ClientState(kept.batchnorm)
        assert not equal(state.kept[0], state.kept[1])
        for name in own:  # the server's copy is the mean, for reporting
            if init[name].is_floating_point():
                mean = sum(
                    len(part) * kept.batchnorm[name].double()
                    for part, (_, kept) in zip(experiment.clients.train, sorted(state.kept.items()), strict=True)
                ) / sum(len(part) for part in experiment.clients.train)
                assert torch.allclose(state.server.params[name].double(), mean, atol=1e-5)
    # A client goes on from what it kept, not from the server's copy of it.
    first, second = played[0][0], played[1][0]
    client_round = experiment.executor()._client_round
    again = client_round.train(Job(1, 1, 1, 0, first.server, kept=first.kept[1]))
    assert equal(again.kept, second.kept[1])


def test_the_server_measures_at_its_own_copy_of_what_clients_keep_to_themselves(tiny, play):
    overrides = ("federated.batchnorm=local", "where=server", "where.proxy=8", "criterion=snip", "density=0.5")
    experiment = tiny(*BATCHNORM, *overrides, "how_often=one_shot", "when=during_training", "rounds=2")
    (state, _), *_ = play(experiment, stop=1)
    executor = experiment.executor()
    exchange = experiment.loop(executor).exchange
    (update,) = exchange.measure(state, state.server, (SERVER,), ("grads",), "alive", Tally())
    whole = Job(SERVER, state.round, state.clock, 0, state.server, ("grads",))  # its copy is in the network
    expected = executor._client_round.measure(whole).evidence["grads"]
    assert all(torch.equal(g, update.evidence["grads"][name]) for name, g in expected.items())
    begun = replace(whole, kept=ClientState({name: state.init[name] for name in experiment.private}))
    other = executor._client_round.measure(begun).evidence["grads"]
    assert any(not torch.allclose(g, other[name]) for name, g in expected.items())


def test_after_a_rewind_to_the_start_clients_have_kept_nothing(tiny, play):
    after = ("when=after_training", "how_often=one_shot", "rounds=1", "local.steps=1", "federated.batchnorm=local")
    (rewound,) = starts(tiny(*BATCHNORM, *after, "rewind=init"), play)
    assert rewound.kept == {}
    (trained,) = starts(tiny(*BATCHNORM, *after, "rewind=none"), play)
    assert sorted(trained.kept) == [0, 1, 2, 3]


def test_a_client_that_sits_a_round_out_keeps_what_it_kept(tiny, play, equal):
    experiment = tiny(*BATCHNORM, "federated.batchnorm=local", "federated.cohort=1", "local.steps=1", "rounds=3")
    before: State = first_state(experiment)
    for state, _ in play(experiment):
        (trained,) = cohort(0, before.clock, 4, 1)
        for client in set(before.kept) - {trained}:
            assert equal(state.kept[client], before.kept[client])
        assert trained in state.kept
        before = state


def test_each_client_is_evaluated_with_what_it_kept(tiny, play):
    experiment = tiny(*BATCHNORM, "federated.batchnorm=local", "rounds=1")
    executor = experiment.executor()
    ((state, metrics),) = play(experiment, executor)
    broken = {c: ClientState({n: 0 * t for n, t in kept.batchnorm.items()}) for c, kept in state.kept.items()}
    blind = experiment.loop(executor).evaluation(replace(state, kept=broken))
    assert blind["client/accuracy_mean"] != metrics["client/accuracy_mean"]
    assert blind["test/accuracy"] == metrics["test/accuracy"]  # the server's copy


def test_frozen_statistics_are_those_of_the_start_in_every_round(tiny, play, equal):
    experiment = tiny(*BATCHNORM, "federated.batchnorm=frozen", "local.optimizer.lr=0.0001")
    init = first_state(experiment).init
    for state, _ in play(experiment):
        assert equal(statistics(state.server.params), statistics(init))
        assert not torch.equal(state.server.params["norm1.weight"], init["norm1.weight"])  # scale and shift are trained


# --- metrics ---------------------------------------------------------------------------------------------------------------


def test_evaluation_happens_every_so_often_before_each_event_and_at_the_end(tiny, play):
    experiment = tiny(*LTH, "rounds=5", "density=0.64", "eval_every=3")  # events after 5 and 10 of 15 rounds
    evaluated = [metrics["round"] + 1 for _, metrics in play(experiment) if "test/accuracy" in metrics]
    assert evaluated == [3, 5, 6, 9, 10, 12, 15]


def test_accuracies_are_those_of_a_plain_evaluation(tiny, play):
    experiment = tiny("eval_every=1", "rounds=1", "partition=dirichlet")
    ((state, metrics),) = play(experiment)
    experiment.net.load_state_dict(state.server.params)
    data = experiment.dataset

    def accuracy(x: torch.Tensor, y: torch.Tensor) -> float:
        with torch.no_grad():
            return float((experiment.net(data.normalise(x)).argmax(1) == y).float().mean())

    val = torch.cat(experiment.clients.val)
    own = torch.tensor([accuracy(data.x[part], data.y[part]) for part in experiment.clients.test], dtype=torch.float64)
    assert metrics["test/accuracy"] == pytest.approx(accuracy(data.test_x, data.test_y))
    assert metrics["val/accuracy"] == pytest.approx(accuracy(data.x[val], data.y[val]))
    assert metrics["client/accuracy_mean"] == pytest.approx(float(own.mean()))
    assert metrics["client/accuracy_p10"] == pytest.approx(float(own.quantile(0.1)))


def test_a_client_without_validation_or_test_data_is_not_evaluated_on_it(tiny, play):
    ((_, metrics),) = play(tiny("rounds=1", "partition.val=0", "partition.test=0"))
    assert {"test/accuracy", "test/loss"} <= set(metrics)
    assert not {"val/accuracy", "client/accuracy_mean"} & set(metrics)


def test_a_round_is_a_pure_transition(tiny, equal, differences):
    """The same state gives the same next one, as often as it is asked; the state itself is not touched."""
    experiment = tiny("criterion=rigl", "how_often=dynamic", "how_often.every=1", "when.stop=1")
    loop = experiment.loop(experiment.executor())
    start, _ = loop.round(loop.start())
    copies = {name: tensor.clone() for name, tensor in start.server.params.items()}
    once, _ = loop.round(start)
    loop.round(once)
    again, _ = loop.round(start)
    assert differences(once, again) == []
    assert equal(start.server.params, copies)


def test_training_operations_follow_the_density(tiny, play):
    dense = play(tiny("rounds=1"))[0][1]["flops/train"]
    sparse = play(tiny("rounds=1", "how_often=one_shot", "when=before_training", "what=weights_erk", "density=0.5"))[0][1]
    assert 0.4 * dense < sparse["flops/train"] < 0.6 * dense
    # Two operations for each weight, three times (forward, and backward for inputs and weights; none for the first's inputs).
    fc1, fc2, fc3 = 64 * 300, 300 * 100, 100 * 10
    assert dense == pytest.approx((4 * fc1 + 6 * fc2 + 6 * fc3) * 2 * 3 * 16)


@pytest.mark.parametrize(
    ("overrides", "density"),
    [
        (("federated/upload=top_weights", "federated.upload.density=0.1"), 1.0),  # all are trained, few are sent
        (("whose=voted", "whose.at=end"), 1.0),  # what is proposed after training was no part of it
        (("whose=personal", "whose.at=end"), 1.0),
        (("whose=personal", "whose.at=start"), 0.2),
    ],
)
def test_training_operations_are_by_the_mask_that_was_trained_under(overrides, density, tiny, play):
    event = ("how_often=one_shot", "when=during_training", "when.start=0.5", "density=0.2")
    event += ("what=weights_per_layer", "what.scope.rates.last=1.0")
    pruned = () if "federated/upload=top_weights" in overrides else event
    rounds = play(tiny("rounds=2", "criterion=magnitude", "rewind=none", *pruned, *overrides))
    dense = (4 * 64 * 300 + 6 * 300 * 100 + 6 * 100 * 10) * 2 * 3 * 16  # as above
    assert [metrics["flops/train"] for _, metrics in rounds] == pytest.approx([dense, density * dense])


def test_layer_densities_are_of_the_network_that_was_trained(tiny, play):
    experiment = tiny("how_often=one_shot", "when=before_training", "rounds=1", "what=weights_per_layer", "density=0.2")
    ((state, metrics),) = play(experiment)
    for layer in ("fc1", "fc2", "fc3"):
        assert metrics[f"density/layer/{layer}"] == float(state.server.mask[f"{layer}.weight"].double().mean())
    living = count(state.server.mask)
    assert metrics["density/weights"] == living / 50_200
    assert metrics["density/params"] == (living + 410) / 50_610
