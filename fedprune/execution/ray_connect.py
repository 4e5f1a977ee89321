"""The connection to Ray: without its words on the terminal, and quick to say what is wrong with an address."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedprune.errors import ConfigError, RunError
from fedprune.execution.processes import available_cores

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what its daemons say; read when it is imported

try:
    import ray as ray  # ray.py has it from here
except ImportError as missing:
    raise ConfigError(["executor=ray needs Ray, which is not installed: pip install 'fedprune[ray]'"]) from missing

SECONDS = 5
"""Seconds that the machine of an address may take to answer at all: Ray itself would wait for minutes."""

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""A greeting that every server of Ray's answers with SETTINGS, a frame of kind 4 (HTTP/2, RFC 9113, 3.4 and 4.1)."""


def connect(address: str | None, workers: int | None) -> None:
    """Connect this process to the cluster of this address; None: one of its own on this machine, with a CPU for each worker.

    Raises ConfigError for what is no address, and RunError for one at which there is no cluster.
    """
    own: dict[str, Any] = {"num_cpus": workers or available_cores(), "include_dashboard": False}
    if address is not None:
        _check(address)
    try:
        with _without_traces(), _without_network_warning(), _paths_of_this_process():
            ray.init(address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **({} if address else own))
    except BaseException as error:
        ray.shutdown()
        if not isinstance(error, Exception):
            raise
        if address is None:
            raise RunError(f"Ray cannot start here ({error}): choose executor=processes") from error
        raise RunError(f"executor.address={address}: no connection to a Ray cluster ({error}). {REMEDY}") from error


REMEDY = "Start one (ray start --head), or choose executor.address=null for this machine alone, or executor=processes"


def _check(address: str) -> None:
    """Check that an address is one, and that Ray answers there."""
    named = _last_started() if address == "auto" else address
    if not named:
        return
    host, port = _place(named)
    try:
        with socket.create_connection((host, port), SECONDS) as connection:
            connection.settimeout(SECONDS)
            connection.sendall(HELLO)
            speaks = connection.recv(9)[3:4] == b"\4" or "RAY_USE_TLS" in os.environ
    except OSError as error:
        raise RunError(f"executor.address={address}: {host}:{port} does not answer ({error}). {REMEDY}") from error
    if not speaks:
        raise RunError(f"executor.address={address}: what answers at {host}:{port} is not Ray. {REMEDY}")


def _last_started() -> str | None:
    """Return the address that `auto` stands for, if any: Ray takes it although its cluster may have been killed since."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return os.environ.get("RAY_ADDRESS") or Path(folder, "ray", "ray_current_cluster").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _place(address: str) -> tuple[str, int]:
    """Return the host and port of an address."""
    try:
        split = urlsplit(address if "://" in address else f"//{address}")
        if split.scheme in ("", "ray") and split.hostname and split.port:
            return split.hostname, split.port
    except ValueError:
        pass
    raise ConfigError([f"executor.address={address} must be null, auto, host:6379 or ray://host:10001"])


@contextmanager
def _without_traces() -> Iterator[None]:
    """Suppress warnings, and put back the reaction to a scheduler's "stop" (SIGTERM)."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_network_warning() -> Iterator[None]:
    """Drop the line that Ray's core writes to stderr on a machine without a network, before its log level can be set."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            os.write(2, b"".join(line for line in written if b"network_util.cc" not in line))


@contextmanager
def _paths_of_this_process() -> Iterator[None]:
    """Let processes that start meanwhile find modules where this process does."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
