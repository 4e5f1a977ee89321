"""Plans: every `when` with every `how_often`, written out by hand for a run of 10 rounds."""

from itertools import pairwise, product
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedprune.config.instantiate import make
from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.gate import Accurate, Settled
from fedprune.pruning.how_often import Dynamic, Gradual, Iterative, Never, Progressive, Stepwise
from fedprune.pruning.when import AfterTraining, BeforeTraining, DuringTraining, OnceAccurate, OnceSettled, Window
from fedprune.types import Gate, Plan, PruneEvent

CONF = Path(__file__).parents[2] / "conf"
BEFORE, DURING, AFTER, TOGETHER = BeforeTraining(), DuringTraining(0.1, 0.6), AfterTraining(), AfterTraining("all")
ACCURATE, SETTLED = OnceAccurate(0.5, 0.1, 0.6), OnceSettled(0.1, 0.1, 0.6)
GATED = [OnceAccurate(0.5), OnceSettled(0.1), ACCURATE, SETTLED, OnceAccurate(0.5, 0.5, 1.0)]
WHENS = [*GATED, BEFORE, DURING, AFTER, DuringTraining(0.0, 1.0), DuringTraining(0.5, 0.51), DuringTraining(0.95, 1.0)]
HOW_OFTENS = [
    Never(),
    *(Iterative(times=n) for n in (1, 3, 20)),
    *(Iterative(rate=r) for r in (0.1, 0.2, 0.75)),
    *(Gradual(every, shape) for every in (1, 3) for shape in ("cubic", "linear", "exponential")),
    *(Stepwise(rate, every) for rate in (0.2, 0.75) for every in (1, 3)),
    *(Dynamic(every, 0.3, decay) for every in (1, 4) for decay in ("cosine", "linear", "constant")),
]


def plan(when, how_often, density: float, rounds: int = 10) -> Plan:
    return how_often(when(rounds), density)


def events(made: Plan) -> list[tuple[int, float]]:
    return [(event.round, round(event.density, 6)) for event in made.events]


@pytest.mark.parametrize(
    ("when", "how_often", "density", "expected", "rounds"),
    [
        (BEFORE, Never(), 0.25, [], 10),
        (DURING, Never(), 0.25, [], 10),
        (AFTER, Never(), 0.25, [], 10),
        # One shot: at once, at the start of the window [1, 6), or after a run, with another to follow.
        (BEFORE, Iterative(times=1), 0.25, [(0, 0.25)], 10),
        (DURING, Iterative(times=1), 0.25, [(1, 0.25)], 10),
        (AFTER, Iterative(times=1), 0.25, [(10, 0.25)], 20),
        # Twice to a quarter: each leaves half of the survivors. The window's 5 rounds spread: 1 and 1 + 5 // 2.
        (BEFORE, Iterative(times=2), 0.25, [(0, 0.5), (0, 0.25)], 10),
        (DURING, Iterative(times=2), 0.25, [(1, 0.5), (3, 0.25)], 10),
        (AFTER, Iterative(times=2), 0.25, [(10, 0.5), (20, 0.25)], 30),
        # Half of the survivors each time, until 0.2: 0.5, 0.25, and the last cut off. Spread: 1, 1 + 5 // 3, 1 + 10 // 3.
        (BEFORE, Iterative(rate=0.5), 0.2, [(0, 0.5), (0, 0.25), (0, 0.2)], 10),
        (DURING, Iterative(rate=0.5), 0.2, [(1, 0.5), (2, 0.25), (4, 0.2)], 10),
        (AFTER, Iterative(rate=0.5), 0.2, [(10, 0.5), (20, 0.25), (30, 0.2)], 40),
        # Rounds 1, 3, 5: t = 1/3, 2/3, 1. Cubic: 0.1 + 0.9 (8/27, 1/27, 0). Exponential: 0.1^(1/3), 0.1^(2/3), 0.1.
        (DURING, Gradual(2, "cubic"), 0.1, [(1, 0.366667), (3, 0.133333), (5, 0.1)], 10),
        (DURING, Gradual(2, "linear"), 0.1, [(1, 0.7), (3, 0.4), (5, 0.1)], 10),
        (DURING, Gradual(2, "exponential"), 0.1, [(1, 0.464159), (3, 0.215443), (5, 0.1)], 10),
        (DURING, Gradual(5, "linear"), 0.1, [(1, 0.1)], 10),
        # The run of the lottery ticket papers: 20 % of the survivors, 0.8^k until 0.5.
        (AFTER, Iterative(rate=0.2), 0.5, [(10, 0.8), (20, 0.64), (30, 0.512), (40, 0.5)], 50),
        # The same on ten rounds in all: four runs of 10 // 5 and a last of as many; three of 10 // 4 and a last of 10 - 6.
        (TOGETHER, Iterative(rate=0.2), 0.5, [(2, 0.8), (4, 0.64), (6, 0.512), (8, 0.5)], 10),
        (TOGETHER, Iterative(times=3), 0.125, [(2, 0.5), (4, 0.25), (6, 0.125)], 10),
        (TOGETHER, Never(), 0.5, [], 10),
    ],
)
def test_plans_by_hand(when, how_often, density, expected, rounds):
    made = plan(when, how_often, density)
    assert events(made) == expected
    assert made.rounds == rounds
    assert all(event.swap == 0 for event in made.events)


