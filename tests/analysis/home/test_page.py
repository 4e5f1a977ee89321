"""Pages of published claims, from numbers that can be followed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedprune.analysis.home.__main__ import write_pages
from fedprune.analysis.home.evidence import Evidence, Measured, loaded, saved
from fedprune.analysis.home.index import index
from fedprune.analysis.home.judgement import judge
from fedprune.analysis.home.page import experiment_of, page
from fedprune.analysis.home.units import larger_is_better, spread
from fedprune.analysis.metric import Metric
from fedprune.analysis.verdict import BEATEN, HELD, NOT_TESTABLE, REVERSED, SIMPLER, UNDECIDED
from fedprune.config.home import Compared, Home

SENT, TUNED = "client/accuracy_mean", "client/accuracy_tuned_mean"
BASELINE = (0.60, 0.70, 0.80, 0.90, 0.50)


def above(*points: float) -> tuple[float, ...]:
    """Values of the five seeds that are so many points above the baseline's."""
    return tuple(round(base + gain / 100, 4) for base, gain in zip(BASELINE, points, strict=False))


def measured(tuned: tuple[float, ...], sent: tuple[float, ...] = (), lacking: str = "", **more: tuple[float, ...]) -> Measured:
    values = {TUNED: tuned, SENT: sent, **more}
    return Measured({name: dict(enumerate(found)) for name, found in values.items() if found}, lacking)


def evidence(
    method: Measured, baseline: Measured | None = None, control: Measured | None = None, margin: float = 0.0
) -> Evidence:
    home = Home(
        claim="Tickets are more accurate (A 2021).",
        method=Compared("lotteryfl", TUNED),
        baseline=Compared("fedavg", SENT),
        controls={
            "FedAvg and one local training": Compared("fedavg", TUNED),
            "local training alone": Compared("standalone", TUNED),
        },
        margin=margin,
        theirs={"data": "MNIST", "local work": "60 epochs"},
    )
    weak = measured(above(0, 0, 0, 0, 0))
    fedavg = baseline or measured(above(-1, -1, -1, -1, -1), BASELINE)
    runs = {"lotteryfl": method, "fedavg": fedavg, "standalone": control or weak}
    ours = {"data": "digits, 1x8x8", "local work": "10 epochs, batches of 10"}
    return Evidence(
        "mine", "LotteryFL at home", "It is small.", "python -m fedprune -m", home, Metric(), ours, runs, {"rounds": "60"}
    )


METHOD = measured(above(1, 2, 3, 4, 5), alive=(0.2, 0.2, 0.2, 0.25, 0.15))


@pytest.mark.parametrize(
    ("found", "words", "line"),
    [
        # Differences 1 2 3 4 5: mean 3, s = 1.58114, t(0.975, 4) = 2.776445: 3 +- 2.776445 * 1.58114 / sqrt(5) = 3 +- 1.96324.
        (evidence(METHOD), HELD, ": +3.00 points (+1.04 to +4.96, 5 seeds)."),
        # The control is 2 1 4 3 6 above the baseline (mean 3.2, s = 1.92354: +-2.38838), and the method -1 1 -1 1 -1 above it.
        (evidence(METHOD, control=measured(above(2, 1, 4, 3, 6))), SIMPLER, "(local training alone). `lotteryfl` by"),
        # The control is 2 4 6 8 10 above the baseline, and the method -1 -2 -3 -4 -5 above it: -3 +- 1.96324.
        (evidence(METHOD, control=measured(above(2, 4, 6, 8, 10))), BEATEN, "(local training alone). `lotteryfl` by"),
        (evidence(measured(above(-1, -2, -3, -4, -5))), REVERSED, ": -3.00 points (-4.96 to -1.04, 5 seeds)."),
        # 1 1 1 1 -2: mean 0.4, s = 1.34164: 0.4 +- 1.66587.
        (evidence(measured(above(1, 1, 1, 1, -2))), UNDECIDED, ": +0.40 points (-1.27 to +2.07, 5 seeds)."),
        (
            evidence(Measured({}, "0 of 5 runs are done; failed: a fault")),
            NOT_TESTABLE,
            "of lotteryfl 0 of 5 runs are done; failed",
        ),
        (evidence(measured((), above(1, 2))), NOT_TESTABLE, f": runs of lotteryfl have no {TUNED}."),
        (evidence(measured(above(1))), NOT_TESTABLE, "lotteryfl was run with 1 seed, and an interval needs 2"),
    ],
)
def test_each_verdict_with_its_interval_is_in_the_first_lines(found, words, line):
    assert judge(found).verdict.words == words
    title, _, first = page(found).splitlines()[:3]
    assert title == "# LotteryFL at home"
    assert first.startswith(f"**Verdict: {words}**")
    assert line in first


def test_a_difference_of_few_test_examples_is_undecided_on_the_page_and_in_the_index():
    # Of 200 test examples 6 are 3 points. 2.9 points (5.8 examples) in every seed are undecided, 3 points are held.
    def of(points: float) -> Evidence:
        found = evidence(measured((), **{"test/accuracy": above(*[points] * 5)}), measured((), **{"test/accuracy": BASELINE}))
        home = replace(found.home, method=Compared("lotteryfl", "test/accuracy"), baseline=Compared("fedavg", "test/accuracy"))
        return replace(found, home=replace(home, controls={}), test_examples=200)

    assert judge(of(2.9)).verdict.words == UNDECIDED and judge(of(3)).verdict.words == HELD
    few = "5.8 of 200 test examples; fewer than 6 decide nothing"
    assert page(of(2.9)).splitlines()[2].startswith(f"**Verdict: undecided** ({few}).")
    assert f"| undecided: {few} |" in index([of(2.9)])
    assert "All seeds share one test set of 200 examples" in page(of(3)) and "has to be worth 6 of them, 3.00 points" in page(
        of(3)
    )
    # Clients' own test examples are drawn anew by each seed.
    assert "Each seed draws the clients' test examples anew" in page(replace(evidence(METHOD), test_examples=200))
    assert replace(evidence(METHOD), test_examples=200).resolution == 0


