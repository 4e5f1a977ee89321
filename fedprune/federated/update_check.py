"""The checks that an update has to pass before it is merged."""

from __future__ import annotations

import math

from fedprune.precision import finite
from fedprune.pruning.evidence.finite import DIVERGED, unmeasured
from fedprune.types import Job, Mask, Params, Subnet, Update


def problem_of(update: Update, job: Job, feedback: bool, learnt: tuple[str, ...] | None) -> str | None:
    """Return why an update must not be merged, or None.

    feedback, learnt: see Exchange. Buffers that nobody learns may be infinite, as causal masks are.
    """
    if update.client != job.client:
        return f"it says that it is of client {update.client}"
    loss = update.metrics.get("loss", 0.0)
    tensors = [*update.control.values()]
    if update.subnet is not None:
        tensors += _named(update.subnet.params, learnt).values()
    if not math.isfinite(loss) or not all(finite(tensor) for tensor in tensors):
        return f"the training has diverged (loss {loss:.3g}; not all numbers are finite). {DIVERGED}"
    if update.evidence and (problem := unmeasured(update.evidence)):
        return problem
    if update.subnet is None:
        return None
    grows = job.event is not None and (job.event.swap > 0 or feedback)
    return _outside_mask(update.subnet, job.subnet.mask, grows)


def _named(params: Params, names: tuple[str, ...] | None) -> Params:
    """Return the tensors that have one of these names; all of them if `names` is None."""
    return params if names is None else {name: params[name] for name in names if name in params}


def _outside_mask(subnet: Subnet, sent: Mask, grows: bool) -> str | None:
    """Return a problem if something lives outside the mask that was sent (unless it may grow) or outside its own, else None."""
    for name, alive in subnet.mask.items():
        if alive is sent[name]:  # the mask did not travel: the receiver's own was used
            continue
        if not grows and bool((alive & ~sent[name]).any()):
            return f"its mask has entries in {name} that are dead in the mask it was sent"
        if bool(subnet.params[name][~alive].any()):
            return f"it has weights in {name} where its mask is dead"
    return None
