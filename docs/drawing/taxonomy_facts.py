"""The taxonomy as conf/ has it: the options of each axis, and every published method at its place.

A method is an experiment that does not sweep the taxonomy itself. Where its yaml sweeps, the first value is the method's
and the others are its controls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from fedprune import run_id
from fedprune.analysis.by_axes import option_rank
from fedprune.config import CONF, schema
from fedprune.config.instantiate import make
from fedprune.pruning.evidence import needs
from fedprune.run_id import AXES, METHOD

TAXONOMY = {"what", "criterion", "when", "how_often"}
"""An experiment that sweeps all four is a grid over the taxonomy, not a method. One that sweeps over methods is none either."""

PARTS: dict[str, tuple[str, ...]] = {
    "papers it started from": ("obd", "han2015", "lth", "one_ticket", "snip", "levai2020"),
    "pruning within FedAvg": (
        *("slimming", "variational_dropout", "l0", "lth_equal_rounds", "lth_fedavg", "lth_fedavg_shakespeare"),
        *("snip_fedavg", "targeted_dropout", "grasp_fedavg", "synflow_fedavg"),
    ),
}
FEDERATED = "made for federation"
"""The headings of the methods in order, with their experiments; all others are under FEDERATED."""

EVIDENCE = {
    "curvature": {"sq_grads", "sq_grads_sampled", "gauss_newton_diag", "hessian_diag", "hessian_sweep", "fisher_inverse_diag"},
    "gradients": {"grads", "abs_grads", "hessian_grads", "movement"},
    "flow": {"flow_grads"},
    "activations": {"activations", "activity"},
    "learnt": {"scales", "filter_scales", "log_alpha", "log_sigma2"},
    "chance": {"generator"},
    "weights": {"params", "init_params"},
}
"""Families of criteria by their evidence. A criterion is in the first family that has a piece of its evidence."""

TOGETHER: dict[str, dict[str, tuple[str, ...]]] = {
    "when": {"at a gate": ("once_accurate", "once_settled", "once_moving")},
    "how_often": {"in steps": ("iterative", "gradual", "stepwise"), "by exchange": ("dynamic", "progressive")},
    "whose": {"by vote": ("voted", "voted_densities"), "each client's own": ("personal", "nested")},
    "rewind": {
        "back": ("early", "init"),
        "anew": ("random_reinit", "reinit_keep_signs", "shuffle", "shuffle_keep_signs"),
        "to one value": ("constant", "constant_keep_signs"),
    },
}
"""Families of options of the other axes. An option that is not named here is a family by itself."""

AUTHOR = r"[A-Z\u00c0-\u00de][\w'-]*(?: (?:(?:y|de|da|van|von|der) )*[A-Z\u00c0-\u00de][\w'-]*)*"
CITATION = re.compile(rf"((?:{AUTHOR}, )*{AUTHOR}(?: & {AUTHOR}| et al\.)) ((?:19|20)\d\d)")

Facts = dict[str, Any]
"""{"axes": {axis: {family: [option, ...]}}, "methods": [{"name", "paper", "year", "part", "with", "answers"}, ...]}."""


def facts(conf: Path = CONF) -> Facts:
    """Return what the figure shows. Methods are in the order of the headings, and by year under each."""
    axes = {axis: _families(conf, axis) for axis in AXES}
    swept = {path.stem: _swept(path) for path in sorted((conf / "experiment").glob("*.yaml"))}
    plain = _compose(conf, [])
    points = {name: first for name, first in swept.items() if not (first.keys() >= TAXONOMY or f"+{METHOD}" in first)}
    methods = [_method(conf, name, first, plain) for name, first in points.items()]
    parts = [*PARTS, FEDERATED]
    order = sorted(methods, key=lambda method: (parts.index(method["part"]), method["year"], method["name"]))
    return {"axes": axes, "methods": order}


def _swept(path: Path) -> dict[str, str]:
    """Return each key that the experiment sweeps, with its first value."""
    swept = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
    return {key: str(values).split(",")[0].strip() for key, values in swept.items()}


def _families(conf: Path, axis: str) -> dict[str, list[str]]:
    """Return the options of an axis by family: of criterion in the order of EVIDENCE, of what of STRUCTURE, else of options."""
    options = sorted((path.stem for path in (conf / axis).glob("*.yaml")), key=option_rank)
    family = {"criterion": _by_evidence, "what": _by_structure}.get(axis)
    if family is None:
        named = {option: name for name, members in TOGETHER.get(axis, {}).items() for option in members}
        of_option = {option: named.get(option, option) for option in options}
        order = list(dict.fromkeys(of_option.values()))
    else:
        of_option = {option: family(OmegaConf.load(conf / axis / f"{option}.yaml")) for option in options}
        known = [*STRUCTURE, *reversed(EVIDENCE), EXCHANGE, OTHER]
        order = sorted(set(of_option.values()), key=known.index)
    return {name: [option for option in options if of_option[option] == name] for name in order}


STRUCTURE = ("unstructured", "n of m", "both", "structured")
EXCHANGE, OTHER = "to exchange", "other"


def _by_evidence(node: Any) -> str:
    if node.grow is not None:
        return EXCHANGE
    asked = set(needs(make(node.drop)))
    return next((family for family, evidence in EVIDENCE.items() if asked & evidence), OTHER)


def _by_structure(node: Any) -> str:
    if node.unit._target_.endswith(".filters_or_weights"):
        return "both"
    if not node.unit._target_.endswith(".weights"):
        return "structured"
    return "n of m" if node.scope._target_.endswith(".NOfM") else "unstructured"


def _method(conf: Path, name: str, first: Mapping[str, str], plain: Mapping[str, str]) -> dict[str, Any]:
    paper, year = _cited((conf / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    chosen = _compose(conf, [f"+experiment={name}", *(f"{axis}={option}" for axis, option in first.items() if axis in AXES)])
    return {
        **{"name": name, "paper": paper, "year": year},
        **{"part": next((part for part, names in PARTS.items() if name in names), FEDERATED)},
        **{"with": sorted(f"{group.split('/')[-1]}={chosen[group]}" for group in _beside(chosen, plain))},
        **{"answers": {axis: chosen[axis] for axis in AXES}},
    }


def _beside(chosen: Mapping[str, str], plain: Mapping[str, str]) -> list[str]:
    """Return the groups of local and federated in which a method is not plain FedAvg, but for centralised and optimizers."""
    changed = [group for group in chosen if group.startswith(("local", "federated")) and chosen[group] != plain.get(group)]
    return [group for group in changed if group != "local/optimizer" and chosen[group] != "centralized"]


def _cited(yaml: str) -> tuple[str, int]:
    """Return the first paper that the comments name, three authors and more as 'first et al.', and its year; or ('', 9999)."""
    comment = " ".join(line.removeprefix("#").strip() for line in yaml.splitlines() if line.startswith("#"))
    citation = CITATION.search(comment)
    if citation is None:
        return "", 9999
    authors, year = citation.groups()
    short = f"{authors.split(',')[0]} et al." if "," in authors else authors
    return f"{short} {year}", int(year)


def _compose(conf: Path, overrides: list[str]) -> Mapping[str, str]:
    schema.register()
    run_id.register()
    with hydra.initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    return {group: str(option) for group, option in config.hydra.runtime.choices.items()}
