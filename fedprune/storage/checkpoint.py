"""State <-> file: one safetensors file, written atomically, with a digest. No pickle: loading never runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedprune.errors import Damaged, RunError
from fedprune.storage import digest, safetensors_writer
from fedprune.storage.before_groups import one_bag
from fedprune.storage.groups import as_bytes, as_tensor, grouped, ungrouped
from fedprune.storage.origin import another_run
from fedprune.storage.replace import replace_by
from fedprune.storage.safetensors_writer import Rows
from fedprune.storage.spilled import Stored
from fedprune.types import ClientState, Json, Mask, Params, Personal, ServerState, State, Subnet

FORMAT = 3
"""The number of the format of checkpoints. In format 1, SCAFFOLD's control is the buffer `c` of the server optimizer. From 3 on
a checkpoint holds the lines of metrics.jsonl."""

LINES = "history/lines"

NUMBERS = ("round", "clock", "events", "up_bytes", "down_bytes", "pruned", "opened")


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint. lines: those of metrics.jsonl until then; None of before a checkpoint had them."""

    state: State
    lines: bytes | None


def save_state(state: State, path: Path, lines: bytes = b"", run: str = "") -> None:
    """Write the state over the one before it, in one step: a reader sees either. Raises RunError if the disk refuses.

    lines: those of metrics.jsonl. run: the id of the run.
    """
    groups: dict[str, Params] = {
        "server": state.server.params,
        "mask": state.server.mask,
        "init": state.init,
        "ticket": state.ticket,
        "candidate": state.candidate,
        "stale": state.stale,
        "reached": {"clients": torch.tensor(sorted(state.reached))} if state.reached else {},
        **{f"anchors/{clock}": params for clock, params in state.anchors.items()},
        **{f"momentum/{kind}": params for kind, params in state.server_state.momentum.items()},
        "control": state.server_state.control,
        "common": {str(client): as_tensor(bits) for client, bits in state.server_state.common.items()},
        **{f"kept/{client}/{name}": group for client, kept in state.kept.items() for name, group in grouped(kept).items()},
        "personal": _personal(state),
    }
    rows = {LINES: Rows(len(lines), [lines])} | ({"personal/masks": _masks(state)} if state.personal else {})
    numbers = {"format": FORMAT, "run": run} | {name: getattr(state, name) for name in NUMBERS}
    write(groups, {"state": json.dumps(numbers)}, path, rows)


def load_state(path: Path) -> State:
    """Return the state of a file. Raises RunError, naming the file, if it is damaged, of another run, or something else."""
    return load_saved(path).state


def load_saved(path: Path) -> Saved:
    """Return the state of a file, and the lines. Raises Damaged, and RunError if it cannot be read or is of another run."""
    groups, metadata = read(path)
    try:
        numbers = json.loads(metadata["state"])
        if problem := another_run(path.parent.parent, numbers.get("run")):
            raise RunError(f"{path} belongs elsewhere: {problem}. Put it back, or run with force=true to start anew")
        if numbers.get("format", 1) > FORMAT:
            raise RunError(f"{path} was written by a newer fedprune: install that one, or run with force=true to start anew")
        return Saved(_state(groups, numbers, path), _lines(path) if numbers.get("format", 1) >= 3 else None)
    except (KeyError, ValueError, TypeError) as error:
        raise Damaged(path, f"it is not a checkpoint of fedprune: {error}") from error


def _state(groups: Mapping[str, Params], numbers: Json, path: Path) -> State:
    return State(
        server=Subnet(groups["server"], groups.get("mask", {})),
        init=groups["init"],
        ticket=groups["ticket"],
        candidate=groups.get("candidate", {}),
        stale=groups.get("stale", {}),
        reached=frozenset(groups["reached"]["clients"].tolist()) if "reached" in groups else frozenset(),
        anchors={int(key): params for key, params in _below(groups, "anchors/").items()},
        server_state=_server_state(groups, numbers.get("format", 1)),
        kept=_read_kept(groups),
        personal=_read_personal(groups.get("personal"), path),
        **{name: numbers[name] for name in NUMBERS},
    )


def _lines(path: Path) -> bytes:
    (_, length), start = safetensors_writer.place(path, LINES)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def _server_state(groups: Mapping[str, Params], format: int) -> ServerState:
    momentum, control = _below(groups, "momentum/"), groups.get("control", {})
    if format == 1:
        control = momentum.pop("c", {})
    common = {int(client): as_bytes(bits) for client, bits in groups.get("common", {}).items()}
    return ServerState(momentum, control, common)