def test_gradual_may_begin_below_one():
    """Window [1, 6), every 2: rounds 1, 3, 5, and t = 0, 1/2, 1 from 0.5 to 0.1. Cubic: 0.1 + 0.4 / 8 = 0.15; linear: 0.3;
    exponential: 0.5 sqrt(0.2)."""
    middles = {"cubic": 0.15, "linear": 0.3, "exponential": 0.2236068}
    for shape, middle in middles.items():
        made = plan(DURING, Gradual(2, shape, begin=0.5), 0.1)
        assert [(e.round, round(e.density, 7)) for e in made.events] == [(1, 0.5), (3, middle), (5, 0.1)]
    for wrong, density in ((Gradual(2, begin=0.05), 0.1), (Gradual(9, begin=0.5), 0.1)):
        with pytest.raises(ConfigError, match="how_often.begin"):
            plan(DURING, wrong, density)


def test_progressive_takes_one_block_after_the_other_and_over_again():
    made = plan(DuringTraining(0.0, 1.0), Progressive(2, 0.3, "constant", blocks=3), 0.1)
    assert [(e.round, e.swap, e.block) for e in made.events] == [
        (0, 0.0, None),
        (2, 0.3, (0, 3)),
        (4, 0.3, (1, 3)),
        (6, 0.3, (2, 3)),
        (8, 0.3, (0, 3)),
    ]


def test_rounds_that_do_not_suffice_for_all_runs_are_refused():
    assert events(plan(TOGETHER, Iterative(times=9), 0.5))[-1] == (9, 0.5)
    with pytest.raises(Incompatible, match="10 rounds do not suffice for 11 training runs around 10 events: set more"):
        plan(TOGETHER, Iterative(times=10), 0.5)
    with pytest.raises(ConfigError, match="when.budget=some"):
        AfterTraining("some")


def test_dynamic_is_sparse_from_round_0_and_exchanges_a_falling_share():
    # Window [1, 6), every 2: rounds 1, 3, 5; t = 1/6, 1/2, 5/6 of the way to its end; 0.3 (1 + cos pi t) / 2 with
    # cos 30 = 0.866025, cos 90 = 0, cos 150 = -0.866025 degrees.
    made = plan(DURING, Dynamic(2, 0.3, "cosine"), 0.1)
    assert [(e.round, e.density, round(e.swap, 6)) for e in made.events] == [
        (0, 0.1, 0.0),
        (1, 0.1, 0.279904),
        (3, 0.1, 0.15),
        (5, 0.1, 0.020096),
    ]
    assert made.rounds == 10


