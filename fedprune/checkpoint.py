"""State <-> file: one safetensors file, written atomically. No pickle: loading never runs code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedprune.errors import RunError
from fedprune.types import Mask, Params, Personal, State, Subnet

NUMBERS = ("round", "clock", "events", "up_bytes", "down_bytes", "pruned", "opened")


def save_state(state: State, path: Path) -> None:
    """Write the state over the one before it; whoever reads sees the old one or the new one. Raises RunError if it cannot."""
    groups: dict[str, Params] = {
        "server": state.server.params,
        "mask": state.server.mask,
        "init": state.init,
        "ticket": state.ticket,
        "candidate": state.candidate,
        "stale": state.stale,
        **{f"anchors/{clock}": params for clock, params in state.anchors.items()},
        **{f"momentum/{key}": params for key, params in state.momentum.items()},
        **{f"kept/{client}": params for client, params in state.kept.items()},
        "personal": _personal(state),
    }
    write(groups, {"state": json.dumps({name: getattr(state, name) for name in NUMBERS})}, path)


def load_state(path: Path) -> State:
    """The state of a file. Raises RunError, naming it, if it is damaged or is something else."""
    groups, metadata = read(path)
    try:
        numbers = json.loads(metadata["state"])
        return State(
            server=Subnet(groups["server"], groups.get("mask", {})),
            init=groups["init"],
            ticket=groups["ticket"],
            candidate=groups.get("candidate", {}),
            stale=groups.get("stale", {}),
            anchors={int(key): params for key, params in _below(groups, "anchors/").items()},
            momentum=_below(groups, "momentum/"),
            kept={int(key): params for key, params in _below(groups, "kept/").items()},
            personal=_read_personal(groups.get("personal")),
            **{name: numbers[name] for name in NUMBERS},
        )
    except (KeyError, ValueError) as error:
        raise RunError(f"{path} is not a checkpoint of fedprune ({error}): remove it, or run with force=true") from error


def _personal(state: State) -> Params:
    """The clients' own masks and positions, as three tensors with a row per client; nothing if there are none."""
    if not state.personal:
        return {}
    masks = b"".join(own.mask for own in state.personal.values())
    return {
        "clients": torch.tensor([*state.personal]),
        "events": torch.tensor([own.events for own in state.personal.values()]),
        "pruned": torch.tensor([own.pruned for own in state.personal.values()]),
        "masks": torch.frombuffer(bytearray(masks), dtype=torch.uint8).view(len(state.personal), -1),
    }


def _read_personal(tensors: Params | None) -> dict[int, Personal]:
    if tensors is None:
        return {}
    clients, events, pruned = (tensors[name].tolist() for name in ("clients", "events", "pruned"))
    rows = zip(clients, tensors["masks"].numpy(), events, pruned, strict=True)
    return {client: Personal(mask.tobytes(), *place) for client, mask, *place in rows}


def save_ticket(params: Params, mask: Mask, provenance: Mapping[str, str], path: Path) -> None:
    """A ticket: the mask, the weights it is to be trained from, and where it comes from. Raises RunError if it cannot."""
    write({"params": params, "mask": mask}, provenance, path)


def write(groups: Mapping[str, Params], metadata: Mapping[str, str], path: Path) -> None:
    """Groups of named tensors as one safetensors file (names group/name; the order of names is kept in the metadata)."""
    tensors = {f"{group}/{name}": tensor for group, params in groups.items() for name, tensor in params.items()}
    order = json.dumps(list(tensors))
    # A tensor may stand in several groups at once; the format wants each in memory of its own.
    content = save(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        {**metadata, "order": order},
    )
    replace_file(path, content)


def write_text(path: Path, text: str) -> None:
    """As `replace_file`, for text."""
    replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step: complete and on the disk, or not at all. Raises RunError if it cannot."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror}. What was saved before is intact: make room, and the same command resumes"
        ) from error


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The groups of tensors of a file, in the order they were written, and its metadata. Raises RunError if it is damaged."""
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for full in json.loads(metadata.get("order", "[]")):
                group, name = _split(full)
                groups.setdefault(group, {})[name] = file.get_tensor(full)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): remove it, or run with force=true to start anew") from error
    return groups, metadata


def _split(full: str) -> tuple[str, str]:
    """A tensor's name never has a slash, a group's may."""
    group, _, name = full.rpartition("/")
    return group, name


def _below(groups: Mapping[str, Params], prefix: str) -> dict[str, Params]:
    return {group.removeprefix(prefix): params for group, params in groups.items() if group.startswith(prefix)}
