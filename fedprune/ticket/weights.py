"""Read weights that were trained elsewhere: a state_dict (.pt, .pth, .ckpt, .bin) or safetensors. Reading never runs code."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedprune.errors import DataError, shown
from fedprune.ticket.torch_prune import MASK, ORIG, from_torch_prune
from fedprune.types import Mask, Params

NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts and Lightning save a state_dict beside other things."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
"""The first words that DataParallel, torch.compile and a LightningModule put before the names of a network."""

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")

SAVE = "save it with torch.save(net.state_dict(), FILE)"


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and a mask where torch.nn.utils.prune has left one. remarks: what was done to find them, as clauses."""

    params: Params
    mask: Mask
    remarks: tuple[str, ...] = ()


def read_weights(path: Path, names: Iterable[str]) -> Weights:
    """Return the weights in a file, under the names of the network. names: of the network's tensors.

    Raises DataError if the file is missing, damaged, or holds anything else, with what to type.
    """
    state, remarks = _flat(_loaded(path), path)
    state, further = _without_prefix(state, tuple(names))
    remarks += further
    if not any(name.endswith(ORIG) and name.removesuffix(ORIG) + MASK in state for name in state):
        return Weights(state, {}, remarks)
    try:
        pruned = from_torch_prune(state)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Weights(pruned.params, pruned.mask, (*remarks, f"{len(pruned.mask)} tensors pruned by torch.nn.utils.prune"))


def holds_weights(path: Path) -> bool:
    """Return whether a file is a state_dict and no ticket: by torch.save, or safetensors without a ticket's metadata."""
    if _by_torch(path):
        return True
    try:
        with safe_open(path, framework="pt") as file:
            return bool(list(file.keys())) and "order" not in (file.metadata() or {})
    except SafetensorError:
        return False


def _by_torch(path: Path) -> bool:
    """Return whether a file is a zip archive, as torch.save writes, or is named as such a file."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK" or path.suffix in SUFFIXES


def _loaded(path: Path) -> object:
    """Return what is in a file. Raises DataError."""
    if path.is_dir():
        raise DataError(f"init_from={path} is a folder: type init_from=FILE, or for a run's folder ticket={path}")
    if not path.is_file():
        raise DataError(f"init_from={path}: there is no such file: type init_from=FILE, a state_dict or safetensors")
    return _saved_by_torch(path) if _by_torch(path) else _safetensors(path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise DataError(f"init_from={path} is damaged or no safetensors ({error}): give the file as it was written") from error
    if "order" in metadata:
        instead = f"type ticket={path}" if "axes" in metadata else "export its run with python -m fedprune.ticket export"
        raise DataError(f"init_from={path} is a file of fedprune with more than weights: {instead}")
    if "kept" in metadata:
        raise DataError(f"init_from={path} is of a smaller network (--compact): export it without --compact, and give that")
    return tensors


def _saved_by_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().partition("Please file")[0].splitlines()
        named = next((line for line in reason if "GLOBAL" in line or "global" in line), reason[0] if reason else "")
        raise DataError(
            f"init_from={path} holds more than tensors, and none of it is run ({named.strip():.160}): {SAVE}"
        ) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        MemoryError,
    ) as error:
        why = str(error).strip().splitlines()[:1]
        raise DataError(f"init_from={path} is damaged or nothing that torch has saved ({''.join(why):.160}): {SAVE}") from error


def _flat(loaded: object, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the state_dict in what was loaded, and where it was. Raises DataError if there is none."""
    if not isinstance(loaded, Mapping):
        raise DataError(f"init_from={path} holds a {type(loaded).__name__} and no state_dict: {SAVE}")
    for key in NESTED:
        if isinstance(loaded.get(key), Mapping):
            state, remarks = _flat(loaded[key], path)
            return state, (f"found under {key!r}", *remarks)
    others = [f"{name} ({type(value).__name__})" for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others or not loaded:
        holds = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "") or "nothing"
        raise DataError(f"init_from={path} is no state_dict: beside tensors it holds {holds}: {SAVE}")
    state = cast(dict[str, Tensor], dict(loaded))
    if odd := [str(name) for name, tensor in state.items() if not isinstance(name, str) or not _whole(tensor)]:
        raise DataError(f"init_from={path}: {shown(odd[0])} is no tensor with all of its numbers in the file: {SAVE}")
    return state, ()


def _whole(tensor: Tensor) -> bool:
    """Return whether the memory of a tensor has all of its entries: an expanded one is of any size in a few bytes."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _without_prefix(state: dict[str, Tensor], names: tuple[str, ...]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors without the first word that most of their names share and the network's names lack."""
    firsts = Counter(f"{name.partition('.')[0]}." for name in state)
    prefix = next((word for word, number in firsts.most_common(1) if word in PREFIXES and 2 * number > len(state)), None)
    if prefix is None or any(name.startswith(prefix) for name in names):
        return state, ()
    left_out = [name for name in state if not name.startswith(prefix)]
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    deeper, further = _without_prefix(inner, names)
    without = (f"without {', '.join(left_out[:5])}, which {'are' if len(left_out) > 1 else 'is'} not below it",) * bool(
        left_out
    )
    return deeper, (f"names without {prefix!r}", *without, *further)