def test_dynamic_with_constant_decay_exchanges_the_same_share_always():
    made = plan(DURING, Dynamic(2, 0.3, "constant"), 0.1)
    assert made.events == (PruneEvent(0, 0.1), *(PruneEvent(r, 0.1, 0.3) for r in (1, 3, 5)))


def test_dynamic_with_linear_decay_falls_by_as_much_each_time():
    made = plan(DURING, Dynamic(2, 0.3, "linear"), 0.1)  # 0.3 x 5/6, 3/6, 1/6
    assert [(e.round, round(e.swap, 9)) for e in made.events[1:]] == [(1, 0.25), (3, 0.15), (5, 0.05)]


def test_dynamic_exchanges_nothing_in_round_0_where_it_has_only_just_pruned():
    made = plan(DuringTraining(0.0, 1.0), Dynamic(5, 0.3, "constant"), 0.1)
    assert made.events == (PruneEvent(0, 0.1), PruneEvent(5, 0.1, 0.3))


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.25, 0.5, 0.6])
def test_a_density_that_is_a_power_of_the_rate_takes_just_that_many_events(rate):
    for steps in range(1, 25):
        # As a power, and as the decimal that one would type: 0.64 is not 0.8 * 0.8 = 0.6400000000000001.
        for density in ((1 - rate) ** steps, float(f"{(1 - rate) ** steps:.12g}")):
            densities = [event.density for event in plan(AFTER, Iterative(rate=rate), density).events]
            assert densities == pytest.approx([(1 - rate) ** k for k in range(1, steps + 1)])


@pytest.mark.parametrize("times", [1, 2, 7, 30])
def test_every_event_of_a_number_of_times_prunes_the_same_share_of_the_survivors(times):
    densities = [1.0] + [event.density for event in plan(AFTER, Iterative(times=times), 0.05).events]
    assert [b / a for a, b in pairwise(densities)] == pytest.approx([0.05 ** (1 / times)] * times)


def compositions() -> list[tuple[Plan, float]]:
    """Every composition that is not refused, over many lengths and densities."""
    made = []
    for when, how_often, rounds, density in product(WHENS, HOW_OFTENS, (1, 2, 3, 7, 10, 100), (0.003, 0.107, 0.3, 0.5, 0.9)):
        try:
            made.append((plan(when, how_often, density, rounds), density))
        except Incompatible as error:
            if "there is no room for" in str(error):
                assert when in GATED
            elif when in GATED:
                assert isinstance(how_often, Dynamic)
            else:
                assert isinstance(how_often, Gradual | Dynamic | Stepwise)
                assert not isinstance(when, DuringTraining) or isinstance(how_often, Stepwise)
    return made


def test_every_plan_falls_and_ends_at_the_very_density_that_was_asked_for():
    for made, density in compositions():
        densities = [event.density for event in made.events]
        assert densities == sorted(densities, reverse=True)
        assert not densities or densities[-1] == density
        assert all(density <= d < 1 for d in densities)


def test_every_event_of_every_plan_comes_in_order_and_while_rounds_are_left_to_train():
    for made, _ in compositions():
        rounds = [event.round for event in made.events]
        assert rounds == sorted(rounds)
        assert all(0 <= r < made.rounds for r in rounds), made


@pytest.mark.parametrize("when", [BEFORE, DURING, AFTER, ACCURATE, SETTLED])
@pytest.mark.parametrize("how_often", [Iterative(times=3), Iterative(rate=0.2)])
def test_density_1_takes_no_event(when, how_often):
    assert plan(when, how_often, 1.0) == Plan((), 10)


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize("how_often", [Gradual(), Dynamic()])
def test_what_needs_a_window_of_rounds_is_refused_elsewhere_and_told_what_to_choose(when, how_often):
    with pytest.raises(Incompatible, match=r"choose when=during_training, or how_often=iterative"):
        plan(when, how_often, 0.1)


# --- gates: each event in its turn, and not before the gate can have been met ----------------------------------------------


