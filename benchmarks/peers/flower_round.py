"""Seconds of an empty round of Flower and of a round of fedprune over it, on three SuperNodes of this machine.

`.venv-federation/bin/python benchmarks/peers/flower_round.py [--rounds N]`. The empty round sends an empty record to each node
and waits for three empty answers, by Flower's own `send_and_receive`. That of fedprune trains lenet_300_100 on digits for one
step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from fedprune.deployment import here, launch
from fedprune.deployment.__main__ import main as deployment
from fedprune.deployment.local_data import SERVER_FILE, client_file
from fedprune.deployment.serve import Order

EMPTY = """
import json, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server_app = ServerApp()
client_app = ClientApp()


@client_app.query()
def answer(message, context):
    return Message(RecordDict({}), reply_to=message)


@server_app.main()
def main(grid, context):
    order = json.loads(context.run_config["order"])
    while len(nodes := [*grid.get_node_ids()]) < 3:
        time.sleep(0.5)
    seconds = []
    for _ in range(order["patience"]):
        started = time.perf_counter()
        answers = [*grid.send_and_receive([Message(RecordDict({}), node, "query") for node in nodes])]
        assert len(answers) == 3 and not any(answer.has_error() for answer in answers)
        seconds.append(time.perf_counter() - started)
    open(order["data"], "w").write(json.dumps(seconds))
"""


def empty(rounds: int, folder: Path, environment: dict[str, str]) -> list[float]:
    """Return the seconds of each empty round."""
    app, found = folder / "app", folder / "seconds.json"
    app.mkdir()
    launch.write_app(Order((), str(found), str(folder), rounds), app)
    (app / "ours.py").write_text(EMPTY, encoding="utf-8")
    subprocess.run([launch.program("flwr"), "run", str(app), "here", "--stream"], env={**os.environ, **environment}, check=True)
    return list(json.loads(found.read_text(encoding="utf-8")))


def ours(rounds: int, folder: Path, environment: dict[str, str]) -> list[float]:
    """Return the seconds of each round of fedprune that has no evaluation."""
    overrides = (f"rounds={rounds}", f"eval_every={rounds}", *ALIKE)
    launch.start(Order(overrides, str(folder / SERVER_FILE), str(folder)), "here", environment)
    (metrics,) = folder.glob("outputs/*/*/metrics.jsonl")
    return [json.loads(line)["time/train_s"] for line in metrics.read_text(encoding="utf-8").splitlines()]


ALIKE = ("federated.clients=3", "federated.cohort=3", "federated.tuned=0", "local.epochs=null", "local.steps=1", "logger=none")


def main() -> None:
    """Print both medians."""
    parser = argparse.ArgumentParser(description="Seconds of a round of Flower, empty and with fedprune")
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            deployment(["split", name, *ALIKE])
        with here.federation([folder / client_file(client) for client in range(3)], folder / "log") as environment:
            seconds = {
                "Flower's empty round": empty(rounds, folder, environment),
                "fedprune": ours(rounds, folder, environment),
            }
    for contestant, values in seconds.items():
        print(f"{contestant}: median {statistics.median(values):.1f} s, of {[round(value, 1) for value in values]}")


if __name__ == "__main__":
    main()
