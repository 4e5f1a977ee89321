"""Training on a client: under the mask of the job, or in a smaller network where that gives the same and pays."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from fedprune.compaction.train import Compacted, Compactor, compactor, silent
from fedprune.data.augment import Change, drawing
from fedprune.data.batches import calling_after
from fedprune.data.population import sizes
from fedprune.federated.client.context import Context
from fedprune.local.lightning.job_trainer import Planned
from fedprune.local.module import Batch
from fedprune.local.regularisers.base import Regulariser, regularised
from fedprune.local.state.optimizer_state import OptimizerState
from fedprune.local.train import StepLoop, Trained, fit, loop_of, unload
from fedprune.pruning.mask import full
from fedprune.randomness import seeded, torch_seed, torch_stream
from fedprune.types import Job, Mask, Params, Subnet


@dataclass(frozen=True)
class ClientTraining:
    """Trains the module on a client's training part.

    accumulates: whether gradients are added up for an event. looks_back: whether events ask for the network as it was after the
    first of several epochs.
    """

    context: Context
    accumulates: bool = False
    looks_back: bool = False

    def train_subnet(
        self, job: Job, subnet: Subnet, optimizer_state: OptimizerState, correction: Params
    ) -> tuple[Trained, Params | None]:
        """Train a subnet, in a smaller network if that gives the same and pays. Returns with it the network after the first
        epoch, if the job looks back and there were more."""
        recipe, module, first = self.context.recipe, self.context.module, list[Params]()
        now = tuple(regulariser.at(job.clock) for regulariser in self.context.regularisers)
        small = None if full(subnet.mask) or (now and not silent(now)) else self._smaller(job, subnet.mask)
        with seeded(torch_seed(job.seed, "training", job.clock, job.client), module.device):
            batches, decay = self.shuffled(job), recipe.lr_decay**job.clock
            if self.looks_back and job.event:
                unloaded = functools.partial(small.unload, subnet.params) if small else functools.partial(unload, module)
                batches = calling_after(batches, self._planned(job).a_pass, lambda: first.append(unloaded()))
            if small:
                trained = small.fit_smaller(subnet, batches, recipe, decay, optimizer_state, correction)
            else:
                trained = self._fit_under_mask(job, subnet, batches, decay, now, optimizer_state, correction)
        return trained, first[0] if first else None

    def _fit_under_mask(
        self,
        job: Job,
        subnet: Subnet,
        batches: Iterator[Batch],
        decay: float,
        now: tuple[Regulariser, ...],
        optimizer_state: OptimizerState,
        correction: Params,
    ) -> Trained:
        """Train the whole network. decay: factor of the learning rate. now: the regularisers as they are in this round."""
        context, net = self.context, self.context.module.net
        names = context.wire.layout.masked or tuple(subnet.mask)
        prunable = {name: subnet.mask[name] for name in names}
        with regularised(net, prunable, now, self._examples_of_all) if now else contextlib.nullcontext() as penalty:
            return fit(
                module=context.module,
                subnet=subnet,
                batches=batches,
                recipe=context.recipe,
                decay=decay,
                penalty=penalty,
                optimizer_state=optimizer_state,
                correction=correction,
                summed=names if self.accumulates else (),
                planned=self._planned(job),
                loop=self._loop,
            )

    def shuffled(self, job: Job) -> Iterator[Batch]:
        """Yield the batches that a job is trained on."""
        context, recipe = self.context, self.context.recipe
        stream = torch_stream(job.seed, "batches", job.clock, job.client)
        passes = (recipe.batch_size, recipe.epochs, recipe.steps, stream, recipe.smallest, recipe.drop_last)
        change = None if context.augment is None else self._change(context.augment, job)
        return context.batches.shuffled(context.clients.train[job.client], *passes, change=change)

    def _change(self, augment: Change, job: Job) -> Change:
        """Return what augments the batches of a job. Its draws are its own, so that training draws as it does without it."""
        stream = torch_stream(job.seed, "augment", job.clock, job.client)
        return drawing(augment, stream, self.context.module.device)

    def _smaller(self, job: Job, mask: Mask) -> Compacted | None:
        if self.accumulates:  # the gradients of the dead are wanted
            return None
        return self._compactor(mask, self.context.recipe.batches(self._examples(job)))

    @functools.cached_property
    def _compactor(self) -> Compactor:
        return compactor(self.context.module, self.context.dataset.shape, self.context.recipe)

    @functools.cached_property
    def _loop(self) -> StepLoop:
        return loop_of(self.context.module)

    @functools.cached_property
    def _examples_of_all(self) -> int:
        """The number of training examples of all clients that train: counted once, for there may be many clients."""
        train, unseen = self.context.clients.train, self.context.clients.unseen
        return sum(sizes(train)) - sum(len(train[client]) for client in unseen)

    def _examples(self, job: Job) -> int:
        return len(self.context.clients.train[job.client])

    def _planned(self, job: Job) -> Planned:
        recipe, examples = self.context.recipe, self._examples(job)
        return Planned(recipe.batches_of_a_pass(examples), recipe.batches(examples))