@pytest.mark.parametrize(
    ("when", "how_often", "density", "expected", "apart"),
    [
        # Window [1, 6): once, at the earliest after the first round; the mask's shift takes two rounds to measure.
        (ACCURATE, Iterative(times=1), 0.25, [(1, 0.25)], 1),
        (SETTLED, Iterative(times=1), 0.25, [(2, 0.25)], 2),
        # As in a window: rounds 1 and 1 + 5 // 2. Settled: [2, 6), 2 and 2 + 4 // 2.
        (ACCURATE, Iterative(times=2), 0.25, [(1, 0.5), (3, 0.25)], 1),
        (SETTLED, Iterative(times=2), 0.25, [(2, 0.5), (4, 0.25)], 2),
        # Every 2 rounds, of [1, 6) and of [2, 6): t = 1/3, 2/3, 1 and 1/2, 1.
        (ACCURATE, Gradual(2, "linear"), 0.1, [(1, 0.7), (3, 0.4), (5, 0.1)], 1),
        (SETTLED, Gradual(2, "linear"), 0.1, [(2, 0.55), (4, 0.1)], 2),
        # As often as the gate allows: half of the survivors each time.
        (ACCURATE, Stepwise(0.5), 0.2, [(1, 0.5), (2, 0.25), (3, 0.2)], 1),
        (ACCURATE, Stepwise(0.5, every=2), 0.2, [(1, 0.5), (3, 0.25), (5, 0.2)], 2),
        (SETTLED, Stepwise(0.5), 0.25, [(2, 0.5), (4, 0.25)], 2),
        (SETTLED, Stepwise(0.5, every=3), 0.25, [(2, 0.5), (5, 0.25)], 3),
        # 5 events in a window of 5 rounds: without a gate several may fall together, with one they follow each other.
        (ACCURATE, Iterative(times=5), 0.25, [(k, round(0.25 ** (k / 5), 6)) for k in range(1, 6)], 1),
    ],
)
def test_gated_plans_by_hand(when, how_often, density, expected, apart):
    made = plan(when, how_often, density)
    assert events(made) == expected
    assert made.rounds == 10
    condition = Accurate(0.5) if when is ACCURATE else Settled(0.1)
    assert made.gate == Gate(condition, 6, apart)


def test_without_an_event_there_is_no_gate_to_wait_at():
    assert plan(ACCURATE, Never(), 0.25) == Plan((), 10)


def test_events_of_a_gated_plan_are_as_far_apart_as_the_gate_wants_and_before_it_stops():
    gates = [made for made, _ in compositions() if made.gate]
    assert len(gates) > 200
    for made in gates:
        rounds = [event.round for event in made.events]
        assert rounds[0] >= made.gate.opens.asks
        assert all(after - before >= made.gate.apart for before, after in pairwise(rounds))
        assert rounds[-1] < made.gate.stop <= made.rounds


