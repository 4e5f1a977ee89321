"""Several loggers at once: how they are typed, and what is refused."""

from __future__ import annotations

import pytest

from fedprune.command.words import arguments
from fedprune.errors import ConfigError
from fedprune.running.loggers import Several, Wandb, csv, none
from helpers.wandb_files import offline_runs

TINY = (
    *("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=1"),
    *("local.batch_size=16", "executor=serial", "federated.tuned=0"),
)


def test_a_list_of_options_is_each_option_below_logger():
    words = ["logger=several", "+logger@logger.wandb=wandb", "+logger@logger.csv=csv"]
    assert arguments(["seed=1", "logger=[wandb, csv]", "-m"]) == ["-m", "seed=1", *words]
    assert arguments(["logger=[wandb,'csv',wandb]"]) == words
    assert arguments(["logger=csv", "what.skip=[first,last]"]) == ["logger=csv", "what.skip=[first,last]"]


def test_wandb_beside_csv_with_keys_of_each_and_a_folder_without_their_names(command, folder):
    assert command(*TINY, "logger=[wandb,csv]", "logger.wandb.project=mine").rc == 0
    assert "logger" not in folder().name and "wandb" not in folder().name
    ((_, rows),) = offline_runs(folder())
    assert [row["round"] for row in rows] == [0, 1]
    assert (folder() / "metrics.csv").exists()


def test_loggers_are_no_columns_of_a_sweeps_table(command, outputs):
    assert command(*TINY, "logger=[csv]", "seed=0,1", "-m").rc == 0
    assert "logger" not in (outputs / "fedprune" / "table.csv").read_text().partition("\n")[0]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({}, r"type logger=\[wandb,csv\]"),
        ({"a": Wandb(), "b": Wandb(project="other")}, "a and b both write to the W&B run of this process"),
        ({"a": csv, "b": csv}, "a and b both write to metrics.csv"),
        ({"a": 5}, "logger.a=5 is no logger"),
        ({"a": object()}, r"logger.a is a builtins.object: type logger=lightning 'logger.loggers=\["),
    ],
)
def test_what_makes_no_sense_together_is_refused(chosen, reason):
    with pytest.raises(ConfigError, match=reason):
        Several(**chosen)


def test_loggers_of_different_places_are_taken():
    Several(a=Wandb(), b=csv, c=none, d=none)
