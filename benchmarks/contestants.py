"""Who takes part. All of them train a round when it is their turn (`train`, on the clock), and then say what the network has
come to (`parameters`, off the clock)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from floor import Floor
from job import Job
from peer import PEERS, peer
from torch import Tensor

from fedprune.execution import available_cores
from fedprune.experiment.experiment import Experiment
from fedprune.pruning.criterion import magnitude
from fedprune.pruning.mask import ones, shrink

FLOOR, MASKED_FLOOR, DENSE, MASKED = "floor", "floor, masked", "fedprune", "fedprune, masked"
DENSITY = 0.1


class Contestant(Protocol):
    """Rounds are trained in order, from 0."""

    def train(self, number: int) -> None:
        """One round."""

    def parameters(self, number: int) -> Tensor:
        """All parameters after this round, float32, end to end. Asked for once after each round."""

    def close(self) -> None:
        """End its processes."""


class Fedprune:
    """An experiment with its workers up."""

    def __init__(self, made: Experiment):
        self._executor = made.executor()
        self._loop = made.loop(self._executor)
        self._state = self._loop.start()

    def train(self, number: int) -> None:
        self._state, _ = self._loop.round(self._state)

    def parameters(self, number: int) -> Tensor:
        params = self._state.server.params
        return torch.cat([params[name].flatten() for name in self._loop.trainable])

    def close(self) -> None:
        self._executor.close()


def masked_floor(made: Experiment, job: Job) -> Floor:
    """A floor that multiplies weights by the mask of fedprune's one event, which is made before training."""
    weights = {name: made.net.get_parameter(name).detach() for name in made.axes.what.names}
    mask = shrink(ones(weights, tuple(weights)), magnitude(weights), DENSITY, made.axes.what)
    return Floor(made.net, job, available_cores(), {name: alive.float() for name, alive in mask.items()})


def floors(made: Experiment, job: Job) -> dict[str, Callable[[], Contestant]]:
    """How to start the floor, and the one that masks."""
    return {FLOOR: lambda: Floor(made.net, job, available_cores()), MASKED_FLOOR: lambda: masked_floor(made, job)}


def ours(dense: Experiment, masked: Experiment) -> dict[str, Callable[[], Contestant]]:
    """How to start fedprune."""
    return {DENSE: lambda: Fedprune(dense), MASKED: lambda: Fedprune(masked)}


@contextmanager
def peers(job: Job, without: Sequence[str]) -> Iterator[dict[str, Callable[[], Contestant]]]:
    """How to start the peers, while the job lies in a folder for them."""
    with tempfile.TemporaryDirectory() as folder:
        job.write(Path(folder))
        yield {PEERS[name]: partial(peer, name, Path(folder), available_cores()) for name in PEERS if name not in without}


@contextmanager
def up(makers: dict[str, Callable[[], Contestant]]) -> Iterator[dict[str, Contestant]]:
    """All of them, up and waiting; they are ended afterwards."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(closing(make())) for name, make in makers.items()}
