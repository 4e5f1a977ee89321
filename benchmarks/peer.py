"""A peer: another framework in an environment of its own (`make peers`), which trains a round when it is its turn."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
PEERS = {"flower": "Flower", "pfl": "pfl-research"}
PATIENCE = 900  # seconds that a peer may take for its start, or for a round; one that has died is noticed at once


class Peer:
    """A framework that runs as it would by itself, but waits before every round until it is told to go on.

    All its `lines` processes that train are told at once, and the round is over when all of them say so. versions: of its
    packages, as it reports them. Raises SystemExit with what it printed last if it ends too early.
    """

    def __init__(self, name: str, command: list[str], folder: Path, lines: int):
        self._name, self._log, address = name, folder / f"{name}.log", str(folder / f"{name}.socket")
        environment = os.environ | {
            **{"BENCHMARK_ADDRESS": address, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE / "peers")},
            **{"FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        }
        with socket.socket(socket.AF_UNIX) as listening, self._log.open("w", encoding="utf-8") as log:
            listening.bind(address)
            listening.listen(lines)
            listening.settimeout(1.0)
            self.process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
            self._lines = [self._accepted(listening) for _ in range(lines)]
        self.versions, *_ = [self._heard(line) for line in self._lines]

    def train(self, number: int) -> None:
        """One round."""
        for line in self._lines:
            line.send("train")
        for line in self._lines:
            self._heard(line)

    def parameters(self, number: int) -> Tensor:
        """All parameters after this round, float32, end to end."""
        self._lines[0].send("parameters")
        return torch.from_numpy(np.frombuffer(self._lines[0].recv_bytes(), np.float32).copy())

    def close(self) -> None:
        """Tell it to end, and wait until it has."""
        with suppress(OSError):  # it may have ended by itself
            for line in self._lines:
                line.send("stop")
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.terminate()

    def _accepted(self, listening: socket.socket) -> Connection:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                accepted, _ = listening.accept()
            except TimeoutError:
                continue
            accepted.setblocking(True)
            return Connection(accepted.detach())
        raise self._failure()

    def _heard(self, line: Connection) -> dict[str, str]:
        try:
            if line.poll(PATIENCE):
                return line.recv()
        except (EOFError, ConnectionResetError):
            pass
        raise self._failure()

    def _failure(self) -> SystemExit:
        self.process.terminate()
        return SystemExit(
            f"{PEERS[self._name]} does not answer; what it printed last:\n{self._log.read_text(encoding='utf-8')[-3000:]}"
        )


def peer(name: str, folder: Path, workers: int) -> Peer:
    """The peer `flower` or `pfl` on the job that lies in `folder`. Raises SystemExit if its environment is not there."""
    environment = HERE.parent / f".venv-{name}"
    python, script = str(environment / "bin" / "python"), str(HERE / "peers" / f"{name}_rounds.py")
    if not (environment / ".installed").exists():
        raise SystemExit(f"there is no {environment.name}: type make peers, or leave it out with --without {name}")
    if name == "flower":
        return Peer(name, [python, script, str(folder), str(workers)], folder, lines=1)
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={workers}"]
    return Peer(name, [*torchrun, script, str(folder)], folder, lines=workers)
