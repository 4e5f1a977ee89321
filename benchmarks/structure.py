"""How much of the package a reader meets: `python benchmarks/structure.py [--files]`.

Counts the files whose functions run in one round (the second time that the same round is run, so that nothing is made for the
first time), and what can be read off the source: files in a folder, lines of files and functions, docstrings that are no
sentences, conditional expressions and comprehensions, `Any`, `type: ignore`, `getattr` and `isinstance`.
"""

from __future__ import annotations

import argparse
import ast
import collections
import logging
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import hydra
from omegaconf import open_dict

import fedprune
from fedprune import run_id
from fedprune.config import schema
from fedprune.execution import employed
from fedprune.experiment.build import build

ROOT = Path(fedprune.__file__).parent
CONF = ROOT.parent / "conf"

SMALL = (
    *("data=digits", "model=lenet_300_100", "local.epochs=null", "local.steps=2", "federated.clients=10", "federated.cohort=3"),
    *("logger=none", "executor=serial", "device=cpu"),
)
ROUNDS = {
    "dense FedAvg": ("+experiment=fedavg",),
    "SNIP over all clients": ("+experiment=snip_fedavg", "where=all_clients"),
    "LotteryFL": ("+experiment=lotteryfl",),
}
"""The rounds that are counted, by name: overrides of SMALL."""

RIDDLE = re.compile(r"(What|How|Who|Whose|Whether|Which|Where|When|Of)\b")
"""How a docstring begins that is no sentence."""

BOXES = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def configuration(*overrides: str):
    """Compose what a user would type, and the chosen option of each group."""
    schema.register()
    run_id.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", overrides=[*SMALL, *overrides], return_hydra_config=True)
    names = {group: config.hydra.runtime.choices[group] for group in run_id.GROUPS}
    with open_dict(config):
        del config["hydra"]
    return config, names


def entered(*overrides: str) -> dict[str, int]:
    """Return how often a function of each file of the package is called in the first round of this run."""
    experiment = build(*configuration(*overrides))
    calls: collections.Counter[str] = collections.Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            calls[str(Path(frame.f_code.co_filename).relative_to(ROOT))] += 1

    with employed(experiment.executor()) as executor:
        loop = experiment.loop(executor)
        state = loop.start()
        loop.round(state)
        sys.setprofile(count)
        try:
            loop.round(state)
        finally:
            sys.setprofile(None)
    return dict(calls)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Return all functions and methods, at any depth."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def length(function: ast.FunctionDef) -> int:
    """Return the lines of a function, from its `def` to its end, without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    text = function.body[0]
    docstring = ast.get_docstring(function) is not None
    return lines - ((text.end_lineno or text.lineno) - text.lineno + 1 if docstring else 0)


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield all docstrings: of modules, classes and functions, and those under constants and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def untyped(tree: ast.AST) -> Iterator[int]:
    """Yield the number of the line of each `Any`, imports left out."""
    return (node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Any")


def measures() -> dict[str, str]:
    """Return what can be read off the source, by name."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
    trees = {path: ast.parse(source) for path, source in sources.items()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    lines = {path: source.count("\n") for path, source in sources.items()}
    total, folders = sum(lines.values()), collections.Counter(path.parent for path in sources)
    fullest, largest = max(folders, key=folders.__getitem__), max(lines, key=lines.__getitem__)
    long = sum(number > 250 for number in lines.values())
    docstrings = [text for tree in trees.values() for text in texts(tree)]
    riddles = sum(bool(RIDDLE.match(text)) for text in docstrings)
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = collections.Counter(function.id for function in calls if isinstance(function, ast.Name))
    conditional = sum(isinstance(node, ast.IfExp) for node in nodes)
    boxes = sum(isinstance(node, BOXES) for node in nodes)
    lengths = [length(function) for tree in trees.values() for function in functions(tree)]
    return {
        "files, lines": f"{len(sources)}, {total}",
        "fullest folder": f"{folders[fullest]} ({fullest.relative_to(ROOT.parent)})",
        "largest file": f"{lines[largest]} ({largest.relative_to(ROOT.parent)}); {long} above 250",
        "lines of a function": f"median {statistics.median(lengths):.0f}, {sum(n > 30 for n in lengths)} above 30",
        "docstrings that begin with What, How, Who ...": f"{riddles} of {len(docstrings)}",
        "comprehensions per 100 lines": f"{100 * boxes / total:.1f}",
        "conditional expressions per 100 lines": f"{100 * conditional / total:.1f}",
        "lines with `Any`": str(len({(path, line) for path, tree in trees.items() for line in untyped(tree)})),
        "`type: ignore`": str(sum(source.count("# type: ignore") for source in sources.values())),
        "calls of getattr, isinstance": f"{names['getattr']}, {names['isinstance']}",
    }


def main() -> None:
    """Print both tables."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="name the files of each round, with their calls")
    listed = parser.parse_args().files
    for name, overrides in ROUNDS.items():
        calls = entered(*overrides)
        print(f"{len(calls):5} files run in a round of {name}")
        for file, count in sorted(calls.items(), key=lambda pair: -pair[1]) if listed else ():
            print(f"{count:9} {file}")
    for name, value in measures().items():
        print(f"{name:46} {value}")


if __name__ == "__main__":
    main()
