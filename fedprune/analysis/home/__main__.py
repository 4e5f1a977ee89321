"""The command `python -m fedprune.analysis.home NAME`: the page of a home from its runs, and the index of all pages."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from fedprune.analysis.home.evidence import collect, saved
from fedprune.analysis.home.index import evidence_in, index
from fedprune.analysis.home.page import page
from fedprune.analysis.home.sweep import load_sweep
from fedprune.errors import FedpruneError


def write(named: str, runs: Path | None, into: Path | None) -> list[Path]:
    """Write the page of a home, its evidence and the index; return the files.

    named: one of conf/experiment/home, or a yaml file. runs: the folder of the runs, if not outputs/<name>. into: where the
    files go, if not there. Raises FedpruneError.
    """
    sweep = load_sweep(named)
    folder = runs or Path("outputs") / sweep.name
    into = into or folder
    evidence = collect(sweep, folder)
    into.mkdir(parents=True, exist_ok=True)
    (into / f"{sweep.key}.json").write_text(saved(evidence), encoding="utf-8")
    return write_pages(into)


def write_pages(folder: Path) -> list[Path]:
    """Write all pages in a folder, and the index, anew from their evidence; return the files.

    Of a home in conf/experiment/home the claim, the controls and the margin are those that its yaml says now.
    """
    found = evidence_in(folder)
    texts = {folder / "README.md": index(found)}
    for evidence in found:
        texts |= {folder / f"{evidence.key}.json": saved(evidence), folder / f"{evidence.key}.md": page(evidence)}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def main() -> None:
    """Run the command; print the paths of the files."""
    parser = argparse.ArgumentParser(
        prog="python -m fedprune.analysis.home", description="The page of a published claim, from the runs that test it."
    )
    parser.add_argument("home", nargs="?", help="one of conf/experiment/home, such as lotteryfl, or a yaml file of that form")
    parser.add_argument("--runs", type=Path, help="the folder of its runs (default: outputs/<its name>)")
    parser.add_argument("--into", type=Path, help="where the pages go (default: the folder of the runs)")
    given = parser.parse_args()
    if given.home is None and given.into is None:
        parser.error("name a home, or --into FOLDER to write the pages there anew from their evidence")
    try:
        written = write_pages(given.into) if given.home is None else write(given.home, given.runs, given.into)
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")
    for path in written:
        print(path)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    main()
