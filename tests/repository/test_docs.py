"""What the pages link to and name is there: files, modules, make targets, options and keys."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fedprune.config import schema

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OF_NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names what was there once
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"^```\w*\n(.*?)^```$|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"(?<![\w./-])(?:fedprune|conf|tests|docs|benchmarks|notebooks)/[\w./-]*\w")
MODULE = re.compile(r"python -m ([\w.]+)")
TARGET = re.compile(r"\bmake ([a-z_-]+)")
SETTING = re.compile(r"(?<![\w./])\+?((?:\w+/)*\w+)=(\[[\w,]*\]|[\w,/]+)")
KEY = re.compile(r"(?<![\w./{\[])([a-z_]+(?:\.\w+)+)(?![\w./(])")


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[str]:
    """The files and folders that a page links to, relative to its own folder."""
    return [link for link in LINK.findall(page.read_text()) if "://" not in link and not link.startswith("mailto:")]


def code(page: Path) -> Iterator[str]:
    """What a page has in backticks, without comments and what looks like Python."""
    for block, span in CODE.findall(page.read_text()):
        if not re.search(r"^(import|from|class|def) ", block, re.MULTILINE):
            yield re.sub(r"(?<=\s)#.*", "", block or span)


def dotted(values: dict[str, object], above: str) -> Iterator[str]:
    """The keys of a yaml, nested ones with dots."""
    for key, value in values.items():
        yield f"{above}.{key}"
        if isinstance(value, dict):
            yield from dotted(value, f"{above}.{key}")


@functools.cache
def groups() -> dict[str, set[str]]:
    """The options of each group of conf/."""
    found: dict[str, set[str]] = {}
    for path in CONF.rglob("*.yaml"):
        found.setdefault(path.parent.relative_to(CONF).as_posix(), set()).add(path.stem)
    return found


@functools.cache
def keys() -> set[str]:
    """Every key of a configuration below a group, such as `local.optimizer.lr`."""
    found = {f"ticket.{field.name}" for field in fields(schema.Ticket)}
    for group in groups():
        found |= {group.replace("/", ".")}
        for path in (CONF / group).glob("*.yaml"):
            found |= set(dotted(yaml.safe_load(path.read_text()) or {}, group.replace("/", ".")))
    return found


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page):
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


def test_links_are_found():
    assert {"docs/tutorial.md", "conf/experiment"} <= set(links(ROOT / "README.md"))


@pytest.mark.parametrize("page", OF_NOW, ids=shown)
def test_every_file_that_a_page_names_is_there(page):
    named = {name for text in code(page) for name in FILE.findall(text)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", OF_NOW, ids=shown)
def test_every_command_that_a_page_names_is_there(page):
    makefile = (ROOT / "Makefile").read_text()
    texts = list(code(page))
    modules = {name for text in texts for name in MODULE.findall(text)}
    assert {name for name in modules if importlib.util.find_spec(name) is None} == set()
    targets = {name for text in texts for name in TARGET.findall(text)}
    assert {name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()


@pytest.mark.parametrize("page", OF_NOW, ids=shown)
def test_every_option_that_a_page_names_is_there(page):
    # Options of the page's own are those whose yaml it shows, such as mine/criterion/magnitude_squared.yaml.
    own = set(re.findall(r"mine/[\w/]+/(\w+)\.yaml", page.read_text()))
    settings = [(group, value) for text in code(page) for group, values in SETTING.findall(text) for value in _each(values)]
    settings = [("/".join([group, *value.split("/")[:-1]]), value.rpartition("/")[2]) for group, value in settings]
    chosen = {
        (group, value) for group, value in settings if group in groups() and value not in {*own, "False"}
    }  # Lightning has a logger=False
    assert {(group, value) for group, value in chosen if value not in groups()[group]} == set()


@pytest.mark.parametrize("page", OF_NOW, ids=shown)
def test_every_key_that_a_page_names_is_there(page):
    added = {name for text in code(page) for name in re.findall(r"\+([\w.]+)=", text)}  # read by objects of the user's
    named = {name for text in code(page) for name in KEY.findall(text)} - added
    named = {re.sub(rf"^logger\.({'|'.join(groups()['logger'])})\.", "logger.", name) for name in named}  # one of several
    below_groups = {name for name in named if name.partition(".")[0] in {*groups(), "ticket"} and "_partial_" not in name}
    assert {name for name in below_groups if name not in keys() and not _is_file(name)} == set()


def test_the_page_of_the_axes_names_every_option():
    """In its tables; grids and methods are in conf/experiment, which it links to."""
    spans = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "concepts" / "axes.md").read_text()))
    shown = {group for group in groups() if not re.match(r"\.|experiment|hydra", group)}
    assert {(group, option) for group in shown for option in groups()[group] if option not in spans} == set()


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (FILE, "fedprune/local/train.py and outputs/fedprune/JOB", ["fedprune/local/train.py"]),
        (
            SETTING,
            "+experiment=lth data=mnist,digits local/penalty=l1",
            [("experiment", "lth"), ("data", "mnist,digits"), ("local/penalty", "l1")],
        ),
        (KEY, "local.optimizer.lr=0.1 wire/up_bytes", ["local.optimizer.lr"]),
    ],
)
def test_what_is_named_is_found(pattern, text, expected):
    assert pattern.findall(text) == expected


def _each(values: str) -> list[str]:
    return [value for value in values.strip("[]").split(",") if value]


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".py", ".yaml", ".json", ".csv", ".safetensors", ".png", ".md", ".onnx")
