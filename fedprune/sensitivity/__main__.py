"""The command `python -m fedprune.sensitivity RUN...`: measure what deleting does to the networks of finished runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pandas as pd
from hydra.errors import HydraException
from rich.console import Console

from fedprune.analysis.figures.style import save
from fedprune.analysis.markdown import markdown
from fedprune.analysis.read import find_runs
from fedprune.config import CONF
from fedprune.config.compose import composed_option
from fedprune.config.instantiate import make
from fedprune.errors import ConfigError, FedpruneError
from fedprune.pruning.criterion import Criterion
from fedprune.sensitivity.deletion_curves import curves, trained
from fedprune.sensitivity.draw import figure, table

DENSITIES = tuple(number / 20 for number in range(19, 0, -1))


def main() -> None:
    """Run `RUN... [--criterion A,B] [--density D,D] [--by-layer] [--into DIR] [--config-dir DIR]`: measure, write, print."""
    parser = _parser()
    given = parser.parse_args()
    try:
        report(given)
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted; nothing was written\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedprune.sensitivity",
        description="The loss of trained networks as more and more of them is deleted, without retraining.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, or of sweeps; best of how_often=never")
    parser.add_argument("--criterion", default="magnitude,random", help="one or more, as in conf/criterion")
    parser.add_argument("--density", help="fractions of what lives to keep (default: 0.95, 0.9, ... 0.05)")
    parser.add_argument("--by-layer", action="store_true", help="each layer by itself, the others as they are")
    parser.add_argument("--into", type=Path, default=Path("."), help="the folder for sensitivity.csv, .md, .png, .svg and .pdf")
    parser.add_argument("--config-dir", type=Path, help="where criterion/*.yaml of your own are")
    return parser


def report(given: argparse.Namespace) -> None:
    """Measure the curves of all runs, write them as table and figure, and print the table and the paths."""
    folders = [folder for folder in (given.config_dir, CONF) if folder]
    criteria = {name: criterion(name, folders) for name in given.criterion.split(",")}
    kept, console = densities(given.density), Console(soft_wrap=True, highlight=False)
    runs = [folder for runs_or_sweep in given.runs for folder in find_runs(runs_or_sweep)]
    rows = pd.DataFrame(row for folder in runs for row in curves(trained(folder), criteria, kept, given.by_layer))
    given.into.mkdir(parents=True, exist_ok=True)
    values, page = given.into / "sensitivity.csv", given.into / "sensitivity.md"
    rows.to_csv(values, index=False)
    page.write_text(markdown(table(rows)), encoding="utf-8")
    console.print(page.read_text(encoding="utf-8"))
    for path in [values, page, *save(figure(rows), given.into / "sensitivity")]:
        console.print(path)


def criterion(name: str, folders: Sequence[Path]) -> Criterion:
    """Return the criterion of that name, composed with its defaults list. Raises ConfigError if it is not known, or cannot be
    composed by itself.

    folders: those that have a folder criterion/ with the yaml files, in the order in which they are searched.
    """
    known = sorted({file.stem for folder in folders for file in (folder / "criterion").glob("*.yaml")})
    if name not in known:
        raise ConfigError([f"--criterion {name}: choose from {', '.join(known)}"])
    try:
        node = composed_option("criterion", name, [folder for folder in folders if folder.is_dir()])
    except HydraException as error:
        raise ConfigError([f"--criterion {name} cannot be composed by itself: {error}"]) from error
    return cast(Criterion, make(node))


def densities(text: str | None) -> tuple[float, ...]:
    """Return the fractions of `0.5,0.9` from dense to sparse. Raises ConfigError if one is no number between 0 and 1."""
    try:
        fractions = DENSITIES if text is None else tuple(sorted(map(float, text.split(",")), reverse=True))
    except ValueError:
        fractions = ()
    if not fractions or not all(0 < density < 1 for density in fractions):
        raise ConfigError([f"--density {text}: fractions between 0 and 1, such as 0.9,0.5,0.1"])
    return fractions


if __name__ == "__main__":
    main()
