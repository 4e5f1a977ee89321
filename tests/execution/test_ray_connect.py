"""What is said where there is no Ray: not installed, or not at the address; and how a run leaves its own."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedprune.errors import ConfigError, RunError
from helpers.contract import wait_for
from helpers.forked import Forked

pytestmark = pytest.mark.slow

TINY = (
    *("rounds=100000", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=3"),
    *("local.batch_size=16", "logger=none", "eval_every=1000", "executor=ray", "executor.workers=2"),
)

OURS = ("fedprune: ", "model ", "data ", "plan: ", "round ")
"""How lines begin that every run prints."""


def test_without_ray_what_to_install_is_told_before_anything_is_trained(tiny, monkeypatch):
    for module in ("ray_connect", "ray"):
        monkeypatch.delitem(sys.modules, f"fedprune.execution.{module}", raising=False)
        monkeypatch.delattr(f"fedprune.execution.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^executor=ray needs Ray, .*: pip install 'fedprune\[ray\]'$"):
        tiny("executor=ray")


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("executor.workers=0", ConfigError, "executor.workers=0 must be at least 1"),
        ("executor.address=here", ConfigError, "executor.address=here must be null, auto, host:6379 or ray://host:10001"),
        ("executor.address=http://here:1", ConfigError, "executor.address=http://here:1 must be null, auto"),
        ("executor.address=here:port", ConfigError, "executor.address=here:port must be null, auto"),
        ("executor.address=127.0.0.1:9", RunError, "127.0.0.1:9 does not answer .*ray start --head.*executor.address=null"),
        ("executor.address=ray://127.0.0.1:9", RunError, "127.0.0.1:9 does not answer .*ray start --head"),
    ],
)
def test_a_wrong_address_is_told_with_what_to_type(override, error, message, tiny):
    pytest.importorskip("ray")
    with pytest.raises(error, match=message):
        tiny("executor=ray", override).executor()


@pytest.fixture
def auto(tiny, monkeypatch, tmp_path) -> Callable[[], object]:
    """auto() -> what comes of executor.address=auto on a machine on which no cluster was started."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return lambda: tiny("executor=ray", "executor.address=auto").executor()


def test_auto_without_a_cluster_is_told_with_what_to_type(auto):
    with pytest.raises(RunError, match=r"executor.address=auto: no connection to a Ray cluster .*ray start --head"):
        auto()


def test_auto_heeds_the_address_in_the_environment(auto, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(RunError, match="executor.address=auto: 127.0.0.1:9 does not answer"):
        auto()


def test_auto_does_not_wait_for_a_cluster_that_was_killed(auto, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")  # as `ray start` leaves it
    with pytest.raises(RunError, match="executor.address=auto: 127.0.0.1:9 does not answer"):
        auto()


@pytest.fixture
def another_server() -> Iterator[int]:
    """The port of a server that says something else than Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def say_once() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=say_once)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_what_is_not_ray_is_recognised(another_server, tiny):
    pytest.importorskip("ray")
    address = f"127.0.0.1:{another_server}"
    with pytest.raises(RunError, match=f"executor.address={address}: what answers at {address} is not Ray"):
        tiny("executor=ray", f"executor.address={address}").executor()


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_ctrl_c_leaves_a_checkpoint_no_process_and_not_a_word_of_rays(outputs):
    pytest.importorskip("ray")
    run = Forked(outputs.parent, *TINY)
    try:
        begun = wait_for(lambda: size(outputs, "metrics.jsonl") > 0 or run.returncode is not None, seconds=100)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        said = "".join(run.communicate(timeout=100))
        assert begun and run.returncode == 130, said
        assert wait_for(lambda: not group(run.pid))
    finally:
        if group(run.pid):
            os.killpg(run.pid, signal.SIGKILL)
    assert size(outputs, "state.safetensors") > 0
    *rest, last = [line for line in said.splitlines() if line and not line.startswith(OURS)]
    assert rest == [] and last == "interrupted; what is done is kept, and the same command goes on from there"


def size(outputs: Path, name: str) -> int:
    """The bytes of the one file of this name, if there is one."""
    return sum(path.stat().st_size for path in outputs.rglob(name))


def group(number: int) -> bool:
    """Whether a process group has anybody in it."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True
