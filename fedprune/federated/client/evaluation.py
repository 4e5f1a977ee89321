"""Evaluation on a worker: of a slice of a data set, and of a client's own validation examples for its gate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedprune.data.batches import Slice
from fedprune.errors import in_user_code
from fedprune.execution.arrays import Arrays
from fedprune.federated.client.context import Context
from fedprune.federated.client.state_arrays import copies
from fedprune.local.outcomes import EVERYBODY, Outcomes, concatenated, measured
from fedprune.local.train import load
from fedprune.pruning.mask import apply
from fedprune.types import Params, Subnet
from fedprune.wire.frame import Piece


@dataclass(frozen=True)
class ClientEvaluation:
    """Evaluates networks; nothing is trained."""

    context: Context

    def evaluate(self, block: Piece, private: Arrays, kept_mask: bytes, where: Slice) -> Outcomes:
        """Return what the module measures on a slice, for the network of a wire block under a client's own mask.

        private: the client's private tensors, which replace those of the block. kept_mask: the mask, packed to bits (empty: the
        block's own).
        """
        wire = self.context.wire
        subnet, own_mask = wire.read_subnet(block), wire.mask_of(kept_mask)
        params = apply(self.context.untrained | subnet.params | copies(private), own_mask or {})
        with self.context.as_trained(own_mask or subnet.mask):
            return self.outcomes(self.context.in_use(params, wire.layout.masked), where)

    def outcomes(self, params: Params, where: Slice) -> Outcomes:
        """Return what the module measures on a slice at these parameters."""
        self._load(params)
        with in_user_code(f"evaluating the network on examples {where.start} to {where.stop} of {where.part}"):
            if not self.context.task.templates:
                return self._measured(where)
            parts = self.context.batches.by_client(where)  # what torchmetrics objects add up is wanted of every client
            return concatenated([self._measured(part, place) for place, part in parts])

    def own_test(self, client: int, params: Params) -> Outcomes:
        """Return what the module measures on this client's test part at these parameters."""
        context = self.context
        self._load(params)
        batches = context.batches.of(context.clients.test[client], context.batches.evaluated)
        with in_user_code(f"evaluating a trained network on the test part of client {client}"):
            return measured(context.module, context.transferred(batches), client)

    def validation(self, client: int, subnet: Subnet) -> dict[str, float]:
        """Return what gates may ask for of a network on this client's own validation examples. If it has none, its accuracy is
        0.0, and the task's metric not a number, which opens no gate."""
        context = self.context
        indices = context.clients.val[client]
        if not len(indices):
            return {"val_accuracy": 0.0, "val_metric": math.nan}
        self._load(context.in_use(subnet.params, context.wire.layout.masked))
        with context.as_trained(subnet.mask):
            outcomes = measured(context.module, context.transferred(context.batches.of(indices, context.batches.evaluated)))
        return context.task.validated(context.task.means(outcomes))

    def _load(self, params: Params) -> None:
        load(self.context.module, params)
        self.context.module.eval()

    def _measured(self, where: Slice, place: int = EVERYBODY) -> Outcomes:
        context = self.context
        return measured(context.module, context.transferred(context.batches.evaluation(where)), place)
