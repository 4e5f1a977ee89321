"""Runs that start from a ticket: its weights and mask, or what is made of them; another network is refused before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedprune.errors import ConfigError, DataError, Incompatible
from fedprune.pruning.mask import apply, count, density
from fedprune.run_id import folder_hash
from fedprune.ticket import load_ticket
from fedprune.types import Params


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name, *overrides) -> the ticket of a tiny run's state after its last round."""
    from fedprune.storage.checkpoint import save_ticket

    def make(name: str, experiment, state, **more: str) -> Path:
        path = tmp_path_factory.mktemp("tickets") / f"{name}.safetensors"
        save_ticket(
            state.ticket,
            state.server.mask,
            {"axes": '{"model": "lenet_300_100", "data": "digits", "what": "weights_per_layer"}', **more},
            path,
        )
        return path

    return make


@pytest.fixture(scope="module")
def path(made, tiny, play) -> Path:
    """A lottery ticket of density 0.3 of lenet_300_100 on digits, its output layer denser than the others."""
    experiment = tiny("what=weights_per_layer", "when=after_training", "how_often=one_shot", "rewind=init", "rounds=1")
    return made("lth", experiment, play(experiment)[-1][0])


def started(experiment):
    executor = experiment.executor()
    try:
        return experiment.loop(executor).start()
    finally:
        executor.close()


def fresh(experiment) -> Params:
    return experiment.net.state_dict()


def test_a_run_starts_from_the_tickets_weights_and_mask_and_rewinds_to_them(path, tiny, play, equal):
    ticket = load_ticket(path)
    experiment = tiny(
        f"ticket.path={path}", "seed=5", "when=after_training", "how_often=one_shot", "rewind=init", "density=0.1"
    )
    state = started(experiment)
    assert equal(state.server.params, ticket.params) and equal(state.server.mask, ticket.mask)
    assert equal(state.init, ticket.params) and equal(state.ticket, ticket.params)
    played = play(experiment)
    assert played[0][1]["density/weights"] == pytest.approx(ticket.density)
    last = played[-1][0]
    assert equal(last.anchors[0], ticket.params)
    assert equal(last.ticket, apply(ticket.params, last.server.mask))
    assert density(last.server.mask) == pytest.approx(0.1, abs=1e-4)
    assert all((ticket.mask[name] | ~alive).all() for name, alive in last.server.mask.items())  # masks nest


def test_training_keeps_the_dead_dead_with_another_optimizer_too(path, tiny, play):
    ticket = load_ticket(path)
    state = play(tiny(f"ticket.path={path}", "local/optimizer=adam"))[-1][0]
    assert all(not state.server.params[name][~alive].any() for name, alive in ticket.mask.items())
    assert not torch.equal(state.server.params["fc1.weight"], ticket.params["fc1.weight"])


def test_it_does_not_share_memory_with_the_ticket_that_others_start_from(path, tiny, play, equal):
    experiment = tiny(f"ticket.path={path}")
    before = {name: tensor.clone() for name, tensor in started(experiment).server.params.items()}
    play(experiment)
    assert equal(started(experiment).server.params, before)


def test_a_fresh_head_is_new_and_dense_and_the_rest_is_the_ticket(path, tiny, equal):
    ticket = load_ticket(path)
    experiment = tiny(f"ticket.path={path}", "ticket.head=fresh", "seed=7")
    state = started(experiment)
    for name, tensor in state.server.params.items():
        assert torch.equal(tensor, (fresh(experiment) if name.startswith("fc3") else ticket.params)[name])
    assert state.server.mask["fc3.weight"].all() and not ticket.mask["fc3.weight"].all()


def test_permuting_within_layers_keeps_each_layers_density_and_nothing_else(path, tiny):
    ticket = load_ticket(path)
    experiment = tiny(f"ticket.path={path}", "ticket.permute=within_layers")
    state = started(experiment)
    for name, alive in state.server.mask.items():
        assert alive.sum() == ticket.mask[name].sum() and not torch.equal(alive, ticket.mask[name])
        assert torch.equal(state.server.params[name], fresh(experiment)[name] * alive)  # a ticket has no weights there


