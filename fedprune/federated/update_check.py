"""The checks that an update has to pass before it is merged.

Nothing that a client says of itself is believed. The server knows whom it asked, for what, and how many examples the client
has; the update has to agree. Its numbers have to be finite, and of a size that the job allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fedprune.data.federate import Clients
from fedprune.data.population import sizes
from fedprune.errors import shown
from fedprune.federated.client.upload import Upload
from fedprune.local.lightning.self_log import unloggable
from fedprune.local.recipe import Recipe
from fedprune.local.train import is_batchnorm
from fedprune.precision import finite
from fedprune.pruning.evidence.batchnorm import LOSS
from fedprune.pruning.evidence.finite import DIVERGED, unmeasured
from fedprune.types import SERVER, Job, Subnet, Update

if TYPE_CHECKING:
    from fedprune.federated.where import Where

OF_TRAINING = ("loss", "steps", "seen")

STEPS = 1000
"""Steps of the optimizer for a batch, at most: a module's own optimizer_step may take several."""


@dataclass(frozen=True)
class UpdateCheck:
    """The server's knowledge of its clients, against which their updates are checked.

    examples, validation: the numbers of each client's training and validation examples. measured_on: on how many of these
    evidence is measured (None: all). top: whether of evidence about the dead only the largest entries come. recipe: of their
    training. feedback: whether entries that were dead in the network that was sent may live after a client's event. learnt: the
    names of the tensors that training changes, which have to stay finite (None: all). whole: whether every living weight
    comes back.
    """

    examples: Sequence[int] = ()
    validation: Sequence[int] = ()
    measured_on: int | None = None
    top: bool = False
    recipe: Recipe = field(default_factory=Recipe)
    feedback: bool = False
    learnt: tuple[str, ...] | None = None
    whole: bool = True

    @classmethod
    def of(cls, clients: Clients, net: nn.Module, recipe: Recipe, where: Where, upload: Upload) -> UpdateCheck:
        """Return the check of a run's updates. Training changes the parameters, and the statistics of BatchNorm."""
        norms = [name for name, layer in net.named_modules() if is_batchnorm(layer)]
        statistics = [f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")]
        return cls(
            examples=sizes(clients.train),
            validation=sizes(clients.val),
            measured_on=where.examples,
            top=where.top is not None,
            recipe=recipe,
            feedback=recipe.error_feedback,
            learnt=(*(name for name, p in net.named_parameters() if p.requires_grad), *statistics),
            whole=upload.whole,
        )

    def __call__(self, update: Update, job: Job) -> str | None:
        """Return why the update must not be merged, or None."""
        return next(self._problems(update, job), None)

    def _problems(self, update: Update, job: Job) -> Iterator[str]:
        if update.client != job.client:
            yield f"it says that it is of client {update.client}"
        if job.client != SERVER and update.examples != (known := self._examples_of(job)):
            yield f"it is of {update.examples} examples, and the client has {known} for it"
        yield from _not_asked_for(update, job, self.top)
        if job.measure and update.metrics:
            yield f"it was asked for evidence and has the metrics {shown(', '.join(update.metrics))}, which cannot be"
        if not job.measure:
            yield from _outside_bounds(update.metrics, *self._most(job))
        yield from _not_loggable(update.logged)
        yield from self._not_finite(update, job)
        yield from self._outside_mask(update, job)

    def _examples_of(self, job: Job) -> int:
        """Return how many examples the job is about, at its client."""
        own = self.examples[job.client]
        if not job.measure:
            return own
        drawn = own if self.measured_on is None else min(self.measured_on, own)
        if LOSS in job.measure and self.validation:
            return self.validation[job.client] or drawn
        return drawn

    def _most(self, job: Job) -> tuple[int, int]:
        """Return (steps, examples seen) of a training, at most."""
        own, recipe = self.examples[job.client], self.recipe
        batches = recipe.batches(own)
        if recipe.steps is None:
            return STEPS * batches, (recipe.epochs or 0) * own
        return STEPS * batches, batches * min(own, recipe.batch_size + recipe.smallest - 1)

    def _not_finite(self, update: Update, job: Job) -> Iterator[str]:
        """Yield a problem if numbers are not finite; buffers that nobody learns may be as they were, such as causal masks."""
        loss = update.metrics.get("loss", 0.0)
        tensors: list[Tensor] = [*update.control.values()]
        if update.subnet is not None:
            tensors += self._numbers(update.subnet, job.subnet)
        if not math.isfinite(loss) or not all(map(finite, tensors)):
            yield f"the training has diverged (loss {loss:.3g}; not all numbers are finite). {DIVERGED}"
        if update.evidence and (problem := unmeasured(update.evidence)):
            yield problem
        values = [*update.evidence.values(), *([update.subnet.params] if update.subnet else [])]
        variances = [(name, tensor) for params in values for name, tensor in params.items() if name.endswith("running_var")]
        yield from (f"it has a negative variance in {name}" for name, tensor in variances if bool((tensor < 0).any()))

    def _numbers(self, subnet: Subnet, sent: Subnet) -> Iterator[Tensor]:
        """Yield the tensors that have to be finite."""
        for name, tensor in subnet.params.items():
            if self.learnt is None or name in self.learnt or finite(sent.params.get(name, tensor)):
                yield tensor

    def _outside_mask(self, update: Update, job: Job) -> Iterator[str]:
        """Yield a problem if something lives outside the mask that was sent (unless it may grow) or outside its own, or if the
        mask has changed without an event."""
        if update.subnet is None:
            return
        grows = job.event is not None and (job.event.swap > 0 or self.feedback)
        stays = job.event is None and self.whole
        for name, alive in update.subnet.mask.items():
            sent = job.subnet.mask.get(name)
            if sent is None or alive is sent:  # the mask did not travel: the receiver's own was used
                continue
            if not grows and bool((alive & ~sent).any()):
                yield f"its mask has entries in {name} that are dead in the mask it was sent"
            if stays and bool((sent & ~alive).any()):
                yield f"its mask has lost entries in {name}, and no event was due"
            if bool(update.subnet.params[name][~alive].any()):
                yield f"it has weights in {name} where its mask is dead"


def _not_asked_for(update: Update, job: Job, top: bool) -> Iterator[str]:
    """Yield what is in the update and not in the job, or the other way round."""
    if (update.subnet is None) != bool(job.measure):
        yield "it has evidence and no network" if update.subnet is None else "it has a network where evidence was asked for"
    if list(update.evidence) != [*job.measure]:
        yield f"it was asked for the evidence [{', '.join(job.measure)}] and has [{shown(', '.join(update.evidence))}]"
    about = job.about if job.measure else "alive"
    about = "top" if top and about == "dead" else about
    if update.about != about:
        yield f"its evidence is about the entries `{update.about}`, and it was asked about `{about}`"
    if {*update.control} != (set() if job.measure else {*job.control}):
        yield "its control is not of the parameters whose control it was sent"
    if update.pruned and job.event is None:
        yield "it says that it has pruned, and no event was due"


def _outside_bounds(metrics: Mapping[str, float], most_steps: int, most_seen: int) -> Iterator[str]:
    """Yield what is missing among the metrics of a training, or cannot be."""
    yield from (f"its metrics have no {name}" for name in OF_TRAINING if name not in metrics)
    for name, most in (("steps", most_steps), ("seen", most_seen)):
        value = metrics.get(name, 0)
        if not isinstance(value, int) or not 0 <= value <= most:
            yield f"its metrics have {name} {value}, which is no whole number from 0 to {most}"
    for name, value in metrics.items():
        if name not in OF_TRAINING and not math.isfinite(value):
            yield f"its metrics have {shown(name)} {value}, which cannot be"
        if name == "accuracy" and not 0 <= value <= 1:
            yield f"its metrics have accuracy {value}, which is a fraction"


def _not_loggable(logged: Mapping[str, tuple[str, float]]) -> Iterator[str]:
    """Yield the names that no module can log, and the reductions that are none. The values may be any numbers, also NaN: they
    are the user's own, and take no part in training."""
    for name, (reduction, _) in logged.items():
        if (problem := unloggable(name, reduction)) is not None:
            yield f"it has logged {shown(name)}: {problem}"
