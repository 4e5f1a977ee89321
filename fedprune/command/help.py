"""The texts of `--help`, `--version` and of the command without a word. None of them needs torch or Hydra."""

from __future__ import annotations

import platform
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedprune import __version__
from fedprune.config import CONF

GROUPS = {
    "The seven axes of a pruning method": {
        "what": "is pruned: units (weights, filters), and the pool in which they compete",
        "criterion": "by which units are dropped, and grown",
        "when": "prune events happen",
        "how_often": "prune events happen, on the way to the density",
        "where": "the evidence is measured",
        "whose": "the mask is",
        "rewind": "what survivors go back to",
    },
    "The federation and its data": {
        "federated": "the federated algorithm, and below it how the server merges, who answers, what is sent",
        "partition": "how examples are divided among clients",
        "data": "the data set",
        "model": "the network",
        "local": "how clients train, and below it their optimizer, penalty and dropout",
    },
    "The machine": {
        "executor": "where clients run",
        "wire": "how masks and weights are encoded",
        "logger": "where metrics go beside metrics.jsonl",
    },
}
"""The config groups under headings, each with what it chooses."""

ALONE = """\
fedprune finds out which pruning recipe survives federated training. Words choose, and -m runs a grid:

  fedprune how_often=gradual density=0.1 rounds=30        one run on data that comes along (a few seconds)
  fedprune +experiment=lth_fedavg -m                      lottery tickets inside FedAvg against their controls
  fedprune +experiment=feddst dry_run=true                a published method: what it would do and what it would cost
  fedprune rounds=100                                     the dense network that you get when you choose nothing

  fedprune --help          every group and option          fedprune --cfg job       every key with its value
  fedprune --version       versions                        python -m fedprune.analysis outputs/NAME    tables and figures

`python -m fedprune` is the same command. Results go to outputs/<name>; the same command again resumes or does nothing.
"""

COMPLETION = """\
The Tab key completes keys and options after this line, which ~/.bashrc may have, too:

  eval "$(fedprune --shell-completion install=bash)"      # or install=zsh, install=fish; uninstall= takes it away
"""

EXAMPLES = """\
Examples (`python -m fedprune` is the same command):
  fedprune +experiment=lth_fedavg -m                             the grid that the experiment declares
  fedprune +experiment=lth_fedavg criterion=snip seed=0,1,2 -m   narrowed, with seeds
  fedprune how_often=gradual density=0.05 data=fashion_mnist model=lenet5 federated.clients=100
  fedprune +experiment=lth_fedavg dry_run=true                   the plan and its cost, without training
  fedprune ticket=outputs/lth_fedavg/JOB data=mnist              start from the ticket of a run, on other data
  fedprune --cfg job                                             the whole configuration and every key
  fedprune --config-dir mine criterion=my                        your own options: mine/criterion/my.yaml

Results go to outputs/<name>; the same command skips what is done and resumes what is not. Flags are Hydra's: -m for a grid,
--cfg, --config-dir, --config-name, --info, --shell-completion; `--hydra-help` lists them.
"""


def version_text() -> str:
    """Return the version, and those of what results may depend on."""
    others = [f"{name} {_version(name)}" for name in ("torch", "hydra-core", "omegaconf", "pytorch-lightning", "wandb")]
    return f"fedprune {__version__} ({', '.join(others)}; Python {platform.python_version()})"


def help_text(folders: Sequence[Path] = (), width: int | None = None) -> str:
    """Return every group with its options, each with the first sentence of its yaml, wrapped to the width of the terminal.

    folders: those of a user's own options, beside conf/.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = ["fedprune: which pruning recipe survives federated training?", "", *_usage(width)]
    for heading, groups in GROUPS.items():
        lines += ["", heading, "=" * len(heading)]
        for group, chooses in groups.items():
            lines += _group(group, chooses, [CONF, *folders], width)
    names = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
    about = f"+experiment=NAME adds one of {len(names)} experiments, published methods and grids:"
    lines += ["", *textwrap.wrap(about, width)]
    lines += textwrap.wrap(", ".join(names), width, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*lines, "", EXAMPLES])


def _usage(width: int) -> list[str]:
    return textwrap.wrap(
        "fedprune [group=option] [group.key=value] [+experiment=NAME] [-m]    (commas make a grid, with -m)", width
    )


def _group(group: str, chooses: str, folders: Sequence[Path], width: int) -> Iterator[str]:
    """Yield a group, its options, and the groups below it."""
    yield from ("", *textwrap.wrap(f"{group}: {chooses}", width))
    own = [path for folder in folders for path in sorted((folder / group).glob("*.yaml"))]
    yield from _options(own, width)
    below = {path.relative_to(folder) for folder in folders for path in (folder / group).rglob("*") if path.is_dir()}
    for name in sorted(each.as_posix() for each in below):
        yield from ("", f"{name}:")
        yield from _options([path for folder in folders for path in sorted((folder / name).glob("*.yaml"))], width)


def _options(paths: Sequence[Path], width: int) -> Iterator[str]:
    column = max((len(path.stem) for path in paths), default=0) + 4
    for path in paths:
        name = f"  {path.stem:<{column - 2}}"
        text = textwrap.wrap(first_sentence(path), width, initial_indent=name, subsequent_indent=" " * column)
        yield from text or [f"  {path.stem}"]


def first_sentence(path: Path) -> str:
    """Return the first sentence of the comment above a yaml; "" if there is none."""
    said: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            said.append(line.removeprefix("#").strip())
    text = " ".join(said)
    end = next((i for i in range(len(text)) if text[i : i + 2] in (". ", ".") and _ends(text[:i])), len(text))
    return text[: end + 1]


def _ends(before: str) -> bool:
    """Return whether a full stop after this text ends a sentence, and is not that of an abbreviation."""
    return before.rpartition(" ")[2] not in ("al", "e.g", "i.e", "vs") and not before.endswith(" al")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
