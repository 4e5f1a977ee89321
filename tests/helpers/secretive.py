"""A module that is given secrets."""

from __future__ import annotations

from typing import Any

from torch import nn

from fedprune.local.module import LocalModule


class WithToken(LocalModule):
    """Classification, with a token and a key for something."""

    def __init__(self, net: nn.Module, optimizer: Any, token: str, api_key: str):
        super().__init__(net, optimizer)
        assert token == "hunter3" and api_key == "hunter2"
