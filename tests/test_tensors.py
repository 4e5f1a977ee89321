"""One tensor, one name: a network with further names for its tensors trains, prunes, sends and counts as one without."""

from __future__ import annotations

import pytest
import torch

from fedprune.pruning.what.layers import prunable
from fedprune.tensors import load_tensors, one_name, other_names, tensors_of, tied_layers
from helpers.user_networks import OnePath, Tied, TwoPaths

SHAPE = (1, 8, 8)


def test_each_tensor_has_the_first_of_its_names_in_the_order_of_the_network():
    assert list(tensors_of(Tied())) == ["there.weight", "there.bias", "back.bias", "fc.weight", "fc.bias"]
    assert other_names(Tied()) == {"back.weight": "there.weight"}
    one, two = OnePath(SHAPE, 10), TwoPaths(SHAPE, 10)
    assert list(tensors_of(one)) == list(one.state_dict())
    assert list(tensors_of(two)) == list(tensors_of(one))
    assert other_names(two)["encoder.0.weight"] == other_names(two)["first.weight"] == "body.0.weight"
    assert one_name(two, "first") == "body.0" and one_name(two, "encoder") == "body" and one_name(Tied(), "back") == "there"
    assert tied_layers(Tied()) == {"there.weight": ("there", "back")} and tied_layers(two) == {}
    assert list(prunable(Tied())) == ["there", "fc"] and list(prunable(two)) == ["body.0", "fc"]


def test_loading_by_the_one_name_reaches_every_name():
    net = Tied()
    load_tensors(net, {name: torch.full_like(tensor, 2.0) for name, tensor in tensors_of(net).items()})
    assert net.back.weight is net.there.weight and (net.back.weight == 2).all()


METHODS = [
    ("when=during_training", "how_often=gradual", "criterion=taylor", "federated=fedavgm"),
    ("whose=personal", "when=during_training", "how_often=one_shot", "rounds=4"),
    ("when=before_training", "how_often=one_shot", "criterion=snip", "federated=fedavgm", "federated.optimizer_state=kept"),
    ("when=after_training", "how_often=iterative", "rewind=init"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda words: words[0])
@pytest.mark.parametrize(("other", "plain"), [("Tied", "Spelled"), ("TwoPaths", "OnePath")])
def test_a_run_is_that_of_the_same_network_without_further_names(method, other, plain, tiny, play):
    """Right: the network that is spelled out, which has each tensor once: its weights, masks, bytes and densities.

    Both are trained under their masks: a network with further names is not cut while it is trained, see compaction/fx_graph.py.
    """
    runs = []
    for model in (other, plain):
        torch.manual_seed(0)
        experiment = tiny(f"model._target_=helpers.user_networks.{model}", *method, "local.compact=never")
        runs.append(play(experiment))
    for (one, metrics), (two, expected) in zip(*runs, strict=True):
        for mine, theirs in ((one.server.params, two.server.params), (one.server.mask, two.server.mask)):
            assert set(mine) == set(theirs)
            assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
        sent = [name for name in metrics if name.startswith(("wire/", "density/", "test/", "train/"))]
        assert {name: metrics[name] for name in sent} == {name: expected[name] for name in sent}
