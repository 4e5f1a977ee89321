"""Export a run's network, as it is or compacted: to ONNX, safetensors, or a plain state_dict.

The network is made again from the whole model config of the run; model.py says which values of a file are refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from fedprune.compaction.export import compact, told
from fedprune.compaction.resize import Survivors
from fedprune.errors import ConfigError, DataError, RunError
from fedprune.pruning.evidence.gates import plain
from fedprune.pruning.evidence.network import blank
from fedprune.storage.checkpoint import load_state
from fedprune.tensors import load_tensors, other_names, tensors_of
from fedprune.ticket.model import build_network, model_of
from fedprune.ticket.read import load_ticket, parsed
from fedprune.types import Mask, Params


@dataclass(frozen=True)
class Network:
    """A network with its weights, its mask, a batch of one input of its shape, and the units that it kept if it was
    compacted. inputs: the mean and standard deviation of the data's channels, the range of bytes, and the names of the
    classes, as JSON by key, without those that the data set has not; None: the ticket does not say. round_to: the
    run's `what.round_to`. stays: the dead units that could not go, as text."""

    net: nn.Module
    mask: Mask
    example: torch.Tensor
    survivors: Survivors | None = None
    inputs: Mapping[str, str] | None = None
    round_to: int = 1
    stays: str = ""

    def smaller(self, round_to: int | None = None) -> Network:
        """Return the network without its dead units. round_to: a multiple of so many is left of each layer that loses some
        (None: that of the run). Raises Incompatible if they cannot be removed."""
        to = self.round_to if round_to is None else round_to
        small = compact(self.net, self.mask, self.example, to)
        return Network(small.net, small.mask, self.example, small.survivors, self.inputs, to, told(small.stays))


def load_network(path: Path, folders: Sequence[Path], trusted: Collection[str] = ()) -> Network:
    """Return the trained network of a run folder, or the network of a ticket with the ticket's weights.

    folders: where model/*.yaml are. trusted: callables that the file may name beside those of its yaml. Raises DataError if
    there is no such file, or if its network cannot be made here.
    """
    ticket = load_ticket(path)
    subnet = load_state(path / "state" / "state.safetensors").server if path.is_dir() else ticket
    model = model_of(ticket)
    net = build_network(ticket, model, folders, trusted)
    params = {name: tensor for name, tensor in plain(subnet.params).items() if name not in other_names(net)}
    problem = _misfit(params, tensors_of(net))
    if problem:
        raise DataError(f"{ticket.path} is not of the network that model={model.option} is here: {problem}")
    load_tensors(net, params)
    inputs = {key: json.dumps(value) for key, value in parsed(ticket.provenance, "inputs").items() if value}
    known = inputs if "inputs" in ticket.provenance else None
    to = json.loads(ticket.provenance.get("round_to", "1"))
    return Network(net.eval(), subnet.mask, blank(net, model.shape), inputs=known, round_to=to)


def _misfit(params: Params, net: Params) -> str | None:
    """Return, as text, the first tensor in which a file and a network differ, or None."""
    theirs, ours = _shapes(params), _shapes(net)
    first = next((name for name in [*theirs, *ours] if theirs.get(name) != ours.get(name)), None)
    if first is None:
        return None
    return f"{first} is {theirs.get(first, 'missing')} there, {ours.get(first, 'missing')} here"


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in params.items()}


def to_onnx(network: Network, path: Path) -> None:
    """Write a network from normalised inputs to logits; the size of the batch is free. Raises ConfigError without onnx.

    The metadata (metadata_props) has mean, std, range and class_names as JSON, where there are any: inputs are (x - mean) / std
    for each channel, x in the range.
    """
    try:
        import onnx  # torch's exporter needs it, too, and fails late without it
    except ImportError as error:
        raise ConfigError(["ONNX is not installed: pip install 'fedprune[onnx]', or choose --to model.safetensors"]) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without further dependencies is deprecated
        torch.onnx.export(
            network.net,
            (network.example,),
            str(path),
            dynamo=False,
            input_names=["inputs"],
            output_names=["logits"],
            dynamic_axes={"inputs": {0: "batch"}, "logits": {0: "batch"}},
        )
    if network.inputs:
        model = onnx.load(str(path))
        onnx.helper.set_model_props(model, dict(network.inputs))
        onnx.save(model, str(path))


def to_safetensors(network: Network, path: Path) -> None:
    """Write the state_dict; the metadata have what those of ONNX have, and of a compacted network its channels as `kept`."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in network.net.state_dict().items()}
    kept = {} if network.survivors is None else {"kept": json.dumps(network.survivors)}
    path.write_bytes(save(tensors, {**(network.inputs or {}), **kept}))


def to_state_dict(network: Network, path: Path) -> None:
    """Save the state_dict for `torch.load(..., weights_only=True)`; of a compacted network with its channels as JSON beside
    it."""
    torch.save({name: tensor.clone() for name, tensor in network.net.state_dict().items()}, path)
    if network.survivors is not None:
        path.with_suffix(".kept.json").write_text(json.dumps(network.survivors) + "\n", encoding="utf-8")


FORMATS: dict[str, Callable[[Network, Path], None]] = {
    ".onnx": to_onnx,
    ".safetensors": to_safetensors,
    ".pt": to_state_dict,
}


def export(network: Network, path: Path) -> None:
    """Write a network in the format of the file's ending. Raises ConfigError for an unknown one, RunError if it cannot
    write."""
    if path.suffix not in FORMATS:
        raise ConfigError([f"--to {path}: the ending says the format, choose one of {', '.join(FORMATS)}"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[path.suffix](network, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
