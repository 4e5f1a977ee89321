"""Options say which of their arguments are paths: what is there counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprune.identity.reads import by_content, reads


@reads("root", "users")
def whole(root: str, users: str | None = None) -> None:
    """Read all of root, and users."""


def of_part(root: str, part: str = "a") -> list[Path]:
    return [Path(root) / part]


@reads(root=of_part)
def partly(root: str, part: str, unread: int) -> None:
    """Read one part of root."""


@reads(root=lambda: ())
def nothing(root: str) -> None:
    """Read no file."""


def undeclared(path: str, others: list[str]) -> None:
    """Read whatever is there."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "file").write_text(name)
    (tmp_path / "users.csv").write_text("file,user")
    return tmp_path / "root"


def node(function, **values: object) -> dict[str, object]:
    return {"data": {"_target_": f"{__name__}.{function.__name__}", **values}}


def test_a_path_is_replaced_by_what_is_there(root):
    counted, digests = by_content(node(whole, root=str(root), users=str(root.parent / "users.csv")))
    assert sorted(digests) == ["data.root", "data.users"]
    assert counted["data"]["root"] == {"content": digests["data.root"]}
    (root / "a" / "file").write_text("changed")
    others = by_content(node(whole, root=str(root), users=str(root.parent / "users.csv")))[1]
    assert others["data.root"] != digests["data.root"] and others["data.users"] == digests["data.users"]


def test_null_and_a_path_of_nothing_count_as_they_are_written(tmp_path):
    given = node(whole, root=str(tmp_path / "missing"), users=None)
    assert by_content(given) == (given, {})


def test_only_what_is_read_counts(root):
    given = node(partly, root=str(root), unread=3)
    before = by_content(given)
    (root / "b" / "file").write_text("changed")
    assert by_content(given) == before
    (root / "a" / "file").write_text("changed")
    assert by_content(given) != before
    assert by_content(node(partly, root=str(root), part="missing")) == (node(partly, root=str(root), part="missing"), {})


def test_an_argument_by_which_nothing_is_read_is_left_out(root):
    assert by_content(node(nothing, root=str(root))) == (node(nothing), {})


def test_without_a_declaration_every_path_counts_as_it_is_written_and_by_content(root):
    given = node(undeclared, path=str(root), others=["no path", str(root / "a" / "file")], deeper={"of": str(root)})
    counted, digests = by_content(given)
    assert sorted(digests) == ["data.deeper.of", "data.others.1", "data.path"]
    assert counted["data"]["path"] == {"path": str(root), "content": digests["data.path"]}
    assert counted["data"]["others"][0] == "no path"


def test_but_no_folder_in_which_the_results_may_be_written(root, monkeypatch):
    monkeypatch.chdir(root)
    assert by_content(node(undeclared, path=str(root.parent), others=["."]))[1] == {}


def test_a_nested_option_says_for_itself_what_it_reads(root):
    inner = node(nothing, root=str(root))["data"]
    counted, digests = by_content({"data": {"_target_": "torch.optim.SGD", "train": inner, "root": str(root)}})
    assert counted == {"data": {"_target_": "torch.optim.SGD", "train": node(nothing)["data"], "root": str(root)}}
    assert digests == {}
