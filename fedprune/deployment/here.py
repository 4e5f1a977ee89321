"""A whole federation on this machine: a SuperLink and a SuperNode for each client, in processes of their own.

All of them have a folder of their own as FLWR_HOME. By it their processes are found and ended, those that they started too:
some of Flower's outlive the program that started them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedprune.deployment.launch import program
from fedprune.errors import RunError
from fedprune.parent_process import lives

PATIENCE = 60.0
"""Seconds until the SuperLink has to listen."""

GRACE = 5.0
"""Seconds that processes have to end by themselves before they are killed."""

CONNECTION = """
[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


@contextlib.contextmanager
def federation(files: Sequence[Path], log: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink, and a SuperNode for each of these files of data; yield the environment in which `flwr run` finds them
    (as `here`). At the end, and at Ctrl-C, none of their processes is left. log: the folder of what they say."""
    with tempfile.TemporaryDirectory(prefix="fedprune_flower_") as home:
        environment = _environment(home)
        log.mkdir(parents=True, exist_ok=True)
        try:
            port, *ports = _free_ports(1 + len(files))
            Path(home, "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
            superlink = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
            first = _started([*superlink, "--disable-runtime-dependency-installation"], environment, log / "superlink.log")
            _wait_for(port, first, log / "superlink.log")
            for number, (own, path) in enumerate(zip(ports, files, strict=True)):
                node = [
                    "flower-supernode",
                    "--insecure",
                    "--superlink",
                    f"127.0.0.1:{port}",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(own),
                ]
                _started([*node, "--node-config", f'data.local="{path.absolute()}"'], environment, log / f"node_{number}.log")
            yield environment
        finally:
            end_all(home)


def _environment(home: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    modules = os.pathsep.join(os.path.abspath(folder) for folder in sys.path if folder)
    ours = {"FLWR_HOME": home, "FLWR_TELEMETRY_ENABLED": "0", "PATH": path, "PYTHONPATH": modules}
    return {**os.environ, **ours, "OMP_NUM_THREADS": "1"}


def _started(words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start one of Flower's programs in a session of its own: Ctrl-C is this process's to handle."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [program(words[0]), *words[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise RunError(f"the SuperLink does not start; what it says is in {log}")


def processes_of(home: str) -> list[int]:
    """Return the processes whose FLWR_HOME is this folder."""
    wanted, found = f"FLWR_HOME={home}".encode(), []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [number for number in found if number != os.getpid() and lives(number)]


def end_all(home: str) -> None:
    """End all processes of a federation: first they are asked to, then killed."""
    for kind, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        ends = time.monotonic() + grace
        for number in processes_of(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, kind)
        while processes_of(home) and time.monotonic() < ends:
            time.sleep(0.1)
