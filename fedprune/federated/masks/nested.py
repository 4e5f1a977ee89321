"""Each client has as much of the server's network as it can carry, and whoever carries more has all that the others have.

A client's mask is a function of the server's network and its capacity (capacity.py), so no state is kept for it. The server
prunes as it does where one mask is shared, and each entry is the mean over those who have it (federated/server/aggregate.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedprune.errors import ConfigError, Incompatible
from fedprune.federated.masks.gates import due_events
from fedprune.federated.masks.shared import under
from fedprune.federated.masks.whose import Federation, PruneContext, UpdateSummary, Whose
from fedprune.local.regularisers.width_slices import leading, output_layers
from fedprune.pruning.evidence import FROM_DATA, needed_by
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import pack, shrink
from fedprune.pruning.what import What
from fedprune.types import Mask, Params, Plan, PruneEvent, State

if TYPE_CHECKING:
    from fedprune.federated.composition import Composition

Labels = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """The part of the network that one client carries. labels: the outputs that it has (None: all of them)."""

    capacity: float
    labels: Labels | None = None

    @property
    def whole(self) -> bool:
        """True if that is the server's network as it is."""
        return self.capacity == 1 and self.labels is None


@dataclass(frozen=True, eq=False)
class Nested(Whose):
    """by: `width`, the leading units of each layer (HeteroFL, Diao et al. 2021; FjORD, Horvath et al. 2021), which the client
    knows by itself; or `magnitude`, the largest |w| in the scope of `what`, at its capacity x the server's density
    (hetero-FLASH, Babakniya et al. 2023), which it has to be told.

    labels: `all`, or `own`: a client has the outputs of those labels alone that it has training examples of. The logits of
    others are then zero to it, and only those who have a label learn its output (HeteroFL's masked cross-entropy). The
    server knows by it which labels a client has. For by=width.

    The other fields are filled in by `bind`.
    """

    by: str = "width"
    labels: str = "all"
    parts: tuple[Part, ...] = ()
    network: Network | None = None
    what: What | None = None
    private: tuple[str, ...] = ()
    masks_always = True

    def __post_init__(self) -> None:
        for key, known in {"by": ("width", "magnitude"), "labels": ("all", "own")}.items():
            if getattr(self, key) not in known:
                raise ConfigError([f"whose.{key}={getattr(self, key)}: choose {' or '.join(known)}"])
        if self.labels == "own" and self.by != "width":
            raise ConfigError([f"whose.labels=own leaves out units, and whose.by={self.by} does not: choose whose.by=width"])

    def bound(self, federation: Federation) -> Nested:
        """Return the `whose` for these clients. Raises Incompatible where the network has no such parts."""
        owned = federation.labels() if self.labels == "own" else ()
        return self.bind(federation.capacities, owned, federation.network, federation.what, federation.private)

    def problems(self, composition: Composition) -> list[str]:
        """Return which options take the whole network, where some client carries a part of it."""
        if all(part.whole for part in self.parts):
            return []
        options, names, federated = composition.options, composition.names, composition.config.federated
        on_data = sorted(needed_by(options.criterion.formulas().values()) & set(FROM_DATA)) if composition.plan.events else []
        chosen, upload = f"whose={names['whose']}", federated.upload["_target_"].rpartition(".")[2]
        rules = {
            f"criterion={names['criterion']} needs {', '.join(on_data)} of the whole network, which under {chosen} "
            "not everybody can carry: choose criterion=magnitude, or where=server with where.proxy=500": (
                bool(on_data) and not options.where.on_server
            ),
            f"{chosen}: controls are of whole layers, and by=width cuts them: choose federated.control=none": (
                bool(self.mask_names) and federated.control != "none"
            ),
            f"{chosen}: {upload} chooses among weights, and by=width cuts biases too: choose federated/upload=all": (
                bool(self.mask_names) and not options.upload.whole
            ),
        }
        return [problem for problem, broken in rules.items() if broken]

    def bind(
        self,
        capacities: Sequence[float],
        owned: Sequence[Labels],
        network: Network,
        what: What,
        private: tuple[str, ...] = (),
    ) -> Nested:
        """For these clients. owned: the labels of their training examples. private: the tensors that they keep, of
        which no mask is sent. Raises Incompatible where the network, or what is pruned of it, has no such parts."""
        labels = owned if self.labels == "own" else [None] * len(capacities)
        bound = replace(
            self,
            parts=tuple(Part(capacity, known) for capacity, known in zip(capacities, labels, strict=True)),
            network=network,
            what=what,
            private=private,
        )
        if not all(part.whole for part in bound.parts):
            bound._check(network, what)
        return bound

    def _check(self, network: Network, what: What) -> None:
        if self.by == "magnitude":
            if what.pool.own_density:
                raise Incompatible("whose.by=magnitude: `what` has a density of its own: choose what=weights_per_layer")
            return
        last = output_layers(network.net, network.order)
        if self.labels == "own" and len(last) > 1:
            several = ", ".join(name.removesuffix(".weight") for name in last)
            raise Incompatible(
                f"whose.labels=own needs one layer with an output per label, and the outputs are those of {several}: "
                "choose whose.labels=all"
            )
        slices = [leading(network, capacity) for capacity in sorted({part.capacity for part in self.parts})]
        skipped = [name.removesuffix(".weight") for name in slices[0] if _is_weight(network, name) and name not in what.names]
        frozen = bool(what.untouched) and all(f"{layer}.weight" in what.untouched for layer in skipped)
        if skipped:
            choose = "set what.frozen=true" if frozen else "choose what.skip=[]"
            raise Incompatible(f"whose.by=width cuts every layer, and what leaves out {', '.join(skipped)}: {choose}")

    @property
    def counts_units(self) -> bool:
        """True if clients have the largest weights, so many of them as they can carry."""
        return self.by == "magnitude"

    @property
    def mask_names(self) -> tuple[str, ...]:
        """The tensors that the mask of a client covers, where they are more than those that are prunable."""
        sliced = self.network is not None and self.by == "width" and not all(part.whole for part in self.parts)
        return tuple(self.slice(Part(1.0))) if sliced else ()

    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]:
        return due_events(plan, state)

    def client_mask(self, state: State, client: int) -> bytes:
        """Return the client's part of the server's mask, anew in every round; empty if that is all of it."""
        if not self.parts or self.parts[client].whole:
            return b""
        assert self.what is not None, "bind comes first"
        alive = tuple(state.server.mask[name] for name in self.what.names)
        if self.by == "width":
            return _within(self, self.parts[client], *alive)
        weights = tuple(state.server.params[name] for name in self.what.names)
        return _largest(self, self.parts[client].capacity, alive, weights)

    def kept_mask(self, state: State, client: int) -> bytes:
        """Its slice, which follows from its capacity; what the largest weights are, it has to be told."""
        whole = not self.parts or self.parts[client].whole
        return b"" if whole or self.by == "magnitude" else pack(self.slice(self.parts[client]))

    def merged(self, state: State, params: Params, summaries: Sequence[UpdateSummary], context: PruneContext) -> State:
        return under(state.server.mask, state, params, context.fresh)

    def slice(self, part: Part) -> Mask:
        """Return the part of the dense network that a client may have by its width and its labels."""
        assert self.network is not None, "bind comes first"
        return _slice(self.network, part, self.private)


