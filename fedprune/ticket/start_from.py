"""Start a run from a ticket: on another data set, another head or another optimizer. Morcos et al. 2019.

permute: `none` takes the ticket's mask and weights. `within_layers` and `global` are the controls: the mask is shuffled, so
that only the number of living units of each layer, or of all layers, is kept; and weights are newly initialised, as the ticket
has none for other entries. head: `keep`, or `fresh`: the output layer is newly initialised and dense, as it must be for other
classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fedprune.errors import Incompatible
from fedprune.pruning.evidence.gates import is_companion
from fedprune.pruning.mask import apply, ones
from fedprune.pruning.what import What
from fedprune.pruning.what.layer_order import LayerOrder, by_definition
from fedprune.pruning.what.layers import CHANNELLED, LAYERS, prunable
from fedprune.randomness import torch_stream
from fedprune.tensors import tensors_of
from fedprune.ticket.choices import check_choices
from fedprune.ticket.model import changed, model_of
from fedprune.ticket.read import Ticket, load_ticket
from fedprune.types import Mask, Params, Subnet

log = logging.getLogger(__name__)

CHOICES = {"permute": ("none", "within_layers", "global"), "head": ("keep", "fresh")}
"""The values of each key; the first one changes nothing."""

UNKNOWN = "choose the model and data set that it comes from"


@dataclass(frozen=True)
class StartFrom:
    """Start a run from the ticket in the file `path` (None: from a dense initialisation); permute, head: see above."""

    path: str | None = None
    permute: str = "none"
    head: str = "keep"

    def __post_init__(self) -> None:
        absent = "changes a ticket, and there is none: set ticket.path=FILE" if self.path is None else None
        check_choices("ticket", {"permute": self.permute, "head": self.head}, CHOICES, absent)

    def __call__(
        self, net: nn.Module, what: What, seed: int, names: Mapping[str, str], model: Mapping[str, object] | None = None
    ) -> Subnet | None:
        """Return the subnet that the run starts from; None for a dense initialisation, that of `net`.

        names: the chosen option of each group. model: the config of `net`; a warning tells if the ticket's network had another
        one of the same shapes. Raises DataError if the file is no ticket; Incompatible, with what to choose instead, if it is a
        ticket of another network.
        """
        if self.path is None:
            return None
        ticket, fresh = load_ticket(self.path), tensors_of(net)
        companions = tuple(name for name in fresh if is_companion(name))  # a ticket has none: they are newly initialised
        head = head_names(net, what.order)
        left_out = companions + (head if self.head == "fresh" else ())
        _check(misfits(ticket, fresh, left_out, head, {**names, "model": typed(names["model"], model or {})}))
        _check(unprunable(ticket, net, what, left_out, names))
        _warn_of_another(ticket, names["model"], model)
        taken = tuple(name for name in what.names if name not in left_out)
        mask = ones(fresh, what.names) | {name: alive for name, alive in ticket.mask.items() if name in taken}
        if self.permute == "none":
            params = {name: (fresh if name in left_out else ticket.params)[name] for name in fresh}
        else:
            _check(self._broken_units(mask, what, names["what"]))
            params, mask = fresh, mask | PERMUTATIONS[self.permute]({name: mask[name] for name in taken}, what, seed)
        return Subnet(apply({name: tensor.detach().clone() for name, tensor in params.items()}, mask), mask)

    def _broken_units(self, mask: Mask, what: What, option: str) -> list[str]:
        return [
            f"ticket: its mask of {name} is not of whole units of what={option}, and ticket.permute={self.permute} "
            "shuffles them: choose what=weights_global"
            for name in what.broken(mask)[:1]
        ]


def head_names(net: nn.Module, order: LayerOrder | None = None) -> tuple[str, ...]:
    """Return the tensors of the output layer: of the last convolution or linear layer to run, or of all parallel ones that are
    last. order: None if layers run as they are defined.
    """
    weights = [weight for weights in prunable(net, CHANNELLED).values() for weight in weights]
    heads = {weight.rpartition(".")[0] for weight in (order or by_definition(prunable(net))).last(weights)}
    return tuple(name for name in tensors_of(net) if name.rpartition(".")[0] in heads)


def within_layers(mask: Mask, what: What, seed: int) -> Mask:
    """Return the mask with the units of each layer shuffled: only the density of the layer is kept."""
    return {name: _shuffled({name: alive}, what, torch_stream(seed, f"permute/{name}"))[name] for name, alive in mask.items()}


def globally(mask: Mask, what: What, seed: int) -> Mask:
    """Return the mask with all units shuffled over all layers: only the density of the whole is kept."""
    return _shuffled(mask, what, torch_stream(seed, "permute"))


PERMUTATIONS: dict[str, Callable[[Mask, What, int], Mask]] = {"within_layers": within_layers, "global": globally}


def _shuffled(mask: Mask, what: What, generator: torch.Generator) -> Mask:
    units = {name: what.unit(mask[name].float()) > 0 for name in sorted(mask)}
    flat = torch.cat([alive.reshape(-1) for alive in units.values()])
    shuffled = flat[torch.randperm(len(flat), generator=generator)].split([alive.numel() for alive in units.values()])
    layers = zip(units, shuffled, strict=True)
    return {name: alive.view(units[name].shape).expand(mask[name].shape).clone() for name, alive in layers}


def misfits(
    ticket: Ticket, fresh: Params, left_out: tuple[str, ...], head: tuple[str, ...], names: Mapping[str, str]
) -> list[str]:
    """Return the layers in which the ticket and the network differ, each with what to choose instead."""
    here = f"model={names['model']} on data={names['data']}"
    known = {"model", "data"} <= set(ticket.axes)
    theirs_typed = {**ticket.axes, "model": typed(ticket.axes.get("model", ""), ticket.network_config)}
    origin = "choose model={model} with images of the shape of data={data}".format_map(theirs_typed) if known else UNKNOWN
    problems = []
    for name in [*fresh, *(name for name in ticket.params if name not in fresh)]:
        theirs, ours = _shape(ticket.params.get(name)), _shape(fresh.get(name))
        if name not in left_out and theirs != ours:
            instead = "choose ticket.head=fresh" if name in head else origin
            problems.append(f"{ticket.path}: {name} is {theirs} in the ticket and {ours} in {here}: {instead}")
    return problems[:3] + ([f"... and {len(problems) - 3} more tensors"] if len(problems) > 3 else [])


def typed(option: str, config: Mapping[str, object]) -> str:
    """Return what is typed after `model=` for the network of a config: an option, and a user's class in its place."""
    target = str(config.get("_target_", ""))
    own = target and not target.startswith("fedprune.")
    return f"{option} model._target_={target}" if own else option