def test_the_index_counts_and_corrects():
    # METHOD: t = 3 / 0.707107 = 4.2426 with 4 degrees of freedom, p = 0.0132.
    text = index([evidence(METHOD), replace(evidence(METHOD), key="other")])
    assert "2 pages, 2 on digits: 2 *held*. Corrected for all of them by Holm's method at 5 %, 2 of 2 comparisons are" in text
    assert "(the smallest p-value is 0.013; the first would have to be at most 0.025)" in text


def test_to_come_close_is_said_with_its_margin():
    # -0.5 -0.4 -0.6 -0.5 -0.5: mean -0.5, s = 0.0707107: +-0.0877989. Above -1 point.
    far = measured(above(-3, -3, -3, -3, -3))
    tuned_far = measured(above(-3, -3, -3, -3, -3), BASELINE)
    close = evidence(measured(above(-0.5, -0.4, -0.6, -0.5, -0.5)), tuned_far, far, margin=0.01)
    assert judge(close).verdict.words == HELD
    assert ": -0.50 points (-0.59 to -0.41, 5 seeds); the claim lets it be 1.0 points below." in page(close)


def test_protocols_stand_side_by_side_and_what_is_compared_is_bold():
    text = page(evidence(METHOD))
    assert "| local work | 60 epochs | 10 epochs, batches of 10 |" in text
    assert "| density |  | 20.0 ± 3.5 % alive at the end |" in text  # 20 20 20 25 15: variance 50 / 4
    # Of the method 61 72 83 94 55: mean 73, variance (144 + 1 + 100 + 441 + 324) / 4 = 252.5.
    assert "| method: lotteryfl |  | **73.0 ± 15.9** |" in text
    assert "| baseline: fedavg | **70.0 ± 15.8** | 69.0 ± 15.8 |" in text
    assert "| control: FedAvg and one local training | 70.0 ± 15.8 | **69.0 ± 15.8** |" in text
    assert "| control: local training alone | +3.00 | +1.04 to +4.96 | +0.00 (+0.00 to +0.00) |" in text
    assert "| 4 | 55.00 | 50.00 | 49.00 | 50.00 |" in text


def test_a_control_without_its_metric_is_said_and_decides_nothing():
    found = evidence(METHOD, control=measured((), BASELINE))
    assert judge(found).verdict.words == HELD
    assert f"| control: local training alone |  |  |  | runs of standalone have no {TUNED} |" in page(found)


def test_pages_and_index_are_written_again_from_what_is_kept(tmp_path):
    first, second = evidence(METHOD), replace(evidence(measured(above(1, 1, 1, 1, -2))), key="other", title="Other at home")
    for each in (first, second):
        (tmp_path / f"{each.key}.json").write_text(saved(each))
    assert loaded(tmp_path / "other.json") == second
    assert {path.name for path in write_pages(tmp_path)} == {"mine.md", "mine.json", "other.md", "other.json", "README.md"}
    assert (tmp_path / "mine.md").read_text() == page(first)
    text = (tmp_path / "README.md").read_text()
    assert text == index([first, second])
    assert "| [LotteryFL](mine.md) | held | fedavg | +3.00 points | +1.04 to +4.96 | 0 | 5 | digits |" in text
    near = index([evidence(measured(above(1, 1, 1, 1, -2)), margin=0.02)])
    assert "| -1.27 to +2.07 | -2.0 | 5 |" in near
    assert "| [Other](other.md) | undecided | fedavg | +0.40 points | -1.27 to +2.07 | 0 | 5 | digits |" in text


def test_of_costs_and_errors_less_is_better():
    assert larger_is_better(SENT, Metric())
    assert not any(larger_is_better(name, Metric()) for name in ("total/up_bytes", "flops/train", "test/loss", "alive"))
    assert not larger_is_better("client/mae_mean", Metric("mae", larger_is_better=False))


def test_a_spread_has_as_many_digits_as_its_mean():
    bytes_up = Measured({"total/up_bytes": {0: 3_040_000.0, 1: 3_040_002.0}}).series("total/up_bytes")
    assert spread(bytes_up, "total/up_bytes") == "3.04 ± 0.00"


def test_the_paper_and_the_deviations_are_linked():
    ours = replace(evidence(METHOD), key="lotteryfl_cifar10_jpeg")
    ours = replace(ours, home=replace(ours.home, paper="arXiv:2008.03371"))
    assert "The paper is [arXiv:2008.03371](https://arxiv.org/abs/2008.03371)." in page(ours)
    assert "is said in [conf/experiment/lotteryfl.yaml](../../conf/experiment/lotteryfl.yaml)." in page(ours)
    assert experiment_of("lotteryfl_cifar10_jpeg") == "lotteryfl" and experiment_of("subfedavg_un") == "subfedavg_un"
    assert experiment_of("mine") == "" and "deviates" not in page(evidence(METHOD))
