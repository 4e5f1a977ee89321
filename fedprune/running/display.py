"""The terminal's text: a run and its plan, its progress, and a sweep's table. It reads well in a log file, too."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedprune.amount import amount

if TYPE_CHECKING:  # importing it takes torch's second, and --help needs none of it
    from fedprune.types import Json, Plan

console = Console(highlight=False, soft_wrap=True)


def plan_text(
    plan: Plan, rewind: str, emerges: str = "", own: bool = False, untouched: Sequence[str] = (), of: str = "units"
) -> str:
    """Return the plan as lines: the rounds of training, and every prune event between them.

    rewind: what follows each event; "" if nothing does. emerges: what to say in the place of densities that only the events
    will show. own: whether clients have their own masks. untouched: the weights that are not pruned because nobody trains them.
    of: what a density is a share of (density_of).
    """
    lines = [f"plan: {plan.rounds} rounds of training, {len(plan.events) or 'no'} prune event{'s' * (len(plan.events) != 1)}"]
    back = f", rewind {rewind}" if rewind else ""
    wait = "" if plan.gate is None else f"once {plan.gate.opens}, "
    wait += "each client in its own time, " * own + "at the earliest " * (own or plan.gate is not None)
    share = "" if of == "units" else f" of {of}"
    for event in plan.events:
        first = f", after at most {event.initial.rounds} rounds of one client alone" if event.initial else ""
        swap = f", exchanging {event.swap:.3g} of the living" if event.swap else ""
        if event.block is not None:
            swap += f", in block {event.block[0] + 1} of {event.block[1]} from the output"
        lines.append(
            f"  {wait}after round {event.round:>5}: density {emerges or f'{event.density:.4g}{share}'}{swap}{first}{back}"
        )
    if untouched and plan.events:
        layers = ", ".join(name.removesuffix(".weight") for name in untouched)
        lines.append(f"  frozen (requires_grad=False), and so not pruned (what.frozen=true prunes them, too): {layers}")
    return "\n".join(lines)


def results_text(folder: Path) -> str:
    """Return where a run's results are, and how to look at them."""
    files = "metrics.jsonl, summary.json, ticket.safetensors"
    return f"results: {folder}  ({files}; `python -m fedprune.analysis {shlex.quote(str(folder))}` makes table and figures)"


def brief(plan: str, most: int = 12) -> str:
    """Return a plan's text without the middle of a long plan."""
    lines = plan.splitlines()
    if len(lines) <= most:
        return plan
    left_out = f"  ... {len(lines) - most + 1} more events (all of them: plan.txt) ..."
    return "\n".join([*lines[: most - 3], left_out, *lines[-2:]])


def idle_text(plan: Plan, how_often: str, overrides: Sequence[str], others_use_density: bool) -> str | None:
    """Return a remark on what was typed about pruning in a run that prunes nothing; None if there is nothing to remark on.

    overrides: what was typed, key=value. others_use_density: whether an option beside the plan goes by the density.
    """
    if plan.events:
        return None
    keys = ("criterion", "when", "where") + (() if others_use_density else ("density",))
    idle = [override for override in overrides if override.partition("=")[0] in keys]
    if not idle:
        return None
    change = "changes" if len(idle) == 1 else "change"
    return f"  how_often={how_often} has no events, so {', '.join(idle)} {change} nothing; to prune, type how_often=one_shot"


def about_text(about: Json) -> str:
    """Describe a run in three lines."""
    axes, name = about["axes"], about["name"]
    recipe = " · ".join(axes[axis] for axis in ("what", "criterion", "when", "how_often", "where", "whose"))
    model, data, partition = (_made_by(about, group) for group in ("model", "data", "partition"))
    start = [_start_text(about["config"], about["begin"]["density"])] if about.get("begin") else []
    return "\n".join(
        [
            f"{name}: {recipe} · rewind {axes['rewind']}",
            f"model {model}: {about['parameters']:,} parameters, {about['prunable']:,} of them prunable",
            f"data {data}, {partition}: {about['examples']:,} examples, {about['clients']} clients, "
            f"{about['cohort']} per round; seed {about['seed']}",
            *start,
        ]
    )


def _made_by(about: Json, group: str) -> str:
    """Return the chosen option of a group; and before it its `_target_`, if that is another one than the option's own."""
    option, target = str(about["axes"][group]), str(about["config"][group].get("_target_", ""))
    package, _, name = target.rpartition(".")
    own = name.lower() == option.replace("_", "") or name == option
    of_ours = group != "model" and package.startswith("fedprune.")  # data sets and partitions may share a function
    return option if own or of_ours or not target else f"{target} (option {option})"


