"""The user's code is part of a run's identity: the modules that options name, and those that they import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedprune.identity import code
from fedprune.identity.code import packages, sources, targets


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """write(file, text): a file in a folder that Python finds."""
    monkeypatch.syspath_prepend(tmp_path)
    loaded = set(sys.modules)

    def write(file: str, text: str = "") -> None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)

    yield write
    for name in set(sys.modules) - loaded:
        if name.startswith("my"):
            del sys.modules[name]


def test_all_that_options_name_is_looked_at_however_deep():
    config = {
        "criterion": {"_target_": "a.b", "inner": [{"_target_": "c.d"}]},
        "f": {"_target_": "hydra.utils.get_method", "path": "e.f"},
    }
    assert list(targets(config)) == ["a.b", "c.d", "e.f"]


def test_imports_are_followed_and_nothing_else_counts(modules):
    modules("my_criterion.py", "import torch, json\nfrom my_helper import scale\n\ndef score(): ...")
    modules("my_helper.py", "def inside():\n    import my_inner")
    modules("my_inner.py")
    modules("my_unrelated.py")
    found = sources(["my_criterion.score"])
    assert list(found) == ["my_criterion.py", "my_helper.py", "my_inner.py"]
    modules("my_unrelated.py", "x = 1")
    assert sources(["my_criterion.score"]) == found
    modules("my_inner.py", "x = 1")
    changed = sources(["my_criterion.score"])
    assert [name for name in found if found[name] != changed[name]] == ["my_inner.py"]
    assert not {"my_criterion", "my_helper"} & set(sys.modules)  # nothing was run


def test_packages_and_relative_imports(modules):
    modules("mypack/__init__.py", "from . import shared")
    modules("mypack/shared.py")
    modules("mypack/sub/criterion.py", "from .near import x\nfrom ..far import y as z\nfrom ....beyond import w")
    modules("mypack/sub/near.py")  # mypack/sub is a package without a file
    modules("mypack/far.py", "from mypack.sub import criterion")  # in a circle
    modules("mypack/unrelated.py")
    names = {"__init__", "shared", "sub/criterion", "sub/near", "far"}
    assert set(sources(["mypack.sub.criterion.Score"])) == {f"mypack/{name}.py" for name in names}


def test_what_cannot_be_read_or_found_is_left_to_build(modules):
    modules("my_broken.py", "def f(:")
    assert list(sources(["my_broken.f", "my_missing.f", "", "..", "nodots", "my_broken..f"])) == ["my_broken.py"]


def test_ours_and_the_standard_library_and_installed_packages_have_no_source():
    names = ["fedprune.pruning.when.Before", "json.dumps", "torch.optim.SGD", "sklearn.svm.SVC", "sys.exit"]
    assert sources(names) == {}
    assert list(packages(names)) == ["sklearn"]


def test_of_an_installed_package_the_version_counts(monkeypatch):
    from sklearn import __version__

    assert packages(["sklearn.svm.SVC", "torch.optim.SGD"]) == {"sklearn": __version__}


def test_a_module_that_is_loaded_counts_as_it_was_loaded(modules):
    """A sweep that goes on after its file was edited still runs the code of before."""
    modules("my_loaded.py", "x = 1")
    import my_loaded  # noqa: F401

    before = sources(["my_loaded.x"])
    modules("my_loaded.py", "x = 2")
    assert sources(["my_loaded.x"]) == before
    import importlib

    importlib.reload(sys.modules["my_loaded"])
    assert sources(["my_loaded.x"]) != before


def test_code_of_a_script_and_of_a_notebook(modules, tmp_path, monkeypatch):
    import types

    script = types.ModuleType("my_main")
    script.__file__ = str(tmp_path / "script.py")
    modules("script.py", "import my_part")
    modules("my_part.py")
    monkeypatch.setitem(sys.modules, "my_main", script)
    assert list(sources(["my_main.f"])) == ["my_part.py", "script.py"]
    notebook = types.ModuleType("my_cells")
    notebook.f = targets  # of which inspect knows the source, as it does of a cell
    monkeypatch.setitem(sys.modules, "my_cells", notebook)
    assert list(sources(["my_cells.f"])) == ["my_cells.f"]
    notebook.C = type("C", (), {"rate": 1, "step": targets})  # a class of a cell has no file, and its methods have
    before = sources(["my_cells.C"])
    notebook.C = type("C", (), {"rate": 1, "step": sources})
    other_method = sources(["my_cells.C"])
    notebook.C = type("C", (), {"rate": 2, "step": targets})
    assert list(before) == ["my_cells.C"] and before != other_method != sources(["my_cells.C"]) != before
    assert sources(["my_cells.missing"]) == {}


def test_a_digest_is_of_the_bytes():
    assert code._digest(b"") == "e3b0c44298fc1c14"  # the first half of SHA-256's first 16 bytes, of nothing
