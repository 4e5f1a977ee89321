"""Every option of `what` in a whole run: two rounds of a tiny federation, on a network that it fits."""

from pathlib import Path

import pytest

from fedprune.errors import ConfigError, Incompatible
from fedprune.experiment.experiment import Experiment
from fedprune.pruning.mask import count, size
from fedprune.running.display import brief, plan_text
from fedprune.storage.checkpoint import save_ticket

pytestmark = pytest.mark.slow

CONF = Path(__file__).parents[3] / "conf" / "what"
OPTIONS = sorted(file.stem for file in CONF.glob("*.yaml"))
CONVOLUTIONS = [o for o in OPTIONS if o.startswith(("filters", "channels", "kernels")) and o != "filters_and_weights"]
"""Those that need a convolution; filters_and_weights is of weights alone where there is none."""

ONCE = ("how_often=one_shot", "when=before_training", "rounds=2", "density=0.5")


@pytest.fixture
def ticketed(tiny, tmp_path):
    """(option, *overrides) -> its experiment; what wants a ticket gets one of the same network, half dense."""

    def make(option: str, *overrides: str) -> Experiment:
        if option != "weights_like":
            return tiny(*ONCE, f"what={option}", *overrides)
        earlier = tiny(*ONCE, "what=weights_erk", *overrides)
        loop = earlier.loop(earlier.executor())
        state, _ = loop.round(loop.start())
        save_ticket(state.ticket, state.server.mask, {}, tmp_path / "ticket.safetensors")
        return tiny(*ONCE, f"what={option}", *overrides, f"what.scope.ticket='{tmp_path / 'ticket.safetensors'}'")

    return make


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_runs_for_two_rounds_and_its_paths_are_counted_once(option, ticketed, play):
    (first, early), (second, late) = play(ticketed(option, "model=cnn_fedavg"))
    assert 0 < count(first.server.mask) < size(first.server.mask)
    assert all(bool((first.server.mask[name] == alive).all()) for name, alive in second.server.mask.items())
    assert 0 <= early["density/effective"] <= early["density/weights"]
    assert "density/effective" not in late  # the mask is as it was
    expected = 0.42 if option == "weights_threshold" else 0.5  # uniform weights: 1 - 1 / sqrt(3)
    assert early["density/units"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("option", [o for o in OPTIONS if o not in CONVOLUTIONS and o != "weights_4of8"])
def test_what_needs_no_convolution_runs_on_a_network_without_any(option, ticketed, play):
    assert len(play(ticketed(option, "model=lenet_300_100"))) == 2


@pytest.mark.parametrize("option", CONVOLUTIONS)
def test_what_needs_a_convolution_is_refused_without_any(option, tiny):
    with pytest.raises(Incompatible, match="no conv layer to prune: choose another model"):
        tiny(*ONCE, f"what={option}", "model=lenet_300_100")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("what=weights_4of8", "model=lenet_300_100"),
            "4 of 8 inputs: fc2 has 300, fc3 has 100, which 8 does not divide: choose",
        ),
        (
            ("what=weights_2of4", "density=0.1"),
            "what=weights_2of4: 2 of 4 units is a density of 0.5, not 0.1: choose density=0.5",
        ),
        (
            ("what=weights_2of4", "how_often=gradual", "when=during_training", "how_often.every=1", "rounds=9"),
            "choose how_often=one_",
        ),
        (
            ("what=weights_2of4", "how_often=iterative"),
            "2 of 4 units are kept from the first event on: choose how_often=one_shot",
        ),
        (
            (
                "what=weights_threshold",
                "criterion=set",
                "how_often=dynamic",
                "when=during_training",
                "how_often.every=1",
                "rounds=9",
            ),
            "what=weights_threshold: a threshold says what goes and not how much comes back: choose how_often=iterative",
        ),
        (("what=blocks_global", "what.skip=[]"), "layer fc3: blocks of 4 x 4 do not fit into its 10 x 100 matrix: choose"),
        (("what=weights_like",), "what.scope.ticket is empty: type the path"),
    ],
)
def test_what_cannot_be_is_refused_before_training(overrides, message, tiny):
    with pytest.raises(ConfigError) as caught:
        tiny(*ONCE, *overrides)
    assert message in str(caught.value)


def test_a_threshold_is_what_the_plan_prints(tiny):
    experiment = tiny(
        *ONCE,
        "what=weights_threshold",
        "how_often=iterative",
        "when=after_training",
        "how_often.times=2",
        "how_often.rate=null",
    )
    expected = "  after round     2: density by threshold, rewind init\n  after round     4: density by threshold, rewind init"
    text = plan_text(experiment.plan, "init", experiment.axes.what.emerges)
    assert text.split("\n", 1)[1] == expected and brief(text) == text


def test_a_threshold_goes_on_pruning_what_is_left(tiny, play):
    overrides = ("what=weights_threshold", "what.scope.quality=0.5", "how_often=iterative", "when=during_training")
    rounds = play(tiny(*ONCE, *overrides, "how_often.times=3", "how_often.rate=null", "rounds=6"))
    densities = [metrics["density/weights"] for _, metrics in rounds]
    assert densities[0] > densities[-1]
    assert [m["round"] for _, m in rounds if "density/effective" in m] == [1, 2, 3]
