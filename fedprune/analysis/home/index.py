"""The table of all pages, from the evidence that is kept beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedprune.analysis.home.evidence import Evidence, loaded, retold
from fedprune.analysis.home.judgement import judge, too_fine
from fedprune.analysis.home.page import STUDENT
from fedprune.analysis.home.sweep import HOMES, load_sweep
from fedprune.analysis.home.units import difference, number, points
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.verdict import (
    BEATEN,
    DISCORDANT,
    HELD,
    NOT_TESTABLE,
    REVERSED,
    SIMPLER,
    UNDECIDED,
    holm_sentence,
    p_value,
)

WORDS = {
    HELD: "the interval of the difference to the baseline is above the margin, and no simpler control does as well",
    SIMPLER: "it is above the margin, a control's is, too, and the method is not shown to beat the control",
    BEATEN: "the interval of the difference to a control is below 0, and the method is not *reversed*",
    REVERSED: "the interval of the difference to the baseline is below the margin",
    UNDECIDED: (
        f"it covers the margin, or the difference is worth fewer than {DISCORDANT} examples of a test set that all seeds share "
        "(each page says why so many)"
    ),
    NOT_TESTABLE: "fewer than two seeds have both numbers",
}

INTRODUCTION = (
    "Each page has the smallest run that keeps the regime of a method's paper, with the paper's own baseline and simpler "
    "controls. The verdicts are computed from the paired differences of seeds. The margin is 0, or as far below 0 as a claim "
    'like "comes within 3 points" lets the method be:'
)

RATES = (
    "The learning rates were mostly chosen by hand, from two to four values on validation examples of seed 5 (or 5 and 6), "
    "which no page uses; the comments of [conf/experiment/home/runs](../../conf/experiment/home/runs) say which, and there is "
    "no table. Several of the best are at the end of their range (FLASH 1.2, SynFlow 1)."
)

HOW_TO = (
    "`make home METHOD=lotteryfl` runs one of them, `make homes` all. A yaml of your own in the form of "
    "[conf/experiment/home](../../conf/experiment/home) gives a page by `python -m fedprune.analysis.home FILE.yaml`. This "
    "page is written with the others."
)


def evidence_in(folder: Path) -> list[Evidence]:
    """Return the evidence of all pages in a folder, by name; of ours under the claims that the yamls say now."""
    return [_as_said_now(loaded(path)) for path in sorted(folder.glob("*.json"))]


def _as_said_now(evidence: Evidence) -> Evidence:
    ours = (HOMES / f"{evidence.key}.yaml").exists()
    return retold(evidence, load_sweep(evidence.key)) if ours else evidence


def index(pages: Sequence[Evidence]) -> str:
    """Return the page that lists all others, as Markdown."""
    heads = ["method", "verdict", "baseline", "difference", "95 % interval", "margin", "seeds", "data"]
    rules = ["---", "---", "---", "---:", "---:", "---:", "---:", "---"]
    table = markdown_lines(heads, rules, [_row(evidence) for evidence in pages])
    meanings = "".join(f"- *{words}*: {meaning}.\n" for words, meaning in WORDS.items())
    ours = [RATES] * any((HOMES / f"{evidence.key}.yaml").exists() for evidence in pages)
    below = "\n\n".join([_counted(pages), STUDENT, *ours, HOW_TO])
    return f"# Every method at home\n\n{INTRODUCTION}\n\n{meanings}\n{table}\n{below}\n"


def _counted(pages: Sequence[Evidence]) -> str:
    """Return how many pages have which verdict and which data, and what remains after a correction for so many."""
    judged = [judge(evidence).verdict for evidence in pages]
    words, data = (Counter(each) for each in ((found.words for found in judged), (_data(evidence) for evidence in pages)))
    of_each = ", ".join(f"{words[each]} *{each}*" for each in WORDS if words[each])
    on_each = ", ".join(f"{count} on {name}" for name, count in data.most_common())
    tested = [(found.gain, each.home.margin) for found, each in zip(judged, pages, strict=True) if found.words != NOT_TESTABLE]
    corrected = holm_sentence([p_value(gain, margin) for gain, margin in tested])
    return f"{len(pages)} pages, {on_each}: {of_each}. {corrected} That is of differences to baselines; controls come on top."


def _row(evidence: Evidence) -> list[str]:
    judged = judge(evidence).verdict
    metric = evidence.home.method.metric
    mean, interval = difference(judged.gain, metric)
    beside = judged.control or too_fine(evidence, judged)
    control = f": {beside}" if beside else ""
    data = _data(evidence)
    title = f"[{evidence.title.removesuffix(' at home')}]({evidence.key}.md)"
    unit = f" {points(metric)}" if mean else ""
    margin = number(-evidence.home.margin, metric) if evidence.home.margin else "0"
    verdict = judged.words + control
    return [title, verdict, evidence.home.baseline.run, f"{mean}{unit}", interval, margin, str(judged.gain.n), data]


def _data(evidence: Evidence) -> str:
    return evidence.ours["data"].partition(",")[0]
