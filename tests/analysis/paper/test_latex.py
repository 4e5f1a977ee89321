"""LaTeX tables have the rules of booktabs, and no character that LaTeX takes for a command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedprune import analysis
from fedprune.analysis.paper.latex import escaped, latex
from helpers.run_folders import TICKET, write_run


def test_characters_of_latex_stand_for_themselves():
    assert escaped("a_b 5 % & ± 2") == r"a\_b 5 \% \& $\pm$ 2"
    assert escaped("x\\y~") == r"x\textbackslash{}y\textasciitilde{}"


def test_a_table_is_a_tabular_with_rules_of_booktabs():
    text = latex(["method", "accuracy (%)"], [["fed_avg", "80.0 ± 1.0"], ["snip", "79.0"]], bold=[0])
    assert text.splitlines()[1:] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & accuracy (\%) \\",
        r"\midrule",
        r"\textbf{fed\_avg} & 80.0 $\pm$ 1.0 \\",
        r"snip & 79.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for seed in (0, 1):
        for criterion in ("magnitude", "random"):
            write_run(tmp_path / "runs" / f"{criterion}{seed}", TICKET, criterion=criterion, seed=seed)
    analysis.report(tmp_path / "runs", tmp_path, ["random"])
    return tmp_path


def test_every_table_of_a_report_is_there_as_latex(written: Path):
    for name in ("table", "levels", "differences"):
        text = (written / f"{name}.tex").read_text()
        assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
        widths = {len(re.findall(r"(?<!\\)&", line)) for line in text.splitlines() if line.endswith(r"\\")}
        assert len(widths) == 1
    assert r"magnitude & 60.0 $\pm$ 0.0" in (written / "table.tex").read_text()
    assert r"50 & 80.0 $\pm$ 0.0 & 80.0 $\pm$ 0.0 \\" in (written / "levels.tex").read_text()
