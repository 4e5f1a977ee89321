"""The benchmark's rounds in Flower's simulation on Ray: `python flower_rounds.py FOLDER WORKERS`, in .venv-flower.

One worker of one CPU per core, 100 nodes, FedAvg weighted by examples, no evaluation by clients, no telemetry; every interval
at which Flower looks for messages is as shipped. Workers map the data from files and keep their network from client to client.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable

import given
import numpy as np
import torch
from flower_client import app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

CLIENTS = 100


class GivenCohorts(FedAvg):
    """FedAvg on the cohorts of the benchmark: which node stands for which client is written in the message."""

    def __init__(self, folder: str, cohort: int):
        super().__init__(fraction_evaluate=0.0)
        self._folder, self._cohort = folder, cohort

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        nodes = list(grid.get_node_ids())[: self._cohort]
        which = {"folder": self._folder, "round": server_round - 1}
        contents = [{"arrays": arrays, "config": ConfigRecord({**which, "place": place})} for place in range(len(nodes))]
        return [Message(RecordDict(c), node, MessageType.TRAIN) for c, node in zip(contents, nodes, strict=True)]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed or len(replies) != self._cohort:  # Flower would go on with those that answered, and be faster for it
            raise RuntimeError(f"{len(replies) - len(failed)} of {self._cohort} clients answered: {failed}")
        return super().aggregate_train(server_round, replies)


def serve(folder: str) -> ServerApp:
    """A server that trains a round when it is its turn."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        data, line = given.read(folder), given.connect()
        rounds, cohort = data.ends.shape

        def after(server_round: int, arrays: ArrayRecord) -> None:
            def parameters() -> np.ndarray:
                return np.concatenate([array.numpy().ravel() for array in arrays.values()])

            if not given.my_turn(line, parameters, "flwr", "ray", "torch") and server_round < rounds:
                raise SystemExit

        begin = ArrayRecord(data.net().state_dict())
        GivenCohorts(folder, cohort).start(grid, begin, num_rounds=rounds, evaluate_fn=after)

    return server


if __name__ == "__main__":
    folder, workers = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    resources = {"init_args": {"num_cpus": workers}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    try:
        run_simulation(serve(folder), app, CLIENTS, backend_config=resources)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the server's thread would go on waiting for clients that never come
