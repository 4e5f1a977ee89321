"""The wheel: it carries conf/, and what is installed from it runs in an empty directory, far from any checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("fedprune", "conf", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore")

pytestmark = [
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not in a checkout"),
    pytest.mark.slow,
]


def call(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "FEDPRUNE"))}
    return subprocess.run(
        list(map(str, words)), cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources, so that the checkout stays as it is."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        if (ROOT / name).exists():
            copy(ROOT / name, source / name)
    built = call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source, cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin directory of a fresh environment that has the wheel, and sees the packages that it depends on."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    done = call(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel),
        cwd=home, PIP_DISABLE_PIP_VERSION_CHECK="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # A plain path: .pth files in there, such as that of an editable install, are not followed.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return home / "bin"


def test_the_wheel_has_every_yaml_and_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    yamls = {f"fedprune/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    yamls |= {str(path.relative_to(ROOT)) for path in (ROOT / "fedprune").rglob("*.yaml")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fedprune").rglob("*.py")}
    assert "fedprune/data/datasets.py" in modules  # a line `data/` in .gitignore would drop it
    assert names - {"fedprune/py.typed"} == yamls | modules


def test_what_is_installed_is_the_wheel_and_not_the_checkout(installed, tmp_path):
    where = call(installed / "python", "-c", "import fedprune, torch; print(fedprune.__file__)", cwd=tmp_path)
    assert where.returncode == 0, where.stderr
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)


def test_a_sweep_runs_from_an_empty_directory_with_the_command_of_the_readme(installed, tmp_path):
    """With its defaults: worker processes, and W&B without anybody logged in."""
    reduced = ("rounds=2", "federated.clients=4", "federated.cohort=2", "local.epochs=1", "density=0.8", "what=weights_global")
    reduced += ("criterion=magnitude", "rewind=init")
    done = call(
        installed / "python", "-m", "fedprune", "+experiment=lth_fedavg", *reduced, "-m", cwd=tmp_path, WANDB_MODE="offline"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    folder = tmp_path / "outputs" / "lth_fedavg"
    assert len(list(folder.glob("*/summary.json"))) == 2
    assert len(list(folder.glob("*/wandb/offline-run-*"))) == 2
    assert (folder / "table.csv").read_text().count("\n") == 1 + 2
    assert (folder / "figures" / "accuracy_density.png").exists()
    accuracy = [json.loads(path.read_text())["metrics"]["test/accuracy"] for path in folder.glob("*/summary.json")]
    assert min(accuracy) > 0.3  # two rounds of digits: better than chance, because something was learned
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_there_is_a_command_named_fedprune(installed, tmp_path):
    shown = call(installed / "fedprune", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "which pruning recipe survives federated training?" in shown.stdout
    assert "+experiment=NAME" in shown.stdout and "lth_fedavg" in shown.stdout
    assert list(tmp_path.iterdir()) == []
