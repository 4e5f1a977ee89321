"""The section `home` of conf/experiment/home: a published claim, and the runs of the sweep that test it.

It describes a sweep and changes no run: it is no part of a run's identity (identity.py), and no run's folder has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from fedprune.errors import ConfigError

if TYPE_CHECKING:  # importing it takes torch's second
    from fedprune.types import Json

PROTOCOL = ("data", "network", "clients", "participations", "local work", "rate", "density", "metric")
"""The rows of a paper's protocol that `home.theirs` may say."""


@dataclass(frozen=True)
class Compared:
    """A run of the sweep, and the metric by which it is compared."""

    run: str
    metric: str


@dataclass(frozen=True)
class Home:
    """A published claim, "the method beats the baseline", and the runs that test it.

    controls: simpler ways to the same number, by the words of the page's table. margin: how far below the baseline the claim
    lets the method be, in the metric's unit (0.01 of an accuracy is one point). theirs: the paper's protocol, by the rows of
    PROTOCOL. paper: where it is, such as arXiv:2008.03371; "" if it is not said.
    """

    claim: str
    method: Compared
    baseline: Compared
    controls: Mapping[str, Compared]
    margin: float
    theirs: Mapping[str, str]
    paper: str = ""


def roles(home: Home) -> dict[str, Compared]:
    """Return the method, the baseline and the controls, by the words of the page's table."""
    controls = {f"control: {words}": each for words, each in home.controls.items()}
    return {f"method: {home.method.run}": home.method, f"baseline: {home.baseline.run}": home.baseline, **controls}


def experiments(params: Mapping[str, object], method: str) -> tuple[str, ...]:
    """Return the experiments that a sweep adds, from `hydra.sweeper.params`. method: the key of its list of them."""
    listed = str(params.get(f"+{method}", params.get(method, "")))
    return tuple(word.strip() for word in listed.split(",") if word.strip())


def sought(run: str, swept: Sequence[str]) -> str | None:
    """Return the experiment of a sweep that a run's name stands for: of this name, or the one file of it in a folder."""
    found = [each for each in swept if each == run] or [each for each in swept if each.endswith(f"/{run}")]
    return found[0] if len(found) == 1 else None


def read_home(section: object, swept: Sequence[str]) -> Home:
    """Return the section `home` of a sweep over these experiments. Raises ConfigError with all that is wrong with it."""
    problems = list(_problems(section, swept))
    if problems:
        raise ConfigError(problems)
    values: Json = {"controls": {}, "margin": 0.0, **_mapping(section)}
    controls = {str(words): Compared(**each) for words, each in (values["controls"] or {}).items()}
    theirs = {str(row): str(text) for row, text in values["theirs"].items()}
    method, baseline = Compared(**values["method"]), Compared(**values["baseline"])
    paper = str(values.get("paper") or "")
    return Home(str(values["claim"]), method, baseline, controls, float(values["margin"]), theirs, paper)


def _problems(section: object, swept: Sequence[str]) -> Iterator[str]:
    values = _mapping(section)
    required = {field.name for field in fields(Home)} - {"controls", "margin", "paper"}
    yield from _keys("home", section, (field.name for field in fields(Home)), required)
    margin = values.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or margin < 0:
        yield f"home.margin={margin} is in the metric's unit: 0 or more"
    elif margin >= 1 and "accuracy" in str(_mapping(values.get("method")).get("metric")):
        yield f"home.margin={margin} of an accuracy is a fraction: {margin / 100:g} is {margin:g} points"
    controls = values.get("controls")
    if controls is not None and not isinstance(controls, Mapping):
        yield f"home.controls={controls} has a key for each control: the words of the page's table"
    for place, compared in _compared(values).items():
        yield from _keys(place, compared, ("run", "metric"), {"run", "metric"})
        run = _mapping(compared).get("run")
        if run is not None and sought(str(run), swept) is None:
            yield f"{place}.run={run} is not one run of the sweep: choose one of {', '.join(swept)}"
    if "theirs" in values:
        yield from _keys("home.theirs", values["theirs"], PROTOCOL, set())


def _compared(values: Mapping[str, object]) -> dict[str, object]:
    """Return the method, the baseline and the controls by their keys."""
    controls = {f"home.controls.{words}": each for words, each in _mapping(values.get("controls")).items()}
    return {f"home.{role}": values[role] for role in ("method", "baseline") if role in values} | controls


def _keys(place: str, node: object, known: Iterator[str] | Sequence[str], required: set[str]) -> Iterator[str]:
    """Yield what is wrong with the keys of a node."""
    known = tuple(known)
    if not isinstance(node, Mapping):
        yield f"{place}={node} has keys of its own: {', '.join(known)}"
        return
    for key in node:
        if key not in known:
            yield f"{place}.{key}: there is no such key: choose one of {', '.join(known)}"
    yield from (f"{place}.{key} is missing" for key in known if key in required and node.get(key) is None)


def _mapping(node: object) -> Mapping[str, object]:
    return node if isinstance(node, Mapping) else {}
