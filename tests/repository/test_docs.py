"""What the pages link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def links(page: Path) -> list[str]:
    """The files and folders that a page links to, relative to its own folder."""
    return [link for link in LINK.findall(page.read_text()) if "://" not in link and not link.startswith("mailto:")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


def test_links_are_found():
    assert {"docs/taxonomy.svg", "fedprune/local/module.py"} <= set(links(ROOT / "README.md"))
