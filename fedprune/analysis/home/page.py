"""The page of a home: verdict, claim, command, protocols side by side, numbers, paired differences, and every seed."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from fedprune.analysis.home.evidence import ALIVE, BYTES, Evidence, Measured
from fedprune.analysis.home.judgement import Judgement, judge, too_fine
from fedprune.analysis.home.sweep import HOMES
from fedprune.analysis.home.units import difference, number, points, spread, unit
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.verdict import DISCORDANT, NOT_TESTABLE, Verdict
from fedprune.config import CONF
from fedprune.config.home import PROTOCOL, Compared, roles

ARXIV = "arXiv:"

STUDENT = (
    "Each difference is paired: both runs of a seed have the same split, initial weights and cohorts. The interval is "
    "Student's at 95 % and not a bootstrap, because over five seeds a bootstrap interval covers the true mean in 83 of 100 "
    "cases only."
)

SHARED = (
    "All seeds share one test set of {examples} examples, and the interval is about other seeds, not about other examples. "
    f"So a difference has to be worth {DISCORDANT} of them, {{points:.2f}} points, or the verdict is *undecided*: even if all "
    "examples on which two networks differ favour one of them, McNemar's exact test needs that many at 5 %. It is the least to "
    "ask; a difference that passes can still be smaller on another test set."
)

REDRAWN = (
    "Each seed draws the clients' test examples anew, so that most of their part in the uncertainty is in the interval (the "
    "draws are from one pool and overlap)."
)

COLUMNS = (
    "Mean ± sample standard deviation over seeds, at the end of the runs; **bold** is what is compared. *Client {task}* is of "
    "each client's network as it is sent, under the client's mask, on the client's own test examples; *tuned* after one local "
    "training from there; *server's {task}* of the server's network on the global test set; *up* and *down* are the bytes of "
    "the whole run; *alive* is of the clients' own masks, where they have them."
)


def page(evidence: Evidence) -> str:
    """Return the page as Markdown."""
    judged = judge(evidence)
    head = [f"# {evidence.title}\n", f"{verdict_line(evidence, judged.verdict)}\n"]
    parts = [*head, _claim(evidence), _protocol(evidence), _numbers(evidence), _differences(evidence, judged), _seeds(evidence)]
    return "\n".join(parts)


def verdict_line(evidence: Evidence, verdict: Verdict) -> str:
    """Return the verdict as a paragraph, with the difference that it follows from."""
    home = evidence.home
    if verdict.words == NOT_TESTABLE:
        return f"**Verdict: {verdict.words}**: {judge(evidence).reason}."
    mean, interval = difference(verdict.gain, home.method.metric)
    beside = verdict.control or too_fine(evidence, verdict)
    control = f" ({beside})" if beside else ""
    return (
        f"**Verdict: {verdict.words}**{control}. {_side(home.method)} against {_side(home.baseline)}: {mean} "
        f"{points(home.method.metric)} ({interval}, {verdict.gain.n} seeds){_margin(evidence)}."
    )


def _side(compared: Compared) -> str:
    return f"`{compared.run}` by `{compared.metric}`"


def _margin(evidence: Evidence) -> str:
    home = evidence.home
    if not home.margin:
        return ""
    return f"; the claim lets it be {number(home.margin, home.method.metric)} {points(home.method.metric)} below"


def _claim(evidence: Evidence) -> str:
    made = f"`python -m fedprune.analysis.home {evidence.key}` makes this page from the runs of"
    about = evidence.about[:1].upper() + evidence.about[1:]
    paragraphs = [f"**Claim.** {evidence.home.claim}", about, _sources(evidence), f"{made}\n\n```sh\n{evidence.command}\n```\n"]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _sources(evidence: Evidence) -> str:
    """Return where the paper is, and which file says how ours deviates from it; "" if neither is known."""
    paper, method = evidence.home.paper, experiment_of(evidence.key)
    link = f"[{paper}](https://arxiv.org/abs/{paper.removeprefix(ARXIV)})" if paper.startswith(ARXIV) else paper
    name = f"conf/experiment/{method}.yaml"
    deviations = f"Where the method deviates from its paper is said in [{name}](../../{name})." if method else ""
    return " ".join(filter(None, [f"The paper is {link}." if paper else "", deviations]))


def experiment_of(key: str) -> str:
    """Return the experiment that a home of ours is about: of its name, or the longest that its name begins with; or ""."""
    stems = [path.stem for path in (CONF / "experiment").glob("*.yaml") if f"{key}_".startswith(f"{path.stem}_")]
    return max(stems, key=len) if stems and (HOMES / f"{key}.yaml").exists() else ""


def _protocol(evidence: Evidence) -> str:
    rows = [[row, evidence.home.theirs.get(row, ""), _ours(evidence).get(row, "")] for row in PROTOCOL]
    return "## Theirs and ours\n\n" + markdown_lines(["", "theirs", "ours"], ["---"] * 3, rows)


def _ours(evidence: Evidence) -> dict[str, str]:
    method = evidence.home.method
    reached = spread(evidence.of(method).series(ALIVE), ALIVE)
    return {
        **evidence.ours,
        "density": f"{reached} % alive at the end" if reached else "",
        "metric": f"{explained(method.metric, evidence.metric.name)} (`{method.metric}`)",
    }


def explained(metric: str, task: str) -> str:
    """Return what a metric is of, in words. task: the name of the task's metric, such as accuracy."""
    own = "on its own test examples, mean over clients"
    known = {
        f"client/{task}_mean": f"{task} of each client's network as it is sent, {own}",
        f"client/{task}_tuned_mean": f"{task} of each client's network after one local training, {own}",
        f"test/{task}": f"{task} of the server's network on the global test set",
    }
    return known.get(metric, metric)


