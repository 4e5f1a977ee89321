"""One client's round: Job -> Update. A worker builds its own `ClientRound` once; only messages travel to and from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedprune.data.client import Clients
from fedprune.data.datasets import Dataset
from fedprune.local import optimizer_state
from fedprune.local.module import Batch, LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.regulariser import Regulariser, regularised
from fedprune.local.train import fit, load, set_mode
from fedprune.pruning.companions import fold
from fedprune.pruning.evidence import FROM_DATA, OF_REMOVAL
from fedprune.pruning.mask import apply
from fedprune.randomness import seeded, torch_seed, torch_stream
from fedprune.types import SERVER, Job, Params, Subnet, Update
from fedprune.wire.message import Wire, about, answered_under

CHUNK = 2048  # examples that are gathered and normalised at once: a large client must not copy its whole data
PLACES = 5_120  # of sequences that are evaluated at once: each is an example to the layers inside, and beyond it gets slower


Arrays = dict[str, np.ndarray]
"""Tensors on their way between processes: as torch tensors they would become shared memory."""


@dataclass(frozen=True)
class Slice:
    """A stretch of evaluation data: examples `start` to `stop` of `part`.

    part: `global` is the server's test set; `val` and `test` are all clients' own parts, one client after the other.
    """

    part: str
    start: int
    stop: int


@dataclass(frozen=True)
class Again:
    """Batches that can be gone through more than once, made anew each time: no client's data is held twice."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


@dataclass(frozen=True)
class ClientRound:
    """Everything a client needs besides the job: the module to train, its data, and how it trains.

    examples: how many of its training examples a client measures evidence on (None: all). regularisers: what it adds to its
    training so that weights get ready to be pruned; evidence and evaluation are of the network without noise.
    """

    module: LocalModule
    dataset: Dataset
    clients: Clients
    recipe: Recipe
    wire: Wire
    examples: int | None = None
    regularisers: tuple[Regulariser, ...] = ()

    def run(self, message: bytes, kept: Arrays) -> tuple[bytes, Arrays]:
        """A job's bytes in, its update's bytes out; `kept` goes past the wire."""
        job = replace(self.wire.decode_job(message), kept=_tensors(kept))
        update = self.measure(job) if job.measure else self.train(job)
        return self.wire.encode_update(update, answered_under(job)), {name: t.numpy() for name, t in update.kept.items()}

    def train(self, job: Job) -> Update:
        """Train the subnet that was sent on the client's training part."""
        indices = self.clients.train[job.client]
        subnet = Subnet(job.subnet.params | job.kept, job.subnet.mask)
        with seeded(torch_seed(job.seed, "training", job.clock, job.client), self.module.device):
            batches = self._shuffled(indices, torch_stream(job.seed, "batches", job.clock, job.client))
            momenta, decay = optimizer_state.part(job.kept), self.recipe.lr_decay**job.clock
            with regularised(self.module.net, subnet.mask, self.regularisers, sum(map(len, self.clients.train))) as penalty:
                trained = fit(self.module, subnet, batches, self.recipe, decay, penalty, momenta)
        metrics = {"loss": trained.loss, "steps": trained.steps, "seen": trained.examples}
        kept = {name: trained.params[name] for name in job.kept if name not in momenta} | trained.optimizer
        return Update(job.client, Subnet(trained.params, subnet.mask), len(indices), metrics=metrics, kept=kept)

    def measure(self, job: Job) -> Update:
        """Measure the evidence that was asked for, at the subnet that was sent; train nothing."""
        indices = self.clients.server if job.client == SERVER else self.clients.train[job.client]
        order = torch.randperm(len(indices), generator=torch_stream(job.seed, "evidence", job.round, job.client))
        indices = indices[order[: self.examples]]
        subnet, names = job.subnet, tuple(job.subnet.mask)
        params = {name: value.to(self.module.device) for name, value in fold(subnet.params | job.kept).items()}
        cover = about(answered_under(job), job.about)
        removal = ({name: alive.to(self.module.device) for name, alive in cover.items()},)
        set_mode(self.module, self.recipe)
        evidence = {}
        for name in job.measure:
            with seeded(torch_seed(job.seed, f"evidence {name}", job.round, job.client), self.module.device):
                more = removal if name in OF_REMOVAL else ()
                found = FROM_DATA[name](self.module, params, names, Again(lambda: self._in_order(indices)), *more)
            evidence[name] = apply({n: e.cpu() for n, e in found.items()}, cover)
        return Update(job.client, None, len(indices), evidence, job.about, kept=job.kept)

    def evaluate(self, block: bytes, kept: Arrays, where: Slice) -> tuple[np.ndarray, np.ndarray]:
        """(loss, correct) of every example of a slice, for the network of a wire block."""
        subnet = self.wire.read_subnet(block)
        load(self.module, fold(subnet.params | _tensors(kept)))
        self.module.eval()
        losses, correct = zip(*(self._outcome(batch) for batch in self._evaluation(where)), strict=True)
        return np.concatenate(losses), np.concatenate(correct)

    @torch.no_grad()
    def _outcome(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        losses, correct = self.module.outcome(batch)
        return losses.float().cpu().numpy(), correct.cpu().numpy()

    def _evaluation(self, where: Slice) -> Iterator[Batch]:
        size = CHUNK if self.dataset.y.dim() == 1 else max(PLACES // self.dataset.y[0].numel(), 1)
        if where.part == "global":
            yield from self._batches(self.dataset.test_x, self.dataset.test_y, torch.arange(where.start, where.stop), size)
        else:
            indices = torch.cat(getattr(self.clients, where.part))[where.start : where.stop]
            yield from self._batches(self.dataset.x, self.dataset.y, indices, size)

    def _in_order(self, indices: Tensor) -> Iterator[Batch]:
        return self._batches(self.dataset.x, self.dataset.y, indices, self.recipe.batch_size)

    def _shuffled(self, indices: Tensor, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of `epochs` passes, or `steps` batches of as many passes as needed; each pass in a new order."""
        passes = itertools.count() if self.recipe.epochs is None else range(self.recipe.epochs)
        orders = (indices[torch.randperm(len(indices), generator=generator)] for _ in passes)
        return itertools.islice(itertools.chain.from_iterable(map(self._in_order, orders)), self.recipe.steps)

    def _batches(self, x: Tensor, y: Tensor, indices: Tensor, size: int) -> Iterator[Batch]:
        """Gathered and normalised chunk by chunk, so that a batch is a view. Labels of sequences are bytes until here."""
        for chunk in indices.split(max(CHUNK // size, 1) * size):
            inputs = self.dataset.normalise(x[chunk].to(self.module.device))
            labels = y[chunk].to(self.module.device, torch.int64)
            yield from zip(inputs.split(size), labels.split(size), strict=True)


def _tensors(arrays: Arrays) -> Params:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
