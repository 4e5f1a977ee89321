"""The identity of a run: all of its configuration that its result depends on. Two runs of one identity are one run.

Every key is in it, at its value after interpolation, so that ${oc.env:X} counts with the value of X. Left out are the keys of
VOLATILE, which change no result. `executor` and `device` do change how sums are rounded: see `arithmetic`. Beside the
configuration, the user's code counts (code.py), and files count by what is in them and not by where they are (reads.py, FILES).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from fedprune.errors import ConfigError
from fedprune.identity.code import packages, sources, targets
from fedprune.identity.files import content
from fedprune.identity.reads import by_content, declared_by

if TYPE_CHECKING:  # importing it takes torch's second
    from fedprune.types import Json

VOLATILE = (
    *("executor", "logger", "device", "dry_run", "force", "wait", "checkpoint_every", "profile", "home", "objective", "hydra"),
)
"""Keys that do not change a result."""

AT_ONCE = 32
"""The number of clients that are trained as one batched model, unless `executor.at_once` says another."""

ADDED = {"tuned": None, "tuned_at": "evaluations", "unseen": 0.0}
"""Keys of `federated` that came later, each with the value at which a run trains what it trained before there was the key."""

NEIGHBOURS = "fedprune.federated.decentralised.Neighbours"
"""The kind of round whose client/* were of trained networks, and are of those that a client begins its next round with: runs of
it from before these keys are others."""

UNCHANGED = (None, {"_target_": "fedprune.data.augment.Unchanged"})
"""The values of `data.augment` at which it is off."""

MOMENTS = ("mean", "std")
"""Keys of `data` at which nothing changes when they are null."""

NOTHING = {"_target_": "fedprune.local.regularisers.base.none"}
"""The node of a penalty or dropout that is off."""


def _of_ticket(path: str) -> Path:
    folder_or_file = Path(path).expanduser()
    return folder_or_file / "ticket.safetensors" if folder_or_file.is_dir() else folder_or_file


FILES: dict[str, Callable[[str], Path]] = {"ticket.path": _of_ticket, "init_from.path": lambda path: Path(path).expanduser()}
"""Keys, besides those of options with a `_target_`, whose value is the path of a file that counts by its content: the same file
in another place is the same run. Each stands with (value) -> the file. A key that is null is left out, with its group: such a
run keeps the identity that it had before there was the key. Another key is another line here."""


@dataclass(frozen=True)
class Inputs:
    """All that a run depends on besides the text of its configuration: names, each with a digest or the version of a package.

    code: files of the user's code. packages: installed ones whose options the run uses. files: the dotted keys of paths.
    """

    code: Mapping[str, str]
    packages: Mapping[str, str]
    files: Mapping[str, str]


def identity(config: DictConfig) -> Json:
    """Return all that may change the result, as plain values. Raises omegaconf's errors for a bad interpolation."""
    return with_inputs(written(config))[0]


def with_inputs(plain: Json) -> tuple[Json, Inputs]:
    """Return the identity of a run from its configuration (see `written`), and what is in it besides that."""
    names = sorted(set(targets(plain)))
    code, versions = sources(names), packages(names)
    counted, digests = by_content(plain)
    assert isinstance(counted, dict)
    for key, file_of in FILES.items():
        digests |= _counted_file(counted, key, file_of)
    besides = {"code": code, "packages": versions}
    return counted | {part: values for part, values in besides.items() if values}, Inputs(code, versions, digests)


def _counted_file(counted: Json, key: str, file_of: Callable[[str], Path]) -> dict[str, str]:
    """Put the content of the file that a key names in the place of its path; return its digest by the key, {} without one."""
    *above, name = key.split(".")
    node = counted
    for part in above:
        node = node.get(part, {})
    if node.get(name) is None:
        return {}
    try:
        digest = content([file_of(node[name])])
    except (OSError, RuntimeError):  # missing or unreadable, or in the home folder of nobody; the run reports it
        return {}
    node[name] = {"content": digest}
    return {key: digest}


def written(config: DictConfig) -> Json:
    """Return every key that may change the result, as it is written. Raises omegaconf's errors for a bad interpolation."""
    plain = resolved(config)
    kept = {key: value for key, value in plain.items() if key not in VOLATILE}
    for key in FILES:
        _leave_out_null(kept, key)
    kept["local"] = {key: value for key, value in kept["local"].items() if value != NOTHING}  # so do these
    if kept["federated"]["round"]["_target_"] != NEIGHBOURS:
        kept["federated"] = {key: value for key, value in kept["federated"].items() if ADDED.get(key, NOTHING) != value}
    kept["how_often"] = {key: value for key, value in kept["how_often"].items() if (key, value) != ("alone", 0)}  # and these
    kept["data"] = {key: value for key, value in kept["data"].items() if key != "augment" or value not in UNCHANGED}
    kept["data"] = {key: value for key, value in kept["data"].items() if key not in MOMENTS or value is not None}
    kept["whose"] = _whose(kept["whose"])
    kept["what"] = {key: value for key, value in kept["what"].items() if (key, value) != ("round_to", 1)}  # and these two
    kept = {key: value for key, value in kept.items() if (key, value) != ("density_of", "units")}
    return kept | arithmetic(plain["executor"], plain["device"])


def _leave_out_null(kept: Json, key: str) -> None:
    """Leave out a key of FILES that is null, with its group: such a run keeps the identity of before there was the key."""
    top, _, name = key.partition(".")
    if top in kept and (kept[top][name] if name else kept[top]) is None:
        del kept[top]


def resolved(config: DictConfig) -> Json:
    """Return the values of all keys but hydra's, whose folder is named after them. Raises omegaconf's errors."""
    ours = [str(key) for key in config if key != "hydra"]
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, ours), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _whose(option: object) -> object:
    """Return the keys of `whose`, without `common` where no client keeps values of its own: it decides nothing there."""
    if not isinstance(option, Mapping) or option.get("uncommon") != "server":
        return option
    return {key: value for key, value in option.items() if key != "common"}


def arithmetic(executor: Json, device: str) -> dict[str, object]:
    """Return the keys that decide the order in which sums are taken; {} for the default, executor=serial on a CPU.

    serial, processes and ray give the same bits on one kind of device. executor=batched and cuda, and any GPU, differ from them
    by rounding, which training makes larger: the result is another, and so is the run. An executor declares in `batches_on` the
    kinds of device on which it trains several clients as one model.
    """
    kind = _kind(device)
    batched = kind in declared_by(executor.get("_target_"), "batches_on", ())
    at_once = executor.get("at_once", AT_ONCE) if batched else 1
    if (kind, at_once) == ("cpu", 1):
        return {}
    return {"arithmetic": {"device": kind, "at_once": at_once}}


def _kind(device: str) -> str:
    from fedprune.device import chosen  # importing torch takes a second: a typo need not wait for it

    with suppress(ConfigError):  # build reports it
        device = chosen(device)
    return device.partition(":")[0]