def _columns(evidence: Evidence) -> dict[str, str]:
    """Return the head of each column of the table of numbers: metric -> text."""
    task, home = evidence.metric.name, evidence.home
    heads = {
        f"client/{task}_mean": f"client {task}",
        f"client/{task}_tuned_mean": f"client {task}, tuned",
        f"test/{task}": f"server's {task}",
    }
    compared = {each.metric: each.metric for each in (home.method, home.baseline, *home.controls.values())}
    heads = {**{metric: head for metric, head in compared.items() if metric not in heads}, **heads}
    return {**heads, **dict(zip(BYTES, ("up", "down"), strict=True)), ALIVE: "alive"}


def _numbers(evidence: Evidence) -> str:
    columns = _columns(evidence)
    heads = [head + (f" ({unit(metric)})" if unit(metric) else "") for metric, head in columns.items()]
    rows = [[role, *_cells(evidence.of(each), each.metric, list(columns))] for role, each in roles(evidence.home).items()]
    table = markdown_lines(["", *heads], ["---"] + ["---:"] * len(heads), rows)
    return f"## Numbers\n\n{table}\n{COLUMNS.format(task=evidence.metric.name)}\n"


def _cells(measured: Measured, compared: str, metrics: list[str]) -> Iterator[str]:
    for metric in metrics:
        text = spread(measured.series(metric), metric)
        yield f"**{text}**" if text and metric == compared else text


def _differences(evidence: Evidence, judged: Judgement) -> str:
    home, metric = evidence.home, evidence.home.method.metric
    rows = [[f"baseline: {home.baseline.run}", *difference(judged.verdict.gain, metric), "", judged.reason]]
    for words in home.controls:
        mean, interval = difference(judged.controls[words], metric)
        over_baseline = f"{mean} ({interval})" if mean else ""
        reason = judged.untested.get(words, "")
        rows.append([f"control: {words}", *difference(judged.over[words], metric), over_baseline, reason])
    noted = any(row[-1] for row in rows)
    head = ["compared with", f"gain of {home.method.run} ({points(metric)})", "95 % interval", "it over the baseline"]
    head += ["not testable here, because"] * noted
    shown = rows if noted else [row[:-1] for row in rows]
    table = markdown_lines(head, ["---"] + ["---:"] * 3 + ["---"] * noted, shown)
    return f"## Paired differences\n\n{table}\n{_test_set(evidence)}\n"


def _test_set(evidence: Evidence) -> str:
    """Return what the intervals are about: other seeds, and other test examples only if each seed draws them anew."""
    if evidence.resolution:
        return f"{STUDENT} {SHARED.format(examples=evidence.test_examples, points=100 * evidence.resolution)}"
    client = evidence.home.method.metric.startswith("client/")
    return f"{STUDENT} {REDRAWN}" if client else STUDENT


def _seeds(evidence: Evidence) -> str:
    series = {role: (evidence.of(each).series(each.metric), each.metric) for role, each in roles(evidence.home).items()}
    seeds = sorted(set().union(*(values.index for values, _ in series.values())))
    heads = [f"{role} (`{metric}`)" for role, (_, metric) in series.items()]
    rows = [[str(seed), *(_value(values, metric, seed) for values, metric in series.values())] for seed in seeds]
    return "## Every seed\n\n" + markdown_lines(["seed", *heads], ["---:"] * (len(heads) + 1), rows)


def _value(values: pd.Series, metric: str, seed: int) -> str:
    return number(float(values.get(seed, float("nan"))), metric, 2)
