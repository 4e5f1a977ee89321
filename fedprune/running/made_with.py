"""The code and the machine that a run is made with, as run.json names them."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import time
from pathlib import Path

import hydra
import numpy
import torch

import fedprune
from fedprune.types import Json

PATIENCE = 2.0
"""Seconds that git may take; a repository on a slow disk is then one without an answer."""

FRESH = 10.0
"""Seconds for which an answer of git's counts: short runs of a sweep share one, and a notebook sees what has been changed."""


def made_with() -> Json:
    """Return the versions, the commits and the machine of this process, as plain values.

    commit: of the user's working directory; dirty: whether files that git knows differ from it there. package_commit and
    package_dirty are those of this package, if it is a checkout. Each is None where there is no git or no repository.
    """
    commit, dirty = state_of(Path.cwd())
    package = Path(fedprune.__file__).parents[1]
    package_commit, package_dirty = state_of(package) if (package / ".git").exists() else (None, None)
    return {
        **{"fedprune": fedprune.__version__, "package_commit": package_commit, "package_dirty": package_dirty},
        **{"commit": commit, "dirty": dirty},
        **_versions(),
        "gpu": graphics(),
    }


def graphics() -> str | None:
    """Return the name of the GPU that this process computes on, or None. A GPU that is not in use is left alone."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_initialized() else None


def state_of(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the repository that a folder is in, and whether tracked files differ from it: (None, None) without a
    repository or git. Takes some 5 ms, once in FRESH seconds."""
    return _asked(folder, int(time.monotonic() // FRESH))


@functools.lru_cache(maxsize=8)
def _asked(folder: Path, moment: int) -> tuple[str | None, bool | None]:
    words = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None, None
    lines = answer.splitlines()
    commits = [line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")]
    if not commits or commits[0] == "(initial)":
        return None, None
    return commits[0], any(not line.startswith("#") for line in lines)


@functools.cache
def _versions() -> Json:
    return {
        **{"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__},
        **{"hydra": hydra.__version__, "platform": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()},
    }


def _cpu() -> str:
    """Return the name of the CPU as Linux has it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
