"""The memory of a node: what its client keeps between its rounds, and never sends. It lies in the state that Flower keeps for
the node, which the server cannot read.

The server knows a thing that is kept by its digest. A node holds the last two of each kind: the server goes back to the one
before the last if it could not use the last answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping

import numpy as np
from safetensors.torch import load, save

from fedprune.deployment.post import Field
from fedprune.execution.arrays import tensors_of
from fedprune.federated.client.state_arrays import KeptArrays, as_arrays
from fedprune.storage.groups import ungrouped

HELD = 2
MASK, STATE = "mask", "state"


def digest(content: bytes) -> bytes:
    """Return 16 bytes that stand for the content; b"" for none."""
    return hashlib.sha256(content).digest()[:16] if content else b""


class Memory:
    """The things that a node holds, in fields with names `<kind>/<number>/<digest>`."""

    def __init__(self, fields: MutableMapping[str, Field]):
        self._fields = fields

    def keep(self, kind: str, content: bytes) -> bytes:
        """Hold this content, and return its digest. The oldest of the kind is forgotten."""
        name = digest(content)
        if not content or self.recall(kind, name) == content:
            return name
        numbers = sorted(self._names(kind))
        for number in numbers[: len(numbers) + 1 - HELD]:
            del self._fields[self._names(kind)[number]]
        self._fields[f"{kind}/{max(numbers, default=0) + 1:09d}/{name.hex()}"] = content
        return name

    def recall(self, kind: str, name: bytes) -> bytes | None:
        """Return the content of this digest; None if it is not held."""
        if not name:
            return b""
        places = [place for place in self._names(kind).values() if place.endswith(name.hex())]
        content = self._fields[places[0]] if places else None
        return content if isinstance(content, bytes) else None

    def _names(self, kind: str) -> dict[int, str]:
        return {int(place.split("/")[1]): place for place in self._fields if place.startswith(f"{kind}/")}


def state_to_bytes(kept: KeptArrays) -> bytes:
    """Return a client's state as bytes; b"" if there is none."""
    tensors = {json.dumps([group, name]): t for group, arrays in kept.items() for name, t in tensors_of(arrays).items()}
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}) if tensors else b""


def state_of_bytes(content: bytes) -> KeptArrays:
    """Return the state that `state_to_bytes` was given."""
    groups: dict[str, dict[str, object]] = {}
    for key, tensor in (load(content) if content else {}).items():
        group, name = json.loads(key)
        groups.setdefault(group, {})[name] = tensor
    return as_arrays(ungrouped(groups)) if groups else {}  # type: ignore[arg-type]  # they are tensors, all of them


def receipt(name: bytes) -> KeptArrays:
    """Return what the server has in the place of a client's state: the digest. No server reads what a client keeps."""
    return {"mask": {"bits": np.frombuffer(name, np.uint8).copy()}} if name else {}


def receipt_of(kept: KeptArrays) -> bytes:
    """Return the digest in a receipt; b"" if there is none."""
    return kept["mask"]["bits"].tobytes() if "mask" in kept else b""
