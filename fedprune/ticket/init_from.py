"""Start a run from a network that was trained elsewhere, by the weights in a file.

head: `keep`, or `fresh`: the output layer is newly initialised, as it must be for other classes. mask: what becomes of the mask
of a checkpoint of torch.nn.utils.prune. Its weights are those that the network computes with, weight_orig x weight_mask.
`ignore` starts with nothing dead, so that entries of zero train again; `use` starts under the mask.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedprune.errors import DataError, Incompatible
from fedprune.pruning.evidence.gates import is_companion
from fedprune.pruning.mask import apply, ones
from fedprune.pruning.what import What
from fedprune.tensors import other_names, tensors_of
from fedprune.ticket.choices import check_choices
from fedprune.ticket.start_from import head_names
from fedprune.ticket.weights import Weights, read_weights
from fedprune.types import Mask, Params, Subnet

log = logging.getLogger(__name__)

CHOICES = {"head": ("keep", "fresh"), "mask": ("ignore", "use")}
"""The values of each key; the first one is the default."""

NAMED = 5
"""So many names of each kind stand in a message."""

COUNTS = ".num_batches_tracked"
"""The buffer that checkpoints of BatchNorm before torch 0.4.1 lack."""


@dataclass(frozen=True)
class InitFrom:
    """Start a run from the weights in the file `path` (None: from an initialisation); head, mask: see above."""

    path: str | None = None
    head: str = "keep"
    mask: str = "ignore"

    def __post_init__(self) -> None:
        absent = "is about weights in a file, and there is none: type init_from=FILE" if self.path is None else None
        check_choices("init_from", {"head": self.head, "mask": self.mask}, CHOICES, absent)

    def __call__(
        self, net: nn.Module, what: What, seed: int, names: Mapping[str, str], model: Mapping[str, object] | None = None
    ) -> Subnet | None:
        """Return the subnet that the run starts from; None without a file. It is called as a ticket is (StartFrom).

        Raises DataError if the file holds no weights; Incompatible, with what to choose instead, if another network's.
        """
        if self.path is None:
            return None
        fresh = tensors_of(net)
        weights = read_weights(Path(self.path).expanduser(), (*fresh, *other_names(net)))
        params = _under_one_name(weights.params, other_names(net))
        head = head_names(net, what.order)
        left_out = {name for name in fresh if is_companion(name)} | (set(head) if self.head == "fresh" else set())
        left_out |= {name for name in fresh if name.endswith(COUNTS) and name not in params}
        taken = {name: tensor for name, tensor in params.items() if name not in left_out}
        ours = {name: tensor for name, tensor in fresh.items() if name not in left_out}
        _check_fit(f"init_from={self.path}", taken, ours, head, f"model={names['model']} on data={names['data']}")
        _check_numbers(f"init_from={self.path}", taken, ours)
        mask = ones(fresh, what.names) | self._mask(weights, what, left_out)
        start = fresh | {name: tensor.to(fresh[name].dtype) for name, tensor in taken.items()}
        self._tell(weights, head, len(taken))
        return Subnet(apply({name: start[name].detach().clone() for name in fresh}, mask), mask)

    def _mask(self, weights: Weights, what: What, left_out: set[str]) -> Mask:
        """Return the mask of the file, if it is asked for. Raises Incompatible if this run cannot have it."""
        if self.mask == "ignore":
            return {}
        if not weights.mask:
            raise Incompatible(f"init_from={self.path} has no mask of torch.nn.utils.prune: type init_from.mask=ignore")
        mask = {name: alive for name, alive in weights.mask.items() if name not in left_out}
        beyond = [name for name, alive in mask.items() if name not in what.names and not alive.all()]
        if beyond:
            raise Incompatible(
                f"init_from={self.path}: {_listed(beyond)} sparse in it, and not pruned by this run: "
                "choose init_from.mask=ignore, or what=weights_global with what.skip=[]"
            )
        return {name: alive for name, alive in mask.items() if name in what.names}

    def _tell(self, weights: Weights, head: tuple[str, ...], number: int) -> None:
        clauses = [f"{number} tensors", *weights.remarks]
        clauses += [f"{', '.join(head)} newly initialised"] * (self.head == "fresh")
        if weights.mask and self.mask == "ignore":
            clauses.append("its mask is not used, to keep it type init_from.mask=use")
        log.info("init_from=%s: %s", self.path, "; ".join(clauses))


def _under_one_name(params: Params, others: Mapping[str, str]) -> Params:
    """Return the tensors with a tensor of several names under its one name, whichever of them the file has."""
    further = {others[name]: tensor for name, tensor in params.items() if name in others}
    return further | {name: tensor for name, tensor in params.items() if name not in others}


def _check_fit(file: str, theirs: Params, ours: Params, head: tuple[str, ...], here: str) -> None:
    """Raise Incompatible with all in which the file and the network differ, and what to type."""
    missing, unexpected = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    shapes = [name for name in ours if name in theirs and theirs[name].shape != ours[name].shape]
    if not (missing or unexpected or shapes):
        return
    near = {name: difflib.get_close_matches(name, unexpected, n=1, cutoff=0.4) for name in missing}
    lines = [
        _line("missing in the file", [f"{name} (nearest there: {near[name][0]})" if near[name] else name for name in missing]),
        _line("unexpected in the file", unexpected),
        _line("of another shape", [f"{name} is {_shape(theirs[name])} there, {_shape(ours[name])} here" for name in shapes]),
    ]
    told = "; ".join(line for line in lines if line)
    raise Incompatible(f"{file} does not fit {here}: {told}: {_instead({*missing, *unexpected, *shapes}, head, near)}")


def _instead(wrong: set[str], head: tuple[str, ...], near: Mapping[str, list[str]]) -> str:
    if wrong <= set(head):
        return "type init_from.head=fresh"
    if near and wrong <= {*near, *(name for names in near.values() for name in names), *head}:
        return "save the file with the names that the network has here, or choose the model=NAME that has the file's"
    return "choose the model=NAME that it was trained as, with its values, and data of that shape"


def _check_numbers(file: str, theirs: Params, ours: Params) -> None:
    kinds = [name for name, tensor in theirs.items() if tensor.is_floating_point() != ours[name].is_floating_point()]
    if kinds:
        raise DataError(f"{file}: {_listed(kinds)} is {theirs[kinds[0]].dtype} there, {ours[kinds[0]].dtype} here: save floats")
    broken = [name for name, tensor in theirs.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise DataError(f"{file} has entries that are not numbers (NaN or infinite) in {_listed(broken)}: give another file")


def _line(kind: str, texts: list[str]) -> str:
    return f"{len(texts)} {kind} ({_listed(texts)})" if texts else ""


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:NAMED]) + (f" and {len(every) - NAMED} more" if len(every) > NAMED else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
