"""Actors of Ray's do what processes do. One cluster for all tests here, of this process alone, with room for two workers."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedprune.errors import RunError
from fedprune.execution import Executor, employed
from helpers.contract import Contract, Tasks, gone, tasks, wait_for

ray = pytest.importorskip("ray")
cluster = pytest.importorskip("fedprune.execution.ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.CRITICAL}
        with warnings.catch_warnings(action="ignore"):
            ray.init("local", num_cpus=2, object_store_memory=100_000_000, **quiet)
    yield
    ray.shutdown()
    gc.collect()  # here, and not in a process that is forked from this one


BOTH = ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "rounds=3", "when.stop=1", "federated.cohort=3")
BOTH += ("model=resnet20", "model.norm=batch", "federated.batchnorm=local", "local.steps=1")
"""What the two runs of Contract have, in one: an actor takes seconds to start."""


class TestRay(Contract):
    option = "ray"
    begin = cluster.Ray

    @pytest.fixture(params=[2])
    def workers(self, request) -> int:
        return request.param

    @pytest.fixture(scope="class")
    def serial(self, tiny, play) -> dict[tuple[str, ...], Any]:
        return {BOTH: play(tiny(*BOTH))}

    @pytest.mark.parametrize("overrides", [BOTH], ids=["rigl and batchnorm"])
    def test_a_run_gives_what_one_process_gives_bit_for_bit(self, overrides, workers, tiny, play, serial, differences):
        super().test_a_run_gives_what_one_process_gives_bit_for_bit(overrides, workers, tiny, play, serial, differences)


def workers_of(executor: Executor) -> set[int]:
    """Who answers, if everybody has something to do."""
    return {worker for *_, worker in executor.map(tasks(*"abcdefghijkl"), [0] * 12)}


@pytest.mark.parametrize("workers", [None, 5])
def test_workers_are_as_many_as_the_cluster_has_cpus_and_those_without_hold_up_nobody(workers):
    with employed(cluster.Ray(Tasks, workers)) as executor:
        assert wait_for(lambda: len(workers_of(executor)) == 2)
        seen = workers_of(executor)
    assert wait_for(lambda: all(gone(worker) for worker in seen))
    assert ray.is_initialized()  # it was there before


def test_where_no_cpu_is_free_that_is_said_and_workers_begin_when_one_is(monkeypatch, caplog):
    monkeypatch.setattr(cluster, "PATIENCE", 0.1)
    with employed(cluster.Ray(Tasks, 2)) as first:
        assert wait_for(lambda: len(workers_of(first)) == 2)
        caplog.clear()
        second = cluster.Ray(Tasks, 1)
        assert "no CPU of the Ray cluster is free" in caplog.text
    with employed(second):
        assert [name for name, *_ in second.map(tasks("a"), [0])] == ["a"]


class Holder:
    """Stands in for a ClientRound: says where its data lie in memory."""

    def __init__(self, data: torch.Tensor):
        self._data = data

    def mapping(self) -> tuple[int, str]:
        """(their sum, the permissions of the mapping)."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, permissions, *_ = line.split()
            start, stop = (int(end, 16) for end in place.split("-"))
            if start <= self._data.data_ptr() < stop:
                return int(self._data.sum()), permissions
        raise AssertionError("nowhere")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_actors_of_a_machine_share_one_copy_of_the_data():
    data = torch.arange(1_000_000)
    with employed(cluster.Ray(functools.partial(Holder, data), 2)) as executor:
        for total, permissions in executor.map([("mapping", ())] * 4, [0] * 4):
            assert total == int(data.sum())
            assert permissions.endswith("s"), "private memory: a copy"


def test_a_machine_with_other_versions_is_refused(monkeypatch):
    monkeypatch.setattr(cluster, "VERSIONS", {"fedprune": "0.0", "torch": "1.0"})
    with pytest.raises(RunError, match=r"'torch': '1\.0'} here.*the same versions on each of its machines"):
        cluster.Ray(Tasks, 1)
    assert ray.is_initialized()
