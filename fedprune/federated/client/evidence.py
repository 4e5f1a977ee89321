"""Evidence on a client: for a prune event of the server's, which asks for it in a job, or for one of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedprune.data.batches import Repeatable
from fedprune.errors import RunError
from fedprune.federated.client.context import Context
from fedprune.federated.client.prune_event import OnClient
from fedprune.local.memory_format import as_laid_out
from fedprune.local.module import Batch
from fedprune.local.outcomes import measured as outcomes_of
from fedprune.local.state import squared_gradients
from fedprune.local.train import load, set_mode
from fedprune.pruning.event import Measure
from fedprune.pruning.evidence import FROM_DATA, FROM_TRAINING, OF_LIVING, OF_REMOVAL, at_hand
from fedprune.pruning.evidence.batchnorm import LOSS, OF_CANDIDATES, batchnorm_statistics
from fedprune.pruning.evidence.finite import unmeasured
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import apply
from fedprune.pruning.what.top_k import keep_best, nearest
from fedprune.randomness import seeded, torch_seed, torch_stream
from fedprune.types import SERVER, Job, Mask, Params, Subnet, Update
from fedprune.wire.message import about, answered_under


@dataclass(frozen=True)
class ClientEvidence:
    """Measures evidence on a client's training examples (the server's on its proxy set).

    examples: how many of them are used (None: all). top: of evidence about the dead only the largest entries are sent, as many
    of each layer as this fraction of its living (None: all).
    """

    context: Context
    examples: int | None = None
    top: float | None = None

    def as_update(self, job: Job) -> Update:
        """Return the update with the evidence that the job asks for, at the subnet that was sent. Nothing is trained."""
        private = job.kept.batchnorm | job.kept.weights
        job = replace(job, subnet=Subnet(job.subnet.params | private, job.subnet.mask))
        if {*OF_CANDIDATES} & {*job.measure}:
            return self._of_candidate(job)
        evidence, entries = self.of(job), job.about
        if entries == "dead" and self.top is not None:
            entries = "top"
            evidence = {name: largest(values, job.subnet.mask, self.top) for name, values in evidence.items()}
        return Update(job.client, None, self._number(job.client), evidence, entries)

    def _of_candidate(self, job: Job) -> Update:
        """Return the update with what a candidate mask is compared by: BatchNorm's statistics under it, or its loss."""
        context, (name,) = self.context, job.measure
        params = context.in_use(job.subnet.params, tuple(job.subnet.mask))
        with (
            context.as_trained(job.subnet.mask),
            seeded(torch_seed(job.seed, f"evidence {name}", job.round, job.client), context.module.device),
        ):
            if name == LOSS:
                loss, number = self._loss(job, params)
                return Update(job.client, None, number, {LOSS: {"loss": torch.tensor(loss)}})
            batches = self._batches(self._drawn(job))
            measured = batchnorm_statistics(context.module, as_laid_out(params, context.module.net), batches)
        return Update(job.client, None, self._number(job.client), {name: {n: v.float().cpu() for n, v in measured.items()}})

    def _loss(self, job: Job, params: Params) -> tuple[float, int]:
        """Return (the mean loss in evaluation mode, the number of examples): of the client's validation part, or of its
        training examples if it has none."""
        context = self.context
        validation = self._drawn(job) if job.client == SERVER else context.clients.val[job.client]
        indices = validation if len(validation) else self._drawn(job)
        load(context.module, params)
        context.module.eval()
        outcomes = outcomes_of(context.module, context.transferred(context.batches.of(indices, context.batches.evaluated)))
        losses = outcomes.values["loss"]
        return float(losses.mean(dtype="float64")), len(losses)

    def of(self, job: Job) -> dict[str, Params]:
        """Return the evidence that the job asks for; zero at the entries that it is not about."""
        set_mode(self.context.module, self.context.recipe)
        entries = about(answered_under(job), job.about)
        params = as_laid_out(self.context.in_use(job.subnet.params, tuple(job.subnet.mask)), self.context.module.net)
        evidence = {}
        with self.context.as_trained(job.subnet.mask):
            for name in job.measure:
                measured = _accumulated(job, params) if name in FROM_TRAINING else self._measured(name, job, params, entries)
                evidence[name] = apply({n: values.float() for n, values in measured.items()}, entries)  # as it travels
        return evidence

    def for_event(self, job: Job, event: OnClient) -> Measure:
        """Return how this client measures evidence for its own mask."""
        context = self.context
        network, streams = Network(context.module.net, context.dataset.shape), functools.partial(_stream, job)

        def measure(names: tuple[str, ...], subnet: Subnet, about: str, surviving: Mask | None = None, /) -> dict[str, object]:
            evidence = at_hand(names, network, subnet, event.start, functools.partial(streams, about))
            from_data = tuple(name for name in names if name in FROM_DATA)
            if from_data:
                asked = replace(job, subnet=subnet, measure=from_data, about=about, surviving=surviving)
                evidence |= self._finite(asked)
            return {name: evidence[name] for name in names}

        return measure

    def _finite(self, job: Job) -> dict[str, Params]:
        evidence = self.of(job)
        if problem := unmeasured(evidence):
            raise RunError(f"client {job.client} in round {job.round}: {problem}")
        return evidence

    def _measured(self, name: str, job: Job, params: Params, entries: Mask) -> Params:
        """Return one kind of evidence, on the CPU. params: the network in use. entries: the entries that it is about."""
        module, alive = self.context.module, job.subnet.mask
        places = on_device(alive, module.device) if name in OF_LIVING else tuple(alive)
        removal = (on_device(entries, module.device),) if name in OF_REMOVAL else ()
        batches = Repeatable(functools.partial(self._batches, self._drawn(job)))
        with seeded(torch_seed(job.seed, f"evidence {name}", job.round, job.client), module.device):
            measured = FROM_DATA[name](module, params, places, batches, *removal)
        return {n: values.cpu() for n, values in measured.items()}

    def _drawn(self, job: Job) -> Tensor:
        """Return the indices of the examples that evidence is measured on: the same in one round."""
        pool = self._pool(job.client)
        order = torch.randperm(len(pool), generator=torch_stream(job.seed, "evidence", job.round, job.client))
        return pool[order[: self.examples]]

    def _batches(self, indices: Tensor) -> Iterator[Batch]:
        recipe = self.context.recipe
        return self.context.transferred(self.context.batches.of(indices, recipe.batch_size, recipe.smallest))

    def _pool(self, client: int) -> Tensor:
        return self.context.clients.server if client == SERVER else self.context.clients.train[client]

    def _number(self, client: int) -> int:
        """Return the number of examples on which this client measures evidence."""
        there = len(self._pool(client))
        return there if self.examples is None else min(self.examples, there)


def _accumulated(job: Job, params: Params) -> Params:
    """Return the squared gradients that the client has added up while it trained."""
    return squared_gradients.sums(job.kept.squared_gradients, {name: params[name].cpu() for name in job.subnet.mask})


def on_device(mask: Mask, device: torch.device) -> Mask:
    """Return the mask on a device."""
    return {name: alive.to(device) for name, alive in mask.items()}


def largest(values: Params, mask: Mask, fraction: float) -> Params:
    """Return the largest |value| of each layer, as many as this fraction of its living entries to the nearest; else zero."""
    counts = {name: nearest(fraction * int(alive.sum())) for name, alive in mask.items()}
    sizes = {name: value.abs().masked_fill(mask[name], -math.inf) for name, value in values.items()}
    return apply(values, {name: keep_best({name: sizes[name]}, counts[name])[name] for name in values})


def _stream(job: Job, which: str, layer: str) -> torch.Generator:
    return torch_stream(job.seed, f"criterion {which} {layer}", job.events, job.client)
