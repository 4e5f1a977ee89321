"""A run's network in formats that others read: ONNX, safetensors, a plain state_dict; as it is, or compacted.

The network is made again with all that the run's config said of it; see model.py for what of a file is not taken.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from fedprune.compaction.export import compact
from fedprune.compaction.resize import Kept
from fedprune.errors import ConfigError, DataError, RunError
from fedprune.pruning.evidence.gates import plain
from fedprune.pruning.evidence.network import blank
from fedprune.storage.checkpoint import load_state
from fedprune.tensors import load_tensors, other_names, tensors_of
from fedprune.ticket.model import build_network, model_of
from fedprune.ticket.read import load_ticket
from fedprune.types import Mask, Params


@dataclass(frozen=True)
class Network:
    """A network with its weights, its mask, a batch of one input of its shape, and (if it was compacted) what it kept."""

    net: nn.Module
    mask: Mask
    example: torch.Tensor
    kept: Kept | None = None

    def smaller(self) -> Network:
        """Without its dead units. Raises Incompatible if they cannot go."""
        small = compact(self.net, self.mask, self.example)
        return Network(small.net, small.mask, self.example, small.kept)


def load_network(path: Path, folders: Sequence[Path]) -> Network:
    """Of a run folder: its trained network. Of a ticket: the network at the ticket's weights. folders: where model/*.yaml are.

    Raises DataError if there is no such file, or if its network cannot be made here.
    """
    ticket = load_ticket(path)
    subnet = load_state(path / "state" / "state.safetensors").server if path.is_dir() else ticket
    model = model_of(ticket)
    net = build_network(ticket, model, folders)
    params = {name: tensor for name, tensor in plain(subnet.params).items() if name not in other_names(net)}
    problem = _misfit(params, tensors_of(net))
    if problem:
        raise DataError(f"{ticket.path} is not of the network that model={model.option} is here: {problem}")
    load_tensors(net, params)
    return Network(net.eval(), subnet.mask, blank(net, model.shape))


def _misfit(params: Params, net: Params) -> str | None:
    """Return the first tensor in which a file and a network differ, or None."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (params, net)]
    theirs, ours = shapes
    differ = [name for name in [*theirs, *ours] if theirs.get(name) != ours.get(name)]
    return f"{differ[0]} is {theirs.get(differ[0], 'missing')} there, {ours.get(differ[0], 'missing')} here" if differ else None


def to_onnx(network: Network, path: Path) -> None:
    """Logits from inputs that are normalised as in training; the size of the batch is free."""
    try:
        import onnx  # noqa: F401  (torch's exporter needs it, and says so late)
    except ImportError as error:
        raise ConfigError(["ONNX is not installed: pip install 'fedprune[onnx]', or choose --to model.safetensors"]) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without further dependencies is the older one, and says so
        torch.onnx.export(
            network.net,
            (network.example,),
            str(path),
            dynamo=False,
            input_names=["inputs"],
            output_names=["logits"],
            dynamic_axes={"inputs": {0: "batch"}, "logits": {0: "batch"}},
        )


def to_safetensors(network: Network, path: Path) -> None:
    """The state_dict; of a compacted network with the channels it kept as `kept` in the metadata."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in network.net.state_dict().items()}
    path.write_bytes(save(tensors, {} if network.kept is None else {"kept": json.dumps(network.kept)}))


def to_state_dict(network: Network, path: Path) -> None:
    """`torch.save` of the state_dict, for `torch.load(..., weights_only=True)`; kept channels as JSON beside it."""
    torch.save({name: tensor.clone() for name, tensor in network.net.state_dict().items()}, path)
    if network.kept is not None:
        path.with_suffix(".kept.json").write_text(json.dumps(network.kept) + "\n")


FORMATS: dict[str, Callable[[Network, Path], None]] = {
    ".onnx": to_onnx,
    ".safetensors": to_safetensors,
    ".pt": to_state_dict,
}


def export(network: Network, path: Path) -> None:
    """Write it in the format that the file's ending names. Raises ConfigError on another one, RunError if it cannot write."""
    if path.suffix not in FORMATS:
        raise ConfigError([f"--to {path}: the ending says the format, choose one of {', '.join(FORMATS)}"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[path.suffix](network, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
