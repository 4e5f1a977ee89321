"""One client's round: Job -> Update. A worker builds its own `ClientRound` once; only messages travel to and from it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedprune.compaction.train import Compacted, Compactor, compactor, silent
from fedprune.data.batches import Batches, Repeatable, Slice, calling_after
from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients
from fedprune.data.population import sizes
from fedprune.errors import RunError
from fedprune.execution.arrays import Arrays
from fedprune.execution.failures import explained
from fedprune.federated.client import client_values
from fedprune.federated.client.kept import KeptArrays, as_arrays, copies, copy_of_arrays
from fedprune.federated.client.prune_event import Looks, OnClient, Pruned
from fedprune.federated.client.upload import Upload, everything
from fedprune.local.hooks import has_transfers, transferred
from fedprune.local.lightning.job_trainer import Planned
from fedprune.local.memory_format import as_laid_out
from fedprune.local.module import Batch, LocalModule
from fedprune.local.outcomes import EVERYBODY, Outcomes, TaskMetrics, concatenated, measured
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser, in_use, regularised
from fedprune.local.state import scaffold, squared_gradients
from fedprune.local.state.optimizer_state import OptimizerState
from fedprune.local.state.scaffold import Controls
from fedprune.local.train import Loop, Trained, fit, load, loop_of, set_mode, unload
from fedprune.phase_clock import Clock
from fedprune.pruning.event import Measure
from fedprune.pruning.evidence import FROM_DATA, FROM_TRAINING, OF_LIVING, OF_REMOVAL, at_hand, needs
from fedprune.pruning.evidence.finite import unmeasured
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import apply, ones
from fedprune.pruning.what.top_k import keep_best, nearest
from fedprune.randomness import seeded, torch_seed, torch_stream
from fedprune.types import SERVER, ClientState, Job, Mask, Params, Subnet, Update
from fedprune.wire.frame import Message, Piece
from fedprune.wire.message import Wire, about, answered_under


class Begun(NamedTuple):
    """A job up to its training. arrived: the network as it came, with the client's private tensors. subnet: what is to be
    trained; pruned: whether an event has made that. momenta: the state that the optimizer goes on from."""

    job: Job
    arrived: Params
    subnet: Subnet
    pruned: bool
    momenta: OptimizerState
    controls: Controls


@dataclass(frozen=True)
class ClientRound:
    """Everything a client needs besides the job: the module to train, its data, and how it trains.

    examples: how many of its training examples a client measures evidence on (None: all). regularisers: what it adds to its
    training so that weights get ready to be pruned; evidence and evaluation are of the network without noise. event: how it
    carries out prune events itself (None: the server does). upload: what it sends back of what it trained. accumulates: whether
    it adds up squared gradients for an event. top: of evidence about the dead it sends only the largest, as many of each layer
    as this fraction of its living (None: all). task: what the module measures. untrained: what is never trained, of which only
    newcomers are sent.
    """

    module: LocalModule
    dataset: Dataset
    clients: Clients
    recipe: Recipe
    wire: Wire
    examples: int | None = None
    regularisers: tuple[Regulariser, ...] = ()
    event: OnClient | None = None
    upload: Upload = field(default_factory=everything)
    accumulates: bool = False
    top: float | None = None
    task: TaskMetrics = field(default_factory=TaskMetrics)
    untrained: Params = field(default_factory=dict)

    @functools.cached_property
    def batches(self) -> Batches:
        """Where its batches come from."""
        return Batches(self.dataset, self.clients, self.module.device)

    @functools.cached_property
    def examples_of_all(self) -> int:
        """How many training examples all clients have together: counted once, for there may be many clients."""
        return sum(sizes(self.clients.train))

    @functools.cached_property
    def _loop(self) -> Loop:
        """The loop that trains the module."""
        return loop_of(self.module)

    def run(self, message: Message, kept: KeptArrays, held: bytes) -> tuple[Message, KeptArrays, dict[str, float]]:
        """A job's bytes in, its update's bytes out. `kept`, `held` (its own mask) and the seconds spent go past the wire."""
        clock = Clock()
        with clock.phase("decode"):
            job = self.received(message, kept, held)
        with clock.phase("train"):
            update = self.perform(job)
        return self.answer(job, update, clock)

    def received(self, message: Message, kept: KeptArrays, held: bytes) -> Job:
        """The job that these bytes are."""
        job = self.wire.decode_job(message, held)
        subnet = Subnet(self.untrained | job.subnet.params, job.subnet.mask) if self.untrained else job.subnet
        return replace(job, subnet=subnet, kept=copy_of_arrays(kept))

    def perform(self, job: Job) -> Update:
        """Whatever the job asks for. Raises RunError, naming the client, for what the user's own code raises."""
        with explained(told(job)):
            return self.measure(job) if job.measure else self.train(job)

    def answer(self, job: Job, update: Update, clock: Clock) -> tuple[Message, KeptArrays, dict[str, float]]:
        """What `run` comes back with. clock: of the time that the update took."""
        with clock.phase("encode"):
            answer = self.wire.encode_update(update, answered_under(job))
        return answer, as_arrays(update.kept), clock.seconds()

    def train(self, job: Job) -> Update:
        """Train the subnet that was sent on the client's training part, and carry out the job's event, if it has one."""
        begun, first = self.begin(job), list[Params]()
        return self.finish(begun, self._fit(job, begun.subnet, begun.momenta, begun.controls.correction(), first), first)

    def begin(self, job: Job) -> Begun:
        """What comes before the training of a job."""
        came = client_values.arrived(job)
        arrived = Subnet(came.params | job.kept.batchnorm, came.mask)
        pruned = self._carry_out(job, "start", arrived)
        subnet, momenta = (pruned.subnet if pruned else arrived), job.kept.optimizer
        momenta = {} if pruned and pruned.replaced else momenta
        return Begun(job, arrived.params, subnet, pruned is not None, momenta, scaffold.received(job))

    def finish(self, begun: Begun, trained: Trained, first: Sequence[Params] = ()) -> Update:
        """What comes after it. first: the network after the first epoch, if the job looks back and there were more."""
        job, sent = begun.job, begun.subnet
        result, optimizer = Subnet(trained.params, sent.mask), trained.optimizer
        if self.recipe.error_feedback:  # an event chooses among all that was trained
            result = Subnet(apply(trained.params, sent.mask), sent.mask)
        whole = Subnet(trained.params, ones(trained.params, tuple(sent.mask))) if self.recipe.error_feedback else result
        at_end = self._carry_out(job, "end", whole, first[0] if first else begun.arrived)
        if at_end:
            result, optimizer = at_end.subnet, {} if at_end.replaced else optimizer
        metrics = {"loss": trained.loss, "steps": trained.steps, "seen": trained.examples}
        control, renewed = begun.controls.answer(sent.params, trained.params, trained.reach) if job.control else ({}, {})
        kept = ClientState(
            batchnorm={name: result.params[name] for name in job.kept.batchnorm},
            weights={name: result.params[name] for name in result.mask} if self.recipe.keep_weights else {},
            optimizer=optimizer,
            control=renewed,
            squared_gradients=squared_gradients.added(job.kept.squared_gradients, trained.gradients),
        )
        examples, done = len(self.clients.train[job.client]), begun.pruned or at_end is not None
        travels = self.upload.pack(sent.params, result)
        update = Update(job.client, travels, examples, metrics=metrics, pruned=done, control=control, kept=kept)
        return replace(update, logged=trained.logged) if trained.logged else update

    def _fit(self, job: Job, subnet: Subnet, momenta: OptimizerState, correction: Params, first: list[Params]) -> Trained:
        """Train; where there are several epochs, the network after the first of them is put into `first` if an event asks."""
        recipe, now = self.recipe, tuple(one.at(job.clock) for one in self.regularisers)
        small = self._smaller(job, subnet, now)
        unloaded = functools.partial(small.unload, subnet.params) if small else functools.partial(unload, self.module)
        with seeded(torch_seed(job.seed, "training", job.clock, job.client), self.module.device):
            batches, decay = self.shuffled(job), recipe.lr_decay**job.clock
            if self.looks_back(job):
                epoch = self._planned(job).a_pass
                batches = calling_after(batches, epoch, lambda: first.append(unloaded()))
            if small:
                return small.fit(subnet, batches, recipe, decay, momenta, correction)
            prunable = {name: subnet.mask[name] for name in self.wire.layout.masked or subnet.mask}
            summed = tuple(prunable) if self.accumulates else ()
            net, planned = self.module.net, self._planned(job)
            with regularised(net, prunable, now, self.examples_of_all) if now else contextlib.nullcontext() as penalty:
                return fit(
                    module=self.module,
                    subnet=subnet,
                    batches=batches,
                    recipe=recipe,
                    decay=decay,
                    penalty=penalty,
                    kept=momenta,
                    correction=correction,
                    summed=summed,
                    planned=planned,
                    loop=self._loop,
                )

    def _planned(self, job: Job) -> Planned:
        """How long a job is."""
        examples = len(self.clients.train[job.client])
        return Planned(self.recipe.batches_of_a_pass(examples), self.recipe.batches(examples))

    def shuffled(self, job: Job) -> Iterator[Batch]:
        """What a job is trained on."""
        indices, recipe = self.clients.train[job.client], self.recipe
        stream = torch_stream(job.seed, "batches", job.clock, job.client)
        passes = (recipe.batch_size, recipe.epochs, recipe.steps, stream, recipe.smallest, recipe.drop_last)
        return self.batches.shuffled(indices, *passes)

    def looks_back(self, job: Job) -> bool:
        """Whether the job's event asks for the network as it was after the first of several epochs."""
        gate = self.event.gate if job.event and self.event else None
        return gate is not None and "mask_shift" in needs(gate) and (self.recipe.epochs or 0) >= 2

    def _smaller(self, job: Job, subnet: Subnet, now: Sequence[Regulariser]) -> Compacted | None:
        """How to train in a smaller network, if that gives the same and pays."""
        if self.accumulates or not silent(now):  # gradients of the dead are wanted, or steps do what only masks are made for
            return None
        return self._compactor(subnet.mask, self.recipe.batches(len(self.clients.train[job.client])))

    @functools.cached_property
    def _compactor(self) -> Compactor:
        return compactor(self.module, self.dataset.shape, self.recipe)

    def _carry_out(self, job: Job, moment: str, subnet: Subnet, first: Params | None = None) -> Pruned | None:
        if job.event is None or self.event is None or self.event.at != moment:
            return None
        looks = Looks(self._measuring(job, self.event), functools.partial(self._validation, job.client), first)
        return self.event(job, subnet, looks)

    def _measuring(self, job: Job, event: OnClient) -> Measure:
        """How this client measures evidence for its own mask."""
        network, streams = Network(self.module.net, self.dataset.shape), functools.partial(_stream, job)

        def measure(names: tuple[str, ...], subnet: Subnet, about: str, surviving: Mask | None = None, /) -> dict:
            found = at_hand(names, network, subnet, event.start, functools.partial(streams, about))
            wanted = tuple(name for name in names if name in FROM_DATA)
            if wanted:
                measured = self._evidence(replace(job, subnet=subnet, measure=wanted, about=about, surviving=surviving))
                if problem := unmeasured(measured):
                    raise RunError(f"client {job.client} in round {job.round}: {problem}")
                found |= measured
            return {name: found[name] for name in names}

        return measure

    def _validation(self, client: int, params: Params) -> dict[str, float]:
        """Return what gates may ask for of a network on this client's own validation examples. If it has none, its accuracy is
        0.0, and the task's metric not a number, which opens no gate."""
        indices = self.clients.val[client]
        if not len(indices):
            return {"val_accuracy": 0.0, "val_metric": math.nan}
        load(self.module, self._in_use(params, self.wire.layout.masked))
        self.module.eval()
        outcomes = measured(self.module, self._transferred(self.batches.of(indices, self.batches.evaluated)))
        return self.task.validated(self.task.means(outcomes))

    def measure(self, job: Job) -> Update:
        """Measure the evidence that was asked for, at the subnet that was sent; train nothing."""
        private = job.kept.batchnorm | job.kept.weights
        evidence = self._evidence(replace(job, subnet=Subnet(job.subnet.params | private, job.subnet.mask)))
        which = job.about
        if which == "dead" and self.top is not None:
            which, evidence = "top", {name: largest(values, job.subnet.mask, self.top) for name, values in evidence.items()}
        return Update(job.client, None, self._scored(job.client), evidence, which)

    def _scored(self, client: int) -> int:
        """On how many examples this client measures evidence."""
        held = len(self._pool(client))
        return held if self.examples is None else min(self.examples, held)

    def _pool(self, client: int) -> Tensor:
        return self.clients.server if client == SERVER else self.clients.train[client]

    def _evidence(self, job: Job) -> dict[str, Params]:
        """What the job asks for, on `examples` of this client's training examples; zero where it is not about."""
        pool, names = self._pool(job.client), tuple(job.subnet.mask)
        order = torch.randperm(len(pool), generator=torch_stream(job.seed, "evidence", job.round, job.client))
        indices = pool[order[: self.examples]]
        used = self._in_use(job.subnet.params, names)
        params = as_laid_out(used, self.module.net)
        cover = about(answered_under(job), job.about)
        removal = (on_device(cover, self.module.device),)
        alive = on_device(job.subnet.mask, self.module.device)
        recipe = self.recipe
        set_mode(self.module, recipe)
        evidence = {}
        for name in job.measure:
            if name in FROM_TRAINING:
                sums = squared_gradients.sums(job.kept.squared_gradients, {n: params[n].cpu() for n in names})
                evidence[name] = apply({n: total.float() for n, total in sums.items()}, cover)
                continue
            with seeded(torch_seed(job.seed, f"evidence {name}", job.round, job.client), self.module.device):
                more = removal if name in OF_REMOVAL else ()
                batches = Repeatable(lambda: self._transferred(self.batches.of(indices, recipe.batch_size, recipe.smallest)))
                found = FROM_DATA[name](self.module, params, alive if name in OF_LIVING else names, batches, *more)
            evidence[name] = apply({n: e.cpu().float() for n, e in found.items()}, cover)  # as it travels
        return evidence

    def _in_use(self, params: Params, names: Sequence[str]) -> Params:
        """Return the network that is in use between two steps."""
        return in_use(params, names, self.regularisers) if self.regularisers else params

    @functools.cached_property
    def _transfers(self) -> bool:
        """Whether the module has transfer hooks."""
        return has_transfers(self.module)

    def _transferred(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return the batches as the module's transfer hooks leave them."""
        return (transferred(self.module, batch) for batch in batches) if self._transfers else batches

    def evaluate(self, block: Piece, private: Arrays, held: bytes, where: Slice) -> Outcomes:
        """Return what the module measures on a slice, for the network of a wire block under a client's own mask."""
        params = self.untrained | self.wire.read_subnet(block).params | copies(private)
        params = apply(params, self.wire.mask_of(held) or {})
        return self._outcomes(self._in_use(params, self.wire.layout.masked), where)

    def _outcomes(self, params: Params, where: Slice) -> Outcomes:
        load(self.module, params)
        self.module.eval()
        with explained(f"evaluating the network on examples {where.start} to {where.stop} of {where.part}"):
            if not self.task.templates:
                return self._measured(where)
            parts = self.batches.by_client(where)  # what torchmetrics objects add up is wanted of every client
            return concatenated([self._measured(part, place) for place, part in parts])

    def _measured(self, where: Slice, place: int = EVERYBODY) -> Outcomes:
        return measured(self.module, self._transferred(self.batches.evaluation(where)), place)


def told(job: Job) -> str:
    """Whose job it is, and when."""
    return f"{'the server' if job.client == SERVER else f'client {job.client}'} in round {job.round}"


def on_device(mask: Mask, device: torch.device) -> Mask:
    """Return the mask on a device."""
    return {name: alive.to(device) for name, alive in mask.items()}


def largest(values: Params, mask: Mask, fraction: float) -> Params:
    """Of each layer the largest |value|, as many as this fraction of its living entries to the nearest, and zero elsewhere."""
    counts = {name: nearest(fraction * int(alive.sum())) for name, alive in mask.items()}
    sizes = {name: value.abs().masked_fill(mask[name], -math.inf) for name, value in values.items()}
    return apply(values, {name: keep_best({name: sizes[name]}, counts[name])[name] for name in values})


def _stream(job: Job, which: str, layer: str) -> torch.Generator:
    return torch_stream(job.seed, f"criterion {which} {layer}", job.events, job.client)
