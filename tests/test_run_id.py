"""Names of run folders: short, readable, unique by their hash; keys have the same short names in tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedprune import run_id
from fedprune.run_id import LONGEST, METHOD, folder_name, in_short, short_keys


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], ""),
        (["federated.clients=4", "criterion=snip", "seed=3", "density=0.1"], "snip-density=0.1-seed=3-clients=4"),
        (["seed=1", f"+{METHOD}=benchmark/lotteryfl", "whose=shared"], "lotteryfl-shared-seed=1"),
        (["local/penalty=l0", "local.optimizer.lr=0.1"], "penalty=l0-lr=0.1"),
        (["local.optimizer.lr=0.1", "model.lr=2"], "optimizer.lr=0.1-model.lr=2"),
        (["executor=ray", "executor.workers=3", "name=x", "+experiment=y", "data.root=/z", "force=true", "device=cpu"], ""),
        (["data.path=/home/me/people.csv", "~local.penalty"], "path=people.csv-penalty=removed"),
        (['ticket.path="outputs/lth/snip-0.1-1a2b3c4d"', "ticket.head=fresh"], "ticket=1a2b3c4d-head=fresh"),
        (["seed=1", "ticket.path=outputs/lth/snip-99887766/ticket.safetensors"], "ticket=99887766-seed=1"),
        (["what.layers=[linear,conv]"], "layers=_linear,conv_"),
        (["model.rounds=7"], "rounds=7"),
        (["model.data=7"], "model.data=7"),  # not as the group
    ],
)
def test_what_tells_most_comes_first(overrides, name):
    assert in_short(overrides, "1a2b3c4d") == f"{name}-1a2b3c4d".lstrip("-")


def test_a_name_is_never_longer_than_this_and_ends_with_a_whole_word():
    many = ["criterion=snip", "seed=3", *(f"local.key_{number}={number}" for number in range(30))]
    name = in_short(many, "1a2b3c4d")
    assert len(name) <= LONGEST
    # 12 characters of snip-seed=3-, 8 of each further word with its hyphen, 8 of the hash: 76 with seven words, 84 with eight.
    assert name == "snip-seed=3-" + "".join(f"key_{number}={number}-" for number in range(7)) + "1a2b3c4d"
    assert in_short(["model._target_=" + "x" * 300], "1a2b3c4d") == f"_target_={'x' * 24}-1a2b3c4d"


def test_a_finished_run_is_found_by_its_hash_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr(run_id, "folder_hash", lambda config: "1a2b3c4d")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "overrides": {"task": ["federated.clients=4"]}}})
    assert folder_name(_root_=config) == "clients=4-1a2b3c4d"
    old = "federated.clients=4-" + "x" * 190 + "-1a2b3c4d"
    Path(tmp_path / old).mkdir()
    assert folder_name(_root_=config) == old


def test_keys_are_called_by_as_many_words_as_tell_them_apart():
    assert short_keys(["a.b.c", "d.b.c", "e.seed", "density", METHOD, "local/penalty", "x.method"]) == {
        "a.b.c": "a.b.c",
        "d.b.c": "d.b.c",
        "e.seed": "e.seed",
        "density": "density",
        METHOD: "method",
        "local/penalty": "penalty",
        "x.method": "x.method",
    }
