"""The pages of the site that are made from conf/ have every option and experiment, and what their yamls say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedprune.config import CONF

ROOT = Path(__file__).parents[2]

with pytest.MonkeyPatch.context() as patched_path:
    patched_path.syspath_prepend(ROOT / "docs" / "site")
    import hooks
    import reference


def test_every_option_is_in_the_reference_under_its_group():
    page = reference.options(CONF)
    headings = [line for line in page.splitlines() if line.startswith("##")]
    groups = {path.relative_to(CONF).parent.as_posix() for path in CONF.rglob("*.yaml")}
    expected = {group for group in groups if group != "." and group.partition("/")[0] not in ("experiment", "hydra")}
    assert {line.removeprefix("### ") for line in headings if line.startswith("### ")} == expected
    assert headings.index("### criterion") < headings.index("#### lamp") < headings.index("### when")
    assert "#### magnitude (default)" in headings and "#### sgd (default)" in headings and "#### lamp" in headings


def test_an_option_has_its_sentence_and_its_keys():
    page = reference.options(CONF)
    option = page.partition("#### iterative")[2].partition("#### ")[0]
    assert "Prunes the same fraction of the survivors in each event." in option
    assert yaml.safe_load(option.partition("```yaml")[2].partition("```")[0]) == yaml.safe_load(
        (CONF / "how_often" / "iterative.yaml").read_text()
    )


def test_every_experiment_is_in_the_reference_with_its_paper():
    page = reference.experiments(CONF / "experiment")
    shown = {line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")}
    assert shown == {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    assert "Frankle &amp; Carbin 2019" in page or "Frankle & Carbin 2019" in page
    assert "@package" not in page


@pytest.mark.parametrize(
    ("repository", "link"),
    [
        (None, "the loop (`fedprune/federated/loop.py`)"),
        ("https://code.example/us/it/", "[the loop](https://code.example/us/it/blob/main/fedprune/federated/loop.py)"),
    ],
)
def test_a_link_out_of_the_site_is_a_name_or_leads_to_the_repository(repository, link):
    assert hooks.outside("the loop", "fedprune/federated/loop.py", repository) == link


def test_a_name_that_is_the_text_already_is_not_written_twice():
    assert hooks.outside("loop.py", "fedprune/federated/loop.py", None) == "`fedprune/federated/loop.py`"


def test_all_pages_are_in_the_navigation():
    """Those of the homes are reached from their table."""
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if f": {page}\n" not in text and not page.startswith("home/")} == set()
