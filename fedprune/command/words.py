"""The words that a user typed, made into what Hydra takes; and whether a command can write its results."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fedprune.config import CONF

WITH_VALUE = {
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--info", "-i", "--package", "-p", "--cfg", "-c"),
}
"""Flags that the next word belongs to."""

PATHS = ("ticket", "init_from")
"""Keys with a `path`, for which the path alone may be typed."""

READ_ONLY = {
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"),
    *("dry_run=true", "dry_run=True"),
}
"""Words of commands that print an answer and write nothing."""


def arguments(typed: Sequence[str]) -> list[str]:
    """Return the words with flags first, paths of tickets and trained weights in quotes, and several loggers one by one.

    Hydra's parser refuses overrides after a flag, and users append `-m`.
    """
    flags, overrides, rest = [], [], iter(typed)
    for word in rest:
        if not word.startswith("-") or word.startswith("-="):
            overrides += _each_logger(_with_quoted_letters(_with_quoted_number(_with_quoted_path(word))))
            continue
        flags.append(word)
        value = next(rest, None) if word in WITH_VALUE else None
        if value is not None:
            flags.append(value)
    return flags + overrides


FLAGS = WITH_VALUE | {
    *("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"),
    *("--shell-completion", "-sc", "--experimental-rerun"),
}


def unknown_flag(words: Sequence[str]) -> str | None:
    """Return what to type in the place of a flag that there is not, such as `--dry-run`; None if there is none."""
    given = iter(words)
    for word in given:
        flag, equals, value = word.partition("=")
        if not flag.startswith("-") or flag in FLAGS or not flag.strip("-"):
            if flag in WITH_VALUE and not equals:
                next(given, None)
            continue
        key = flag.strip("-").replace("-", "_")
        typed = value or {"dry_run": "true", "force": "true", "profile": "true"}.get(key, "VALUE")
        return (
            f"{flag} is no flag: keys have no dashes before them: type {key}={typed} (`python -m fedprune --help` lists them)"
        )
    return None


def writes(words: Sequence[str]) -> bool:
    """Return whether a command leaves results in a folder."""
    flags = {word.partition("=")[0] if word.startswith("-") else word for word in words}  # --cfg=job is --cfg job
    return not READ_ONLY & flags


def results_folder(words: Sequence[str]) -> Path:
    """Return the folder that results go to: outputs, or what is typed for hydra.run.dir, with -m for hydra.sweep.dir."""
    key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(words) else "hydra.run.dir"
    typed = [word.partition("=")[2].strip("'\"") for word in words if key_of(word) == key]
    return Path(typed[-1].partition("${")[0] or ".") if typed else Path("outputs")


def writable(folder: Path) -> bool:
    """Return whether a folder can be written to, or made if it does not exist."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def key_of(override: str) -> str:
    """Return the key of an override, without + or ~ before it."""
    return override.lstrip("+~").partition("=")[0].strip()


def own_folders(words: Sequence[str]) -> list[Path]:
    """Return the folders of a user's own options, as --config-dir names them."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    named = [value for flag, value in pairs if flag in ("--config-dir", "-cd")]
    return [Path(text) for text in [*named, *(word.partition("=")[2] for word in words if word.startswith("--config-dir="))]]


def several_experiments(words: Sequence[str]) -> str | None:
    """Return the word that launches several experiments at once, `+experiment=A,B`, or None."""
    return next((word for word in words if word.startswith("+experiment=") and "," in word), None)


def _with_quoted_path(word: str) -> str:
    """Return `ticket=FILE` or `init_from=FILE`, or `ticket=FILE,FILE` of a sweep, as `ticket.path` in quotes: run folders have
    = and , in their names. Another word stays as it is.
    """
    typed, _, value = word.partition("=")
    key = typed.removesuffix(".path")
    if key not in PATHS or value.startswith("{"):
        return word
    files = [value] if Path(value).exists() else value.split(",")
    every = all(Path(file).exists() for file in files)
    return f"{key}.path={','.join(map(_quoted, files)) if every else value}"


def _with_quoted_number(word: str) -> str:
    """Return `partition=3`, which no name of an option is, with the 3 in quotes: Hydra then says which options there are."""
    group, _, value = word.partition("=")
    if not value.replace(".", "", 1).isdecimal() or not group.replace("/", "").isidentifier() or not (CONF / group).is_dir():
        return word
    return f"{group}='{value}'"


def _with_quoted_letters(word: str) -> str:
    """Return `name=Zürich`, or `name=Zürich,Genf` of a sweep, in quotes: only there does Hydra read letters beyond ASCII."""
    key, _, value = word.partition("=")
    if value.isascii() or set(value) & set("'\"[]{}()"):
        return word
    return f"{key}={','.join(map(_quoted, value.split(',')))}"


def _quoted(file: str) -> str:
    """Return the path in quotes as Hydra reads them: letters beyond ASCII stay as they are."""
    return json.dumps(file, ensure_ascii=False)


def _each_logger(word: str) -> list[str]:
    """Return `logger=[A,B]` as the words by which Hydra adds each option below `logger`; another word as it is."""
    key, _, value = word.partition("=")
    if key != "logger" or not (value.startswith("[") and value.endswith("]")):
        return [word]
    names = dict.fromkeys(name.strip(" '\"") for name in value[1:-1].split(","))
    return ["logger=several", *(f"+logger@logger.{name}={name}" for name in names if name)]
