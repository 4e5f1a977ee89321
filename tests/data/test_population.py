"""Clients that are drawn when they are asked for."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprune.data.datasets import digits
from fedprune.data.federate import federate
from fedprune.data.population import ClassMix, Drawn, sizes
from fedprune.errors import ConfigError, DataError

HOW = ClassMix(alpha=0.5, examples=20, min_examples=3)


def test_a_million_clients_are_drawn_when_they_are_asked_for():
    data = digits()
    clients = federate(data, HOW, 1_000_000, seed=3, proxy=100, evaluated=50)
    assert len(clients.train) == 1_000_000 and isinstance(clients.train, Drawn)
    assert (sizes(clients.train)[-1], sizes(clients.val)[-1], sizes(clients.test)[-1]) == (16, 2, 2)
    last = clients.train[999_999]
    assert last.dtype == torch.int64 and len(last) == len(last.unique()) == 16
    assert torch.equal(last, last.sort().values)
    assert torch.equal(last, federate(data, HOW, 1_000_000, seed=3, proxy=100).train[999_999])
    assert not torch.equal(last, federate(data, HOW, 1_000_000, seed=4, proxy=100).train[999_999])
    assert not set(last.tolist()) & set(clients.server.tolist())
    assert len(clients.seen) == len({*clients.seen}) == 50 and list(clients.seen) == sorted(clients.seen)
    with pytest.raises(IndexError):
        clients.train[1_000_000]


def test_a_client_is_the_same_whatever_the_size_of_the_population():
    few, many = (federate(digits(), HOW, number, seed=0) for number in (10, 10_000))
    assert all(torch.equal(few.train[client], many.train[client]) for client in range(10))


def test_nobodys_test_example_is_anybodys_training_example():
    clients = federate(digits(), HOW, 400, seed=0)
    parts = [{*torch.cat(list(part)).tolist()} for part in (clients.train, clients.val, clients.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len(parts[0]) > 1_000  # of 1,150: everything is used by somebody


@pytest.mark.parametrize(("alpha", "classes"), [(0.01, (1.0, 1.5)), (100.0, (7.0, 10.0))])
def test_alpha_says_how_many_classes_a_client_has(alpha, classes):
    data = digits()
    clients = federate(data, replace(HOW, alpha=alpha), 200, seed=0)
    found = [len(data.y[clients.train[client]].unique()) for client in range(200)]
    assert classes[0] <= np.mean(found) <= classes[1]


def test_a_clients_parts_have_one_class_mix_and_all_clients_together_have_every_class_alike():
    data = digits()
    clients = federate(data, replace(HOW, alpha=0.01), 500, seed=0)
    same = [set(data.y[clients.test[c]].tolist()) <= set(data.y[clients.train[c]].tolist()) for c in range(500)]
    assert np.mean(same) > 0.9  # at alpha 0.01 nearly every mix is one class
    counts = Counter(data.y[torch.cat(list(clients.train))].tolist())
    assert len(counts) == 10 and max(counts.values()) < 2 * min(counts.values())


def test_what_cannot_be_drawn_is_refused_with_what_to_type():
    with pytest.raises(ConfigError, match="partition.examples=2 leaves a client too little: type 10 or more"):
        ClassMix(examples=2)
    with pytest.raises(DataError, match="choose partition.examples=1[0-9]{2} or fewer"):
        federate(digits(), replace(HOW, examples=1000), 10, seed=0)


def test_all_are_evaluated_unless_there_are_more_than_are_asked_for():
    assert list(federate(digits(), HOW, 50, seed=0, evaluated=50).seen) == list(range(50))
    assert list(federate(digits(), HOW, 50, seed=0).seen) == list(range(50))


def test_a_run_of_a_hundred_thousand_clients_looks_at_some_of_them(command):
    few = ("rounds=1", "density=1", "federated.cohort=2", "logger=none", "executor=serial")
    result = command("partition=class_mix", "federated.clients=100000", "federated.evaluated=30", *few)
    assert result.rc == 0, result.text
    (summary,) = Path("outputs/fedprune").glob("*/summary.json")
    metrics = json.loads(summary.read_text())["metrics"]
    assert 0 < metrics["client/accuracy_mean"] < 1 and metrics["train/examples"] == 2 * 80
    assert (metrics["client/accuracy_mean"] * 30 * 10) % 1 == pytest.approx(0)  # thirty clients of ten examples each
    assert not (summary.parent / "partition.safetensors").exists()