def _start_text(config: Json, density: float) -> str:
    """Name the ticket or the weights that a run starts from, and the changes to them."""
    ticket, weights = config["ticket"], config["init_from"]
    if weights["path"] is not None:
        return f"from the weights in {weights['path']}{', head fresh' * (weights['head'] == 'fresh')}, density {density:.4g}"
    changes = {"permute": ("none", "masks shuffled {}"), "head": ("keep", "head {}")}
    changed = [text.format(ticket[key].replace("_", " ")) for key, (usual, text) in changes.items() if ticket[key] != usual]
    return ", ".join([f"from ticket {ticket['path']}", *changed, f"density {density:.4g}"])


def cost_text(rows: list[tuple[str, str]]) -> str:
    """Return names and values as aligned lines."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


LEFT_OUT = {"clients/silent": "silent", "clients/late": "late", "clients/dropped": "broken or lost"}
"""The metrics that count answers that were left out of a round, and their names."""


def left_out_text(rows: Sequence[Mapping[str, float]]) -> str | None:
    """Return how many answers were left out of all rounds, why, and which events never came; None if all went well."""
    counts = {text: int(sum(row.get(name, 0) for row in rows)) for name, text in LEFT_OUT.items()}
    empty, waiting = sum("train/loss" not in row for row in rows), int(rows[-1].get("prune/waiting", 0))
    reasons = ", ".join(f"{count} {text}" for text, count in counts.items() if count)
    parts = [
        f"left out of {len(rows)} rounds: {reasons}" if reasons else "",
        f"{empty} of the rounds merged nothing" if reasons and empty else "",
        f"prune events that never came, because nobody answered about their evidence: {waiting}" if waiting else "",
    ]
    return "; ".join(filter(None, parts)) or None


class Live:
    """Told of every round; shows the newest value of the task's metric on test data, density and bytes.

    personal: whether clients have masks of their own; then their networks come first, since nobody uses the server's.
    """

    def __init__(self, rounds: int, done: int, progress: Progress | None, metric: str = "accuracy", personal: bool = False):
        self._rounds, self._progress, self._metric, self._personal, self._shown_value = rounds, progress, metric, personal, ""
        self._task = progress.add_task("", total=rounds, completed=done, facts="") if progress else None
        self._shown = time.monotonic()

    def round(self, metrics: Mapping[str, float]) -> None:
        """Show one round more."""
        value = metrics.get(f"test/{self._metric}")
        if value is not None or not self._shown_value:
            self._shown_value = self._values(metrics)
        facts = f"{self._shown_value}  density {metrics['density/weights']:.3g}  sent {amount(metrics['wire/total_bytes'])}"
        facts = f"flops {metrics['density/flops']:.3g}  {facts}" if "density/flops" in metrics else facts
        left_out = int(sum(metrics.get(name, 0) for name in LEFT_OUT))
        facts += f"  left out {left_out}" if left_out else ""
        done = int(metrics["round"]) + 1
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, facts=facts)
        elif done == self._rounds or (value is not None and time.monotonic() - self._shown > 5):
            self._shown = time.monotonic()
            console.print(f"round {done:>5}/{self._rounds}  {facts}  loss {metrics.get('train/loss', float('nan')):.3f}")

    def _values(self, metrics: Mapping[str, float]) -> str:
        """Return the values that were measured, each with the networks that it is of; "-" for none."""
        parts = {"": f"test/{self._metric}"}
        if self._personal:
            client = f"client/{self._metric}"
            parts = {"clients' ": f"{client}_mean", "tuned ": f"{client}_tuned_mean", "server's ": f"test/{self._metric}"}
        name = self._metric.replace("_", " ")
        found = {words: metrics[key] for words, key in parts.items() if key in metrics}
        percent = self._metric.endswith("accuracy")
        texts = [
            f"{words}{name} {100 * value:.1f} %" if percent else f"{words}{name} {value:.4g}" for words, value in found.items()
        ]
        return ", ".join(texts) or f"{name} -"


@contextmanager
def live(rounds: int, done: int, metric: str = "accuracy", personal: bool = False) -> Iterator[Live]:
    """Show progress in a terminal; in a log file, a line every few seconds and at the end."""
    if not console.is_terminal:
        yield Live(rounds, done, None, metric, personal)
        return
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Live(rounds, done, progress, metric, personal)
