"""Draw docs/taxonomy.svg from conf/: the options of each axis, and every published method at its place.

    make taxonomy        # python docs/drawing/taxonomy.py

The file holds the facts that it was drawn from, so that a test can tell a stale one.
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
from taxonomy_facts import Facts, facts
from taxonomy_figure import draw

from fedprune.analysis.figures.style import STYLE

DOCS = Path(__file__).parents[1]


def write(shown: Facts, into: Path) -> Path:
    """Draw the facts as taxonomy.svg into the folder; the file holds them in its metadata."""
    path = into / "taxonomy.svg"
    into.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        draw(shown).savefig(path, metadata={"Date": None, "Description": json.dumps(shown, sort_keys=True)})
    return path


def read_facts(svg: Path) -> Facts | None:
    """Return the facts that a figure was drawn from; None if it holds none."""
    described = ElementTree.parse(svg).getroot().iter("{http://purl.org/dc/elements/1.1/}description")
    return next((json.loads(element.text or "null") for element in described), None)


def main() -> None:
    """Run `python docs/drawing/taxonomy.py [--into DIR]`."""
    parser = argparse.ArgumentParser(prog="docs/drawing/taxonomy.py", description="Draw the taxonomy as conf/ has it.")
    parser.add_argument("--into", type=Path, default=DOCS, help="the folder of the figure (default: docs)")
    print(write(facts(), parser.parse_args().into))


if __name__ == "__main__":
    main()