def test_permuting_globally_keeps_the_density_of_the_whole_and_evens_out_the_layers(path, tiny):
    ticket = load_ticket(path)
    mask = started(tiny(f"ticket.path={path}", "ticket.permute=global")).server.mask
    assert count(mask) == count(ticket.mask)
    assert density({"": ticket.mask["fc3.weight"]}) > 0.5
    for alive in mask.values():
        assert float(alive.float().mean()) == pytest.approx(ticket.density, abs=0.05)


@pytest.mark.parametrize("permute", ["within_layers", "global"])
def test_a_permutation_follows_the_seed(permute, path, tiny, equal):
    words = (f"ticket.path={path}", f"ticket.permute={permute}")
    one, again, other = (started(tiny(*words, f"seed={seed}")).server.mask for seed in (0, 0, 1))
    assert equal(one, again) and not equal(one, other)


def test_a_permutation_with_a_fresh_head_leaves_it_dense(path, tiny):
    mask = started(tiny(f"ticket.path={path}", "ticket.permute=global", "ticket.head=fresh")).server.mask
    assert mask["fc3.weight"].all()
    rest = load_ticket(path).mask
    assert count(mask) - 1000 == count({name: alive for name, alive in rest.items() if name != "fc3.weight"})


def test_whole_filters_are_shuffled_whole(made, tiny, play):
    words = ("model=cnn_fedavg", "what=filters_global", "local.steps=1", "rounds=1")
    experiment = tiny(*words, "when=before_training", "how_often=one_shot")
    path = made("filters", experiment, play(experiment)[-1][0])
    mask = started(tiny(*words, f"ticket.path={path}", "ticket.permute=global")).server.mask
    rows = [alive.flatten(1) for alive in mask.values()]
    assert all(torch.equal(row.any(1), row.all(1)) for row in rows)
    living = [alive.flatten(1) for alive in load_ticket(path).mask.values()]
    assert sum(int(row.any(1).sum()) for row in rows) == sum(int(row.any(1).sum()) for row in living)


# --- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["model=lenet5", "data=fashion_mnist"],
            ["conv1.weight is missing in the ticket and 6x1x5x5 in", "choose model=lenet_300_100"],
        ),
        (["data=fashion_mnist"], ["fc1.weight is 300x64 in the ticket and 300x784 in", "shape of data=digits"]),
        (["what=weights_global", "what.skip=[first]"], ["fc1.weight is sparse in it", "choose what=weights_per_layer"]),
        (
            ["what=filters_global", "what.layers=[linear]", "how_often=one_shot"],
            ["not of whole units", "choose what=weights_global"],
        ),
        (
            ["what=filters_global", "what.layers=[linear]", "ticket.permute=global"],
            ["not of whole units of what=filters_global"],
        ),
    ],
)
def test_a_ticket_for_another_network_is_refused_by_layer_with_what_to_choose(words, said, path, tiny, fashion_mnist_root):
    with pytest.raises(Incompatible) as caught:
        tiny(
            f"ticket.path={path}", f"data.root={fashion_mnist_root(400)}" if "data=fashion_mnist" in words else "seed=0", *words
        )
    for text in said:
        assert text in str(caught.value)


