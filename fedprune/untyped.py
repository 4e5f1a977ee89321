"""Names for values whose types are decided outside of the package: by JSON, by torch, by the code of a user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
"""A JSON object: what run.json, a ticket's provenance or the header of a message holds."""

Function = Callable[..., Any]
"""A function of torch or of a user, called with whatever it takes."""

Ctx = Any
"""The first argument of both passes of a torch.autograd.Function, to which any attribute can be set."""
