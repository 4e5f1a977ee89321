"""The notebooks run from top to bottom, with a few rounds, and are committed without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

NAMES = ["compare_methods", "look_into_a_ticket", "lth_fedavg", "your_own_method"]

SMALL = {
    "compare_methods": "METHODS, ROUNDS, SEEDS = 'fedavg,synflow_fedavg', 2, '0'",
    "look_into_a_ticket": "ROUNDS = 3",
    "lth_fedavg": "ROUNDS, DENSITY, SEEDS = 1, 0.64, '0'",
    "your_own_method": "ROUNDS, SEEDS = 3, '0'",
}
"""What stands in the cell of parameters here."""


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs_and_ends_with_a_conclusion(path: Path):
    notebook = read(path)
    assert code(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert notebook.cells[-1].cell_type == "markdown" and notebook.cells[-1].source.startswith(
        "## Conclusion\n\nWith the settings"
    )


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[NotebookNode]]:
    """The cells of code of each notebook, after all were run in one kernel, since a kernel takes seconds to start."""
    books = {
        path.stem: [nbformat.v4.new_code_cell(cell.source, metadata=cell.metadata) for cell in code(read(path))]
        for path in NOTEBOOKS
    }
    for name, cells in books.items():
        (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", ()))
        parameters.source = SMALL[name]
    forget = [nbformat.v4.new_code_cell("%reset -f") for _ in books]
    cells = [cell for cells, between in zip(books.values(), forget, strict=True) for cell in (*cells, between)]
    whole = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(NOTEBOOKS[0].parents[1]))
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(whole, timeout=120, kernel_name="python3", resources=resources).execute()
    return books


@pytest.mark.parametrize(
    ("name", "figures", "word"),
    [
        ("compare_methods", 1, "synflow_fedavg"),
        ("look_into_a_ticket", 2, "Lenet300100"),
        ("lth_fedavg", 3, "random_reinit"),
        ("your_own_method", 1, "smallest"),
    ],
)
def test_notebook_shows_its_figures_and_tables(executed: dict[str, list[NotebookNode]], name: str, figures: int, word: str):
    shown = [output.get("data", {}) for cell in executed[name] for output in cell.outputs]
    assert sum("image/png" in data for data in shown) == figures
    assert any(word in data.get("text/html", "") + data.get("text/plain", "") for data in shown)
