"""The command line of Flower, filled in: an app that holds the order of a run, and `flwr run` of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fedprune.deployment.serve import Order

APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedprune-run"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedprune"

[tool.flwr.app.components]
serverapp = "ours:server_app"
clientapp = "ours:client_app"

[tool.flwr.app.config]
order = {order}
"""

OURS = "from fedprune.deployment.flower import client_app, server_app\n\n__all__ = ['client_app', 'server_app']\n"


def write_app(order: Order, folder: Path) -> None:
    """Write Flower's app of an order: it holds no code but an import, for all is in the installed fedprune of each machine."""
    (folder / "pyproject.toml").write_text(APP.replace("{order}", json.dumps(order.text())), encoding="utf-8")
    (folder / "ours.py").write_text(OURS, encoding="utf-8")


def program(name: str) -> str:
    """Return the path of one of Flower's programs, beside this Python."""
    return str(Path(sys.executable).parent / name)


def start(order: Order, superlink: str, environment: Mapping[str, str] | None = None) -> int:
    """Hand the order to a SuperLink and show what its ServerApp says until it ends. Return 0 if the run is done, else 1. At
    Ctrl-C the run is stopped. superlink: the name of a connection in Flower's config.toml ("": its default)."""
    around = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", **(environment or {})}
    named = [superlink] if superlink else []
    with tempfile.TemporaryDirectory() as folder:
        write_app(order, Path(folder))
        words = [program("flwr"), "run", folder, *named, "--stream"]
        with subprocess.Popen(words, env=around, stdout=subprocess.PIPE, text=True, errors="replace") as process:
            assert process.stdout is not None, "it was asked for"
            run = ""
            try:
                for line in process.stdout:
                    run = run or _run_in(line)
                    print(line, end="", flush=True)
            except KeyboardInterrupt:
                process.terminate()
                if run:
                    subprocess.run([program("flwr"), "stop", run, *named], env=around, check=False, stdout=subprocess.DEVNULL)
                raise
        return 0 if run and _is_done(run, named, around) else 1


def _run_in(line: str) -> str:
    """Return the number of the run that Flower has started, if this line says so, else ""."""
    found = re.search(r"started run (\d+)", line)
    return found[1] if found else ""


def _is_done(run: str, named: list[str], environment: Mapping[str, str]) -> bool:
    """Return whether Flower says that a run is completed: `flwr run` itself does not."""
    words = [program("flwr"), "ls", *named, "--run-id", run, "--format", "json"]
    said = subprocess.run(words, env=environment, check=False, capture_output=True, text=True).stdout
    return "finished:completed" in said
