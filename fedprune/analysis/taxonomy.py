"""The taxonomy as conf/ has it: the options of each axis, and every published method at its place. `make taxonomy` draws it.

    python -m fedprune.analysis.taxonomy        # writes docs/taxonomy.svg

A method is an experiment that does not sweep the taxonomy itself. What it sweeps is the method against its controls: the first
value is the method's. The figure holds the facts it was drawn from, so that a test can tell a stale one.
"""

from __future__ import annotations

import argparse
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import matplotlib
from omegaconf import OmegaConf

from fedprune import folders, schema
from fedprune.__main__ import CONF
from fedprune.analysis.figures import STYLE
from fedprune.analysis.order import rank
from fedprune.make import make
from fedprune.pruning.evidence import needs

AXES = folders.GROUPS[:7]
TAXONOMY = {"what", "criterion", "when", "how_often"}
"""An experiment that sweeps all four is a grid over the taxonomy, and no point in it."""

FOUNDING = ("obd", "han2015", "lth", "one_ticket", "snip", "levai2020")
"""The papers that the taxonomy was made from, by their experiments; they are drawn above the others."""

EVIDENCE = {
    "curvature": {"sq_grads", "sq_grads_sampled", "gauss_newton_diag", "hessian_diag", "hessian_sweep", "fisher_inverse_diag"},
    "gradients": {"grads", "hessian_grads", "movement"},
    "flow": {"flow_grads"},
    "activations": {"activations", "activity"},
    "learnt": {"scales", "filter_scales", "log_alpha", "log_sigma2"},
    "chance": {"generator"},
    "weights": {"params", "init_params"},
}
"""Families of criteria, by the evidence they ask for; the first that has any of it."""

CITATION = re.compile(r"((?:[^\W\d_][\w'-]*, )*[^\W\d_][\w'-]*(?: & [^\W\d_][\w'-]*| et al\.)) ((?:19|20)\d\d)")

Facts = dict[str, Any]
"""{"axes": {axis: {family: [option, ...]}}, "methods": [{"name", "paper", "year", "founding", "with", "answers"}, ...]}."""


def facts(conf: Path = CONF) -> Facts:
    """What the figure shows. Methods: the founding papers first, each part by year."""
    axes = {axis: _families(conf, axis) for axis in AXES}
    swept = {path.stem: _swept(path) for path in sorted((conf / "experiment").glob("*.yaml"))}
    methods = [_method(conf, name, first) for name, first in swept.items() if not first.keys() >= TAXONOMY]
    order = sorted(methods, key=lambda method: (not method["founding"], method["year"], method["name"]))
    return {"axes": axes, "methods": order}


def read_facts(svg: Path) -> Facts | None:
    """The facts that a figure was drawn from; None where it holds none."""
    described = ElementTree.parse(svg).getroot().iter("{http://purl.org/dc/elements/1.1/}description")
    return next((json.loads(element.text or "null") for element in described), None)


def _swept(path: Path) -> dict[str, str]:
    """Each key that the experiment sweeps, with its first value."""
    swept = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
    return {key: str(values).split(",")[0].strip() for key, values in swept.items()}


def _families(conf: Path, axis: str) -> dict[str, list[str]]:
    """The options of an axis by family, in the order of EVIDENCE (criterion) or of structure (what), else each its own."""
    options = sorted((path.stem for path in (conf / axis).glob("*.yaml")), key=rank)
    family = {"criterion": _by_evidence, "what": _by_structure}.get(axis)
    if family is None:
        return {option: [option] for option in options}
    of_option = {option: family(OmegaConf.load(conf / axis / f"{option}.yaml")) for option in options}
    known = [*STRUCTURE, *reversed(EVIDENCE), EXCHANGE]
    order = sorted(set(of_option.values()), key=lambda name: (known.index(name) if name in known else -1, name))
    return {name: [option for option in options if of_option[option] == name] for name in order}


STRUCTURE = ("unstructured", "n of m", "structured")
EXCHANGE = "to exchange"


def _by_evidence(node: Any) -> str:
    if node.grow is not None:
        return EXCHANGE
    asked = set(needs(make(node.drop)))
    return next((family for family, evidence in EVIDENCE.items() if asked & evidence), "other")


def _by_structure(node: Any) -> str:
    if not node.unit._target_.endswith(".weights"):
        return STRUCTURE[2]
    return STRUCTURE[1] if node.scope._target_.endswith(".NOfM") else STRUCTURE[0]


def _method(conf: Path, name: str, first: Mapping[str, str]) -> dict[str, Any]:
    paper, year = _cited((conf / "experiment" / f"{name}.yaml").read_text())
    chosen = _compose(conf, name, [f"{axis}={option}" for axis, option in first.items() if axis in AXES])
    local = {group: option for group, option in chosen.items() if group.startswith("local/") and group != "local/optimizer"}
    return {
        **{"name": name, "paper": paper, "year": year, "founding": name in FOUNDING},
        **{"with": sorted(f"{group.removeprefix('local/')}={option}" for group, option in local.items() if option != "none")},
        **{"answers": {axis: chosen[axis] for axis in AXES}},
    }


def _cited(yaml: str) -> tuple[str, int]:
    """The first paper that the comments name, three authors and more as 'first et al.', and its year; '' and 9999 for none."""
    comment = " ".join(line.removeprefix("#").strip() for line in yaml.splitlines() if line.startswith("#"))
    found = CITATION.search(comment)
    if found is None:
        return "", 9999
    authors, year = found.groups()
    return f"{authors.split(',')[0] + ' et al.' if ',' in authors else authors} {year}", int(year)


def _compose(conf: Path, name: str, answers: list[str]) -> Mapping[str, str]:
    schema.register()
    folders.register()
    with hydra.initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = hydra.compose("config", overrides=[f"+experiment={name}", *answers], return_hydra_config=True)
    return {group: str(option) for group, option in config.hydra.runtime.choices.items()}


def main() -> None:
    """`python -m fedprune.analysis.taxonomy [--into DIR]`: draw the taxonomy as it is."""
    from fedprune.analysis.taxonomy_figure import draw

    parser = argparse.ArgumentParser(
        prog="python -m fedprune.analysis.taxonomy", description="Draw the taxonomy as conf/ has it."
    )
    parser.add_argument("--into", type=Path, default=Path("docs"), help="the folder of the figure (default: docs)")
    path, shown = parser.parse_args().into / "taxonomy.svg", facts()
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        draw(shown).savefig(path, metadata={"Date": None, "Description": json.dumps(shown, sort_keys=True)})
    print(path)


if __name__ == "__main__":
    main()
