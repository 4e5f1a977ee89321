"""The benchmark's rounds in pfl-research: `torchrun --nproc-per-node WORKERS pfl_rounds.py FOLDER`, in .venv-pfl.

At its best setting: one single-threaded process per core, clients dealt out by their sizes, no evaluation of clients, metrics
sent to nobody, the fused optimizer. What the clients of a round train on is gathered before its clock starts.
"""

from __future__ import annotations

import itertools
import sys
from functools import partial

import given
import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F

NEVER = 10**9


class Classifier(nn.Module):
    """A network with the loss and the metrics that pfl asks it for."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict:
        return {}


class Turns(TrainingProcessCallback):
    """Waits for its turn before every round, and gathers the data of the round meanwhile.

    A client is named by its place among all clients of all rounds.
    """

    def __init__(self, data: given.Given):
        self._data, self._line, self._ready = data, given.connect(), {}
        self._rounds, self._cohort = data.ends.shape

    def dataset(self, client: int) -> PyTorchTensorDataset:
        return self._ready[client]

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self._gather(0)
        self._wait(model)
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if central_iteration + 1 < self._rounds:
            self._gather(central_iteration + 1)
        return not self._wait(model), Metrics()

    def _gather(self, number: int) -> None:
        self._ready = {}
        for place in range(self._cohort):
            indices = self._data.indices(number, place)
            tensors = self._data.inputs[indices], self._data.labels[indices]
            self._ready[number * self._cohort + place] = PyTorchTensorDataset(tensors)

    def _wait(self, model: PyTorchModel) -> bool:
        def parameters() -> np.ndarray:
            return np.concatenate([p.detach().numpy().ravel() for p in model.pytorch_model.parameters()])

        return given.my_turn(self._line, parameters, "pfl", "torch")


def main(folder: str) -> None:
    """All rounds, as long as there are turns."""
    torch.set_num_threads(1)
    data = given.read(folder)
    rounds, cohort = data.ends.shape
    turns, clients = Turns(data), range(rounds * cohort)
    sizes = dict(zip(clients, itertools.chain.from_iterable(map(data.examples, range(rounds))), strict=True))
    sampler = partial(next, itertools.cycle(clients))
    federated = FederatedDataset(turns.dataset, sampler, user_id_to_weight=sizes)
    model = Classifier(data.net())
    sgd = partial(torch.optim.SGD, momentum=data.momentum, fused=True)
    length = {"local_num_epochs": 1 if data.limit is None else None, "local_num_steps": data.limit}
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(rounds, NEVER, train_cohort_size=cohort, val_cohort_size=None),
        backend=SimulatedBackend(federated, federated, postprocessors=[WeightByDatapoints()]),
        model=PyTorchModel(model, sgd, torch.optim.SGD(model.parameters(), lr=1.0, fused=True)),
        model_train_params=NNTrainHyperParams(**length, local_learning_rate=data.lr, local_batch_size=data.batch),
        model_eval_params=NNEvalHyperParams(local_batch_size=data.batch),
        callbacks=[turns],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main(sys.argv[1])