@pytest.mark.parametrize(
    ("when", "how_often", "message"),
    [
        (ACCURATE, Dynamic(), "has nothing to wait for: choose when=during_training"),
        (
            ACCURATE,
            Stepwise(0.2),
            "no room for 11 prune events, 1 or more rounds apart under this gate, between the rounds 1 and 6",
        ),
        (SETTLED, Gradual(1), "no room for 4 prune events, 2 or more rounds apart under this gate, between the rounds 2 and 6"),
        (BEFORE, Stepwise(), "needs a gate: choose when=once_accurate, or how_often=iterative"),
        (DURING, Stepwise(), "needs a gate: choose when=once_accurate, or how_often=iterative"),
        (AFTER, Stepwise(), "needs a gate: choose when=once_accurate, or how_often=iterative"),
    ],
)
def test_what_a_gate_cannot_delay_or_what_needs_one_is_refused_and_told_what_to_choose(when, how_often, message):
    with pytest.raises(Incompatible, match="choose") as caught:
        plan(when, how_often, 0.1)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Iterative(), "how_often.times=None and how_often.rate=None: give one"),
        (lambda: Iterative(times=2, rate=0.2), "how_often.times=2 and how_often.rate=0.2: give one"),
        (lambda: Iterative(times=0), "how_often.times=0 must be at least 1; for no pruning choose how_often=never"),
        (lambda: Iterative(rate=0.0), "how_often.rate=0.0 is the fraction of the survivors"),
        (lambda: Iterative(rate=1.0), "how_often.rate=1.0 is the fraction of the survivors"),
        (lambda: Gradual(every=0), "how_often.every=0 must be at least 1"),
        (lambda: Gradual(shape="square"), "how_often.shape=square: choose one of cubic, linear, exponential"),
        (lambda: Stepwise(every=0), "how_often.every=0 must be at least 1"),
        (lambda: Stepwise(rate=1.0), "how_often.rate=1.0 is the fraction of the survivors"),
        (lambda: OnceAccurate(accuracy=1.1), "when.accuracy=1.1 is a fraction of the validation examples"),
        (lambda: OnceAccurate(accuracy=-0.1), "when.accuracy=-0.1 is a fraction of the validation examples"),
        (lambda: OnceSettled(shift=-0.1), "when.shift=-0.1 is a fraction of the living entries"),
        (lambda: OnceSettled(shift=float("nan")), "when.shift=nan is a fraction of the living entries"),
        (lambda: OnceAccurate(start=0.6, stop=0.6), "0 <= start < stop <= 1"),
        (lambda: OnceSettled(stop=1.1), "0 <= start < stop <= 1"),
        (lambda: Dynamic(every=0), "how_often.every=0 must be at least 1"),
        (lambda: Dynamic(swap=0.0), "how_often.swap=0.0 is a fraction of the living"),
        (lambda: Dynamic(swap=1.0), "how_often.swap=1.0 is a fraction of the living"),
        (lambda: Dynamic(decay="cubic"), "how_often.decay=cubic: choose one of cosine, linear, constant"),
        (lambda: DuringTraining(start=-0.1), "when.start=-0.1 and when.stop=0.6 are fractions"),
        (lambda: DuringTraining(stop=1.1), "when.start=0.1 and when.stop=1.1 are fractions"),
        (lambda: DuringTraining(start=0.6, stop=0.6), "0 <= start < stop <= 1"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(make_it, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_it()
    assert not isinstance(caught.value, Incompatible)


def test_windows_by_hand():
    assert BEFORE(10) == Window(0, 0, 10)
    assert DURING(10) == Window(1, 6, 10)
    assert DuringTraining(0.25, 0.75)(10) == Window(3, 8, 10)  # 2.5 and 7.5: halves up
    assert AFTER(10) == Window(10, 10, 10, repeats=True)
    assert ACCURATE(10) == Window(1, 6, 10, gate=Accurate(0.5))
    assert OnceAccurate(0.5, 0.0, 1.0)(10) == Window(1, 10, 10, gate=Accurate(0.5))  # nothing is accurate before it is trained
    assert OnceSettled(0.1, 0.0, 1.0)(10) == Window(2, 10, 10, gate=Settled(0.1))


def test_a_window_is_at_least_a_round_long_and_within_the_run():
    for start, stop, rounds in product((0.0, 0.1, 0.5, 0.9, 0.99), (0.995, 1.0), range(1, 30)):
        window = DuringTraining(start, stop)(rounds)
        assert 0 <= window.first < window.stop <= rounds, window


@pytest.mark.parametrize("file", sorted(CONF.glob("how_often/*.yaml")), ids=lambda file: file.stem)
def test_every_yaml_plans_a_run(file):
    when = "once_accurate" if file.stem == "stepwise" else "during_training"
    window = make(OmegaConf.load(CONF / "when" / f"{when}.yaml"))(100)
    made = make(OmegaConf.load(file))(window, 0.1)
    assert made.rounds == 100
    assert [event.density for event in made.events][-1:] == ([] if file.stem == "never" else [0.1])
