"""Secrets in a configuration: what a key calls one is not written into files of a run, nor sent to loggers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

SECRET = re.compile(
    r"(^|[_-])(api_?key|access_?key|private_?key|(auth_?)?token|secret|passw(or)?d|passphrase|credentials?)$", re.I
)
"""The names of keys whose texts are secrets."""

MASK = "***"


def is_secret(key: str) -> bool:
    """Return whether a key, with the keys above it or without, is the name of a secret."""
    return bool(SECRET.search(key.rpartition(".")[2]))


def resolved(config: DictConfig) -> dict[str, object]:
    """Return the configuration with its interpolations resolved, and with secrets masked: one that stands as `${oc.env:NAME}`
    keeps these letters, by which a rerun finds it, and any other is `***`."""
    whole, raw = OmegaConf.to_container(config, resolve=True), OmegaConf.to_container(config, resolve=False)
    found = _masked(whole, raw, "")
    assert isinstance(found, dict)
    return found


def masked_overrides(overrides: Sequence[str]) -> list[str]:
    """Return what was typed, key=value, with secrets masked."""
    pairs = [override.partition("=") for override in overrides]
    return [f"{key}{equals}{_mask(value) if is_secret(key) else value}" for key, equals, value in pairs]


def _masked(value: object, raw: object, key: str) -> object:
    if isinstance(value, dict):
        below = raw if isinstance(raw, dict) else {}
        return {name: _masked(each, below.get(name), str(name)) for name, each in value.items()}
    if isinstance(value, list):
        beside = raw if isinstance(raw, list) and len(raw) == len(value) else [None] * len(value)
        return [_masked(each, other, key) for each, other in zip(value, beside, strict=True)]
    return _mask(raw if isinstance(raw, str) else value) if isinstance(value, str) and is_secret(key) else value


def _mask(value: object) -> str:
    """Return what stands for a secret; nothing where there is none."""
    text = str(value)
    return text if not text or text == "null" or re.fullmatch(r"'?\$\{oc\.env:[^,}]*\}'?", text) else MASK
