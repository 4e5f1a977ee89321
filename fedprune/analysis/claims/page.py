"""The claims of a benchmark as Markdown, and its place in a page between two markers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fedprune.analysis.by_method import WITHOUT
from fedprune.analysis.claims.claim import Claim, Measured
from fedprune.analysis.claims.judge import POINTS, Judgement
from fedprune.analysis.claims.outcomes import WORDS
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.verdict import (
    BEATEN,
    HELD,
    LEVEL,
    NOT_COMPARABLE,
    REVERSED,
    SIMPLER,
    UNDECIDED,
    Interval,
    holm_sentence,
    p_value,
)
from fedprune.errors import FedpruneError

HEAD = ["claim", "compared", "density", "difference (points)", "verdict"]
RULES = ["---", "---", "---:", "---:", "---"]


def claims_markdown(judgements: Sequence[Judgement], homes: Sequence[str]) -> str:
    """Return the counts of verdicts, the warning about many comparisons, the table, and the notes of the claims below it.

    homes: the names of the home pages that exist; a claim links to its own.
    """
    claims = list(dict.fromkeys(judgement.claim for judgement in judgements))
    table = markdown_lines(HEAD, RULES, [_row(each, _is_first(each, judgements), homes) for each in judgements])
    notes = [f"- *{claim.claim}*: {claim.note.strip()}\n" for claim in claims if claim.note]
    return "\n".join([_counts(judgements), _chance(judgements), _holm(judgements), table, "".join(notes)]).strip() + "\n"


def _is_first(judgement: Judgement, judgements: Sequence[Judgement]) -> bool:
    return next(each for each in judgements if each.claim == judgement.claim) is judgement


def _row(judgement: Judgement, first: bool, homes: Sequence[str]) -> list[str]:
    claim = judgement.claim
    compared = f"{_name(claim.method)} - {_name(judgement.baseline)}"
    density = "none" if judgement.density == WITHOUT else f"{judgement.density:g}"
    return [_title(claim, homes) if first else "", compared, density, difference(judgement.verdict.gain), _verdict(judgement)]


def _title(claim: Claim, homes: Sequence[str]) -> str:
    points = claim.margin * POINTS
    margin = f", by at most {points:g} point{'s' * (points != 1)} below" if points else ""
    home = f"; [at home](home/{claim.home}.md)" if claim.home in homes else ""
    return f"{claim.claim} ({claim.source}){margin}{home}"


def _name(measured: Measured) -> str:
    return f"`{measured.method}`{WORDS[measured.metric]}"


def difference(gain: Interval) -> str:
    """Return a mean difference and its interval in points, such as '+4.4 (-0.3 to +9.1)'; '' if there is none."""
    return "" if math.isnan(gain.mean) else f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"


def _verdict(judgement: Judgement) -> str:
    words, control = judgement.verdict.words, judgement.verdict.control
    if not judgement.testable:
        return f"{words}: {judgement.reason}"
    if words in (SIMPLER, BEATEN):
        return f"{words}: {control}"
    without = f"; not run: {', '.join(judgement.not_run)}" if words == HELD and judgement.not_run else ""
    return words + without


def _counts(judgements: Sequence[Judgement]) -> str:
    counts = Counter(judgement.verdict.words for judgement in judgements)
    claims = len({judgement.claim for judgement in judgements})
    of_each = ", ".join(f"{counts[words]} *{words}*" for words in (HELD, SIMPLER, BEATEN, REVERSED, UNDECIDED))
    judged, apart = sum(judgement.testable for judgement in judgements), counts[NOT_COMPARABLE]
    others = f" {apart} {'is' if apart == 1 else 'are'} *{NOT_COMPARABLE}*." if apart else ""
    return f"{claims} claims, {len(judgements)} comparisons, of which {judged} can be judged here: {of_each}.{others}\n"


def _chance(judgements: Sequence[Judgement]) -> str:
    judged = sum(judgement.testable for judgement in judgements)
    share = (1 - LEVEL) / 2
    return (
        f"Many comparisons: if no method differed from its baseline, each interval would still lie above 0 with a chance of "
        f"{100 * share:.2g} %, and below it with the same. So {judged} comparisons have about {share * judged:.1f} *held* and "
        f"{share * judged:.1f} *reversed* by chance. No interval is made wider for this. The two densities share seeds, "
        "splits and initial weights: that both agree is less than twice the evidence.\n"
    )


def _holm(judgements: Sequence[Judgement]) -> str:
    """Return what Holm's correction leaves of the comparisons with baselines; those with controls are not in it."""
    tested = [each for each in judgements if each.testable]
    return holm_sentence([p_value(each.verdict.gain, each.claim.margin * POINTS) for each in tested]) + "\n"


def filled(page: str, name: str, text: str) -> str:
    """Return the page with the text between `<!-- name -->` and `<!-- /name -->`. Raises FedpruneError without these lines."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        raise FedpruneError(f"the page has no place for {name}: put the lines {begin.strip()} and {end.strip()} into it, once")
    return f"{page[: page.index(begin)]}{begin}\n{text.strip()}\n\n{page[page.index(end) :]}"


def between(page: str, name: str) -> str:
    """Return the text between the markers of `name`."""
    return page.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->\n")[0].strip()
