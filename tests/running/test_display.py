"""The first lines of a run on the screen."""

from __future__ import annotations

import pytest

from fedprune.running.display import Live, about_text, brief, idle_text
from fedprune.types import Plan, PruneEvent


@pytest.mark.parametrize(
    ("group", "option", "target", "expected"),
    [
        ("model", "lenet_300_100", "fedprune.models.lenet.lenet_300_100", "model lenet_300_100: "),
        ("model", "lenet_300_100", "mine.Net", "model mine.Net (option lenet_300_100): "),
        ("model", "lenet5", "fedprune.models.vgg.vgg11", "model fedprune.models.vgg.vgg11 (option lenet5): "),
        ("data", "cifar10_jpeg", "fedprune.data.image_folder.image_folder", "data cifar10_jpeg, iid: "),
        ("data", "digits", "mine.load", "data mine.load (option digits), iid: "),
        ("partition", "quantity_skew", "fedprune.data.partition.QuantitySkew", "data digits, quantity_skew: "),
    ],
)
def test_what_is_really_run_is_named(group, option, target, expected):
    names = ("what", "criterion", "when", "how_often", "where", "whose", "rewind", "model", "data", "partition")
    axes = dict.fromkeys(names, "x") | {"data": "digits", "partition": "iid"} | {group: option}
    config = {"model": {}, "data": {}, "partition": {}} | {group: {"_target_": target}}
    counts = dict.fromkeys(("parameters", "prunable", "examples", "clients", "cohort", "seed"), 1)
    assert expected in about_text({"axes": axes, "config": config, "name": "run", **counts})


def test_the_middle_of_a_long_plan_is_left_out():
    plan = "\n".join(["plan", *map(str, range(20))])
    assert brief(plan, most=6) == "plan\n0\n1\n  ... 16 more events (all of them: plan.txt) ...\n18\n19"
    assert brief(plan, most=21) == plan


def test_what_changes_nothing_without_events_is_said():
    dense, typed = Plan((), 5), ("rounds=5", "criterion=snip", "density=0.1", "where=one_client")
    text = idle_text(dense, "never", typed, others_use_density=False)
    assert "how_often=never has no events, so criterion=snip, density=0.1, where=one_client change nothing" in text
    assert "type how_often=one_shot" in text
    assert "density" not in idle_text(dense, "never", typed, others_use_density=True)
    assert idle_text(dense, "never", ("rounds=5",), others_use_density=False) is None
    assert idle_text(Plan((PruneEvent(1, 0.1),), 5), "one_shot", typed, others_use_density=False) is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("criterion=snip", "density=0.2"), "so criterion=snip, density=0.2 change nothing"),
        (("density=0.2", "federated/upload=top_weights"), None),  # the upload goes by the density
        (("criterion=snip", "how_often=one_shot", "when=before_training"), None),
    ],
)
def test_a_run_says_what_changes_nothing(tmp_path, perform, typed, said):
    result = perform(tmp_path, *typed, "rounds=1", "logger=none", "dry_run=true")
    assert result.rc == 0, result.text
    assert (
        said in " ".join(result.out.split())
        if said
        else "changes nothing" not in result.out and "change nothing" not in result.out
    )


def test_the_last_line_of_personal_masks_has_the_clients_networks_first(capsys: pytest.CaptureFixture[str]):
    measured = {"test/accuracy": 0.276, "client/accuracy_mean": 0.61, "client/accuracy_tuned_mean": 0.8816}
    metrics = {**measured, "round": 11.0, "density/weights": 0.5, "wire/total_bytes": 1000.0}
    Live(12, 0, None, personal=True).round(metrics)
    line = " ".join(capsys.readouterr().out.split())
    assert "clients' accuracy 61.0 %, tuned accuracy 88.2 %, server's accuracy 27.6 % density 0.5" in line
    Live(12, 0, None).round(metrics)
    assert "12/12 accuracy 27.6 % density 0.5" in " ".join(capsys.readouterr().out.split())
    later = Live(12, 0, None, "mse")
    later.round({**metrics, "test/mse": 0.5, "round": 10.0})
    later.round({**metrics, "round": 11.0})  # not evaluated: the newest value stays
    assert "mse 0.5" in " ".join(capsys.readouterr().out.split())