def _personal(state: State) -> Params:
    """Return the clients' positions in their plans, as three tensors with a row per client; nothing if there are none."""
    if not state.personal:
        return {}
    return {
        "clients": torch.tensor([*state.personal]),
        "events": torch.tensor([personal.events for personal in state.personal.values()]),
        "pruned": torch.tensor([personal.pruned for personal in state.personal.values()]),
    }


def _masks(state: State) -> Rows:
    """Return the clients' personal masks, a row for each."""
    masks = [personal.mask for personal in state.personal.values()]
    return Rows(len(masks[0]), masks)


def _read_personal(tensors: Params | None, path: Path) -> dict[int, Personal]:
    """Return the clients' positions and masks. The masks stay in the file until somebody reads them: a checkpoint is never
    written to again, only replaced."""
    if tensors is None:
        return {}
    clients, events, pruned = (tensors[name].tolist() for name in ("clients", "events", "pruned"))
    (number, length), start = safetensors_writer.place(path, "personal/masks")
    if number != len(clients):
        raise ValueError(f"{number} masks of {len(clients)} clients")
    file = open(path, "rb")  # noqa: SIM115  it lives as long as the masks in it
    rows = zip(range(number), clients, events, pruned, strict=True)
    return {client: Personal(Stored(file, start + length * row, length), done, pruned) for row, client, done, pruned in rows}


def _read_kept(groups: Mapping[str, Params]) -> dict[int, ClientState]:
    """Return what each client keeps."""
    clients: dict[int, dict[str, Params]] = {}
    for name, tensors in _below(groups, "kept/").items():
        client, _, group = name.partition("/")
        clients.setdefault(int(client), {}).update({group: tensors} if group else one_bag(tensors, groups.get("mask", {})))
    return {client: ungrouped(parts) for client, parts in clients.items()}


def save_ticket(params: Params, mask: Mask, provenance: Mapping[str, str], path: Path) -> None:
    """Write a ticket: a mask, the weights to train it from, and its provenance. Raises RunError if the disk refuses."""
    write({"params": params, "mask": mask}, provenance, path)


def write(
    groups: Mapping[str, Params], metadata: Mapping[str, str], path: Path, rows: Mapping[str, Rows] = MappingProxyType({})
) -> None:
    """Write groups of named tensors as one safetensors file. Names are group/name; their order is in the metadata.

    rows: further tensors, by full name, that are not in that order and that `read` leaves out.
    """
    tensors = {f"{group}/{_escaped(name)}": tensor for group, params in groups.items() for name, tensor in params.items()}
    notes = {"order": json.dumps(list(tensors))}
    pairs = [full for full, tensor in tensors.items() if tensor.is_complex() and tensor.dtype not in safetensors_writer.DTYPES]
    if pairs:  # the format has no such types: they are written as their real and imaginary parts
        tensors |= {full: torch.view_as_real(tensors[full]) for full in pairs}
        notes["complex"] = json.dumps(pairs)
    write_tensors({**tensors, **rows}, {**metadata, **notes}, path)


def write_tensors(tensors: Mapping[str, Tensor | Rows], metadata: Mapping[str, str], path: Path) -> None:
    """Write tensors under their own names as one safetensors file with a digest, in one step; see `replace_by`."""
    pieces = safetensors_writer.pieces(tensors, {**metadata, **digest.SEALED})
    replace_by(path, lambda file: digest.write(file, pieces))


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step; see `replace_by`."""
    replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step; see `replace_by`."""
    replace_by(path, lambda file: file.write(content))


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Return the groups of tensors of a file, in the order in which they were written, and its metadata. Raises Damaged, and
    RunError if it cannot be read."""
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        digest.check(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            pairs = set(json.loads(metadata.get("complex", "[]")))
            for full in json.loads(metadata.get("order", "[]")):
                group, name = _split(full)
                tensor = file.get_tensor(full)
                groups.setdefault(group, {})[name] = torch.view_as_complex(tensor) if full in pairs else tensor
    except (SafetensorError, ValueError) as error:
        raise Damaged(path, error) from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, or run with force=true to start anew") from error
    return groups, metadata


def _escaped(name: str) -> str:
    """Return a tensor's name without a slash: slashes end groups, and torch allows them in the names of layers."""
    return name.replace("%", "%25").replace("/", "%2F")


def _split(full: str) -> tuple[str, str]:
    group, _, name = full.rpartition("/")
    return group, name.replace("%2F", "/").replace("%25", "%")


def _below(groups: Mapping[str, Params], prefix: str) -> dict[str, Params]:
    return {group.removeprefix(prefix): params for group, params in groups.items() if group.startswith(prefix)}