@functools.lru_cache(maxsize=256)
def _slice(network: Network, part: Part, private: tuple[str, ...]) -> Mask:
    """The leading units, and of the output layer those of the part's labels; of all tensors but the private ones."""
    last = [name.removesuffix(".weight") for name in output_layers(network.net, network.order)]
    cut = {name: alive for name, alive in leading(network, part.capacity).items() if name not in private}
    if part.labels is None:
        return cut
    return {name: _rows(alive, part.labels) if name.rpartition(".")[0] in last else alive for name, alive in cut.items()}


def _rows(alive: Tensor, labels: Labels) -> Tensor:
    kept = torch.zeros(len(alive), dtype=torch.bool)
    kept[list(labels)] = True
    return alive & kept.view(-1, *[1] * (alive.dim() - 1))


# Masks and weights are remembered by what object they are: they never change, and each serves a whole round.
@functools.lru_cache(maxsize=256)
def _within(nested: Nested, part: Part, *server: Tensor) -> bytes:
    """The slice, less what is dead on the server."""
    assert nested.what is not None
    alive = dict(zip(nested.what.names, server, strict=True))
    return pack({name: mine & alive[name] if name in alive else mine for name, mine in nested.slice(part).items()})


@functools.lru_cache(maxsize=8)
def _largest(nested: Nested, capacity: float, server: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> bytes:
    """The largest of the living weights, at `capacity` times the server's density of units."""
    assert nested.what is not None
    what, names = nested.what, nested.what.names
    mask = dict(zip(names, server, strict=True))
    alive, units = what.alive_units(mask)
    scores = {name: weight.abs() for name, weight in zip(names, weights, strict=True)}
    return pack(shrink(mask, scores, capacity * alive / units, what))


def _is_weight(network: Network, name: str) -> bool:
    return name.endswith(".weight") and network.net.get_parameter(name).dim() > 1
