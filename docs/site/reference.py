"""The reference of options and experiments, from the files of conf/: the comment above a yaml describes it, and so its keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

GROUPS = {
    "The seven axes": ("what", "criterion", "when", "how_often", "where", "whose", "rewind"),
    "The federation": ("federated", "partition"),
    "Data and networks": ("data", "model"),
    "Training on a client": ("local",),
    "The machine": ("executor", "wire", "logger"),
}
"""The config groups by headings, each with the groups below it, such as federated/upload."""


def options(conf: Path) -> str:
    """Return the page of every group and option, with its description and its keys, as Markdown."""
    default = _defaults(conf)
    parts = [
        "# Every option",
        "`python -m fedprune GROUP=OPTION` chooses one, and `GROUP.KEY=VALUE` sets a key of it. This page is made from conf/.",
        "## Keys of every run",
        _yaml((conf / "config.yaml").read_text(encoding="utf-8").partition("\nname:")[2].partition("\nhydra:")[0], "name:"),
    ]
    for heading, tops in GROUPS.items():
        parts.append(f"## {heading}")
        for top in tops:
            parts += [_group(folder, folder.relative_to(conf).as_posix(), default) for folder in _folders(conf / top)]
    return "\n\n".join(parts) + "\n"


def experiments(folder: Path) -> str:
    """Return the page of every experiment: a method with its paper, a grid or a baseline."""
    paths = sorted(folder.glob("*.yaml"))
    parts = [
        "# Every experiment",
        "`python -m fedprune +experiment=NAME` runs one; with `-m` the grid that it declares, if it declares one. The text is "
        "the header of the yaml: the paper, and where ours deviates.",
    ]
    parts += [f"## {path.stem}\n\n{_about(path.read_text(encoding='utf-8'))}" for path in paths]
    return "\n\n".join(parts) + "\n"


def _folders(top: Path) -> list[Path]:
    """Return a group and the groups below it."""
    return [top, *sorted(path for path in top.rglob("*") if path.is_dir())]


def _group(folder: Path, name: str, default: Sequence[str]) -> str:
    shown = [_option(path, f"{name}: {path.stem}" in default) for path in sorted(folder.glob("*.yaml"))]
    return "\n\n".join([f"### {name}", *shown])


def _option(path: Path, chosen: bool) -> str:
    """Return an option's name, what its comment says, and the rest of its yaml."""
    text = path.read_text(encoding="utf-8")
    name = f"{path.stem} (default)" if chosen else path.stem
    return f"#### {name}\n\n{_about(text)}\n\n{_yaml(text)}"


def _about(text: str) -> str:
    """Return the comment at the head of a yaml, as sentences; lines that are commands stay lines of their own."""
    sentences: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        said = line.removeprefix("#")
        if said.strip() == "@package _global_":
            continue
        sentences.append(f"\n\n    {said.strip()}\n\n" if said.startswith("   ") else _escaped(said.strip()))
    return " ".join(sentences).strip()


def _escaped(text: str) -> str:
    """Return a comment whose <, _ and * are themselves in Markdown."""
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _yaml(text: str, before: str = "") -> str:
    """Return what a yaml says below its comment, as a block of code."""
    lines = (before + text).splitlines()
    first = next((i for i, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    body = "\n".join(lines[first:]).strip()
    return f"```yaml\n{body}\n```" if body else ""


def _defaults(conf: Path) -> set[str]:
    """Return `group: option` for all options that are chosen by default; of groups below, as their group's default says."""
    chosen = {f"{group}: {option}" for each in _listed(conf / "config.yaml") for group, option in each.items()}
    for entry in sorted(chosen):
        group, _, option = entry.partition(": ")
        for each in _listed(conf / group / f"{option}.yaml"):
            chosen |= {f"{group}/{below}: {value}" for below, value in each.items()}
    return chosen


def _listed(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    return [entry for entry in entries if isinstance(entry, dict) and not any(" " in str(key) for key in entry)]