def unprunable(ticket: Ticket, net: nn.Module, what: What, left_out: tuple[str, ...], names: Mapping[str, str]) -> list[str]:
    """Return the layers that are sparse in the ticket, and that this run would never prune, each with what to choose."""
    sparse = [name for name, alive in ticket.mask.items() if name not in (*what.names, *left_out) and not alive.all()]
    instead = _pruning(sparse, ticket, net, what, names)
    return [
        f"{ticket.path}: {name} is sparse in it, and what={names['what']} does not prune it as it is set: choose {instead}"
        for name in sparse
    ]


def _pruning(sparse: list[str], ticket: Ticket, net: nn.Module, what: What, names: Mapping[str, str]) -> str:
    """Return what to type so that these layers are pruned too: the ticket's option, or keys if the option is the same."""
    option = ticket.axes.get("what", "weights_global")
    if option != names["what"]:
        return f"what={option}"
    theirs = [kind for kind in LAYERS if any(name in weights for weights in prunable(net, (kind,)).values() for name in sparse)]
    kinds = list(dict.fromkeys([*what.layers, *theirs]))
    keys = [f"what.layers=[{','.join(kinds)}]"] * (kinds != [*what.layers]) + ["what.skip=[]"] * bool(what.skip)
    return " with ".join(keys) or UNKNOWN.removeprefix("choose ")


def _warn_of_another(ticket: Ticket, option: str, config: Mapping[str, object] | None) -> None:
    """Log the values of its config in which the ticket's network differs: no shape tells a stride or an activation."""
    if config is None or "network" not in ticket.provenance:
        return
    model = model_of(ticket)
    differences = [f"{key}={was} in the ticket, {now} here" for key, (was, now) in changed(model, config).items()]
    if differences:
        text = "%s is of model=%s, and the network of this run, model=%s, differs: %s"
        log.warning(text, ticket.path, model.option, option, "; ".join(differences))


def _shape(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


def _check(problems: list[str]) -> None:
    if problems:
        raise Incompatible(*problems)