def test_other_classes_ask_for_a_fresh_head(path, tiny, tmp_path):
    from fedprune.storage.checkpoint import save_ticket

    ticket = load_ticket(path)
    params = ticket.params | {"fc3.weight": torch.zeros(20, 100), "fc3.bias": torch.zeros(20)}
    mask = ticket.mask | {"fc3.weight": torch.ones(20, 100, dtype=torch.bool)}
    save_ticket(params, mask, ticket.provenance, tmp_path / "other.safetensors")
    with pytest.raises(Incompatible, match=r"fc3.weight is 20x100 in the ticket and 10x100 .*: choose ticket.head=fresh"):
        tiny(f"ticket.path={tmp_path / 'other.safetensors'}")
    state = started(tiny(f"ticket.path={tmp_path / 'other.safetensors'}", "ticket.head=fresh"))
    assert state.server.params["fc3.weight"].shape == (10, 100)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ticket.permute=shuffle"], "ticket.permute=shuffle: choose one of none, within_layers, global"),
        (["ticket.head=new"], "ticket.head=new: choose one of keep, fresh"),
        (["ticket.head=fresh"], "ticket.head=fresh changes a ticket, and there is none: set ticket.path=FILE"),
        (["ticket.path=nowhere"], "there is no ticket nowhere"),
    ],
)
def test_keys_are_checked_before_anything_trains(words, said, tiny):
    with pytest.raises((ConfigError, DataError), match=said):
        tiny(*words)


# --- the command -----------------------------------------------------------------------------------------------------------

TINY = (
    *("rounds=1", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "logger=none", "executor=serial"),
)


def test_the_command_takes_a_run_folder_whatever_its_name_and_says_what_it_starts_from(command, folder):
    assert command(*TINY, "name=source", "density=0.3", "how_often=one_shot", "when=before_training").rc == 0
    source = folder("source").relative_to(Path().absolute())
    assert "=" in source.name
    result = command(*TINY, f"ticket={source}", "name=target", "data=digits", "ticket.permute=within_layers")
    assert result.rc == 0, result.text
    assert f"from ticket {source}, masks shuffled within layers, density 0.3" in result.out
    assert "ticket=" + source.name[-8:] in folder("target").name
    again = command(*TINY, f"ticket.path={source}/ticket.safetensors", "name=file")
    assert again.rc == 0, again.text
    provenance = load_ticket(folder("file")).provenance
    assert {"name", "seed", "axes", "network", "id", "fedprune"} <= set(provenance)


def test_a_sweep_over_tickets_runs_each_and_skips_the_one_that_does_not_fit(command, outputs):
    assert command(*TINY, "name=source", "density=0.3,0.2", "how_often=one_shot", "when=before_training", "-m").rc == 0
    tickets = sorted(Path("outputs/source").glob("*/ticket.safetensors"))
    result = command(
        *TINY, f"ticket={','.join(map(str, tickets))}", "name=target", "model=lenet_300_100,lenet5", "data=digits", "-m"
    )
    assert len(list(Path("outputs/target").glob("*/summary.json"))) == 2, result.text


def test_a_dry_run_estimates_the_bytes_of_the_ticket(command, folder):
    assert command(*TINY, "name=source", "density=0.01", "how_often=one_shot", "when=before_training").rc == 0
    sparse = command(*TINY, f"ticket={folder('source')}", "dry_run=true").out
    dense = command(*TINY, "dry_run=true").out
    assert [line for line in sparse.splitlines() if "bytes down" in line] != [
        line for line in dense.splitlines() if "bytes down" in line
    ]


def test_without_a_ticket_the_keys_do_not_change_which_run_it_is(compose, tmp_path):
    config, _ = compose()
    digest = folder_hash(config)
    config.ticket.path = str(tmp_path)
    assert folder_hash(config) != digest


def test_a_network_with_other_values_of_the_same_shapes_is_told(made, tiny, caplog):
    """Strides and activations are in no tensor's shape, so the weights fit a network that computes something else."""
    own = ("model._target_=helpers.user_networks.Strided", "+model.strides=[2,1]")
    network = {
        "option": "net",
        "config": {"_target_": "helpers.user_networks.Strided", "strides": [2, 1]},
        "shape": [1, 8, 8],
        "classes": 10,
    }
    state = started(tiny(*own))
    path = made("strided", None, state, network=json.dumps(network))
    tiny(f"ticket.path={path}", *own)
    assert not caplog.messages
    tiny(f"ticket.path={path}", "model._target_=helpers.user_networks.Strided", "+model.strides=[1,2]", "+model.act=sigmoid")
    (message,) = caplog.messages
    assert "strides=[2, 1] in the ticket, [1, 2] here; act=None in the ticket, sigmoid here" in message
