"""The context that training, evidence and evaluation on a worker share: the module, the data, and the wire."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from fedprune.data.augment import Change
from fedprune.data.batches import Batches
from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients
from fedprune.local.hooks import has_transfers, transferred
from fedprune.local.module import Batch, LocalModule
from fedprune.local.outcomes import TaskMetrics
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser, Term, in_use, regularised
from fedprune.types import Mask, Params
from fedprune.wire.message import Wire


@dataclass(frozen=True)
class Context:
    """A worker's module, whose network is loaded anew for each job, and all that is the same in every job.

    regularisers: what clients add to their training so that weights get ready to be pruned; evidence and evaluation are of the
    network without noise. task: what the module measures. untrained: the tensors that nobody trains, which only newcomers are
    sent. augment: what changes the inputs of training batches, and of no others (None: nothing does).
    """

    module: LocalModule
    dataset: Dataset
    clients: Clients
    recipe: Recipe
    wire: Wire
    regularisers: tuple[Regulariser, ...] = ()
    task: TaskMetrics = field(default_factory=TaskMetrics)
    untrained: Params = field(default_factory=dict)
    augment: Change | None = None

    @functools.cached_property
    def batches(self) -> Batches:
        """The source of all batches."""
        return Batches(self.dataset, self.clients, self.module.device)

    def in_use(self, params: Params, names: Sequence[str]) -> Params:
        """Return the network that is in use between two steps. names: of the prunable tensors."""
        return in_use(params, names, self.regularisers) if self.regularisers else params

    def as_trained(self, mask: Mask) -> AbstractContextManager[Term | None]:
        """Return a context in which layers run as in training under this mask, but for noise (Regulariser.permanent)."""
        return regularised(self.module.net, mask, self._permanent, examples=0) if self._permanent else nullcontext()

    @functools.cached_property
    def _permanent(self) -> tuple[Regulariser, ...]:
        return tuple(regulariser for regulariser in self.regularisers if regulariser.permanent)

    def transferred(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return the batches as the module's transfer hooks leave them."""
        return (transferred(self.module, batch) for batch in batches) if self._transfers else batches

    @functools.cached_property
    def _transfers(self) -> bool:
        return has_transfers(self.module)
