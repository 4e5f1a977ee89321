"""A dry run leaves nothing behind: what Hydra and its launchers write goes to a temporary folder, which is then removed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field

from omegaconf import DictConfig, open_dict, read_write

BYTECODE = "PYTHONDONTWRITEBYTECODE"


@dataclass
class Diverted:
    """The temporary folders of this process, and what its settings were before."""

    folders: list[str] = field(default_factory=list)
    writes_no_bytecode: bool = False


_diverted = Diverted()


def divert(config: DictConfig) -> None:
    """Let Hydra write to a temporary folder, for one run or a sweep; and Python no bytecode beside the user's modules."""
    launcher = str(config.hydra.get("launcher", {}).get("_target_", ""))
    shared = os.getcwd() if "submitit" in launcher else None  # jobs on other machines look for their orders there
    folder = tempfile.mkdtemp(prefix=".fedprune-dry-run-", dir=shared)
    if not _diverted.folders:
        _diverted.writes_no_bytecode = sys.dont_write_bytecode
    _diverted.folders.append(folder)
    sys.dont_write_bytecode = True
    os.environ.setdefault(BYTECODE, "fedprune")  # for the processes of a launcher
    with read_write(config), open_dict(config):
        config.hydra.run.dir = folder
        config.hydra.sweep.dir = folder
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")  # of which the jobs of a sweep are composed


def clean() -> None:
    """Remove what `divert` has made, and set back what it has set; do nothing after other runs."""
    if not _diverted.folders:
        return
    while _diverted.folders:
        shutil.rmtree(_diverted.folders.pop(), ignore_errors=True)
    sys.dont_write_bytecode = _diverted.writes_no_bytecode
    if os.environ.get(BYTECODE) == "fedprune":
        with suppress(KeyError):
            del os.environ[BYTECODE]
