"""Every formula, with numbers worked by hand, and every yaml that names one."""

import inspect
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedprune.make import make
from fedprune.pruning import criterion, second_order, structured
from fedprune.pruning.criterion import Criterion, gradient, lamp, magnitude, magnitude_gradient, random, snip
from fedprune.pruning.evidence import KNOWN, needs, unknown
from fedprune.types import Params, Scores

CONF = Path(__file__).parents[2] / "conf" / "criterion"
YAMLS = sorted(CONF.glob("*.yaml"))

PARAMS = {"a": torch.tensor([[1.0, -2.0], [0.0, 3.0]]), "b": torch.tensor([-0.5, 4.0])}
GRADS = {"a": torch.tensor([[-4.0, 0.5], [9.0, 1.0]]), "b": torch.tensor([2.0, -0.25])}


def close(scores: Scores, expected: dict[str, list]) -> bool:
    return scores.keys() == expected.keys() and all(
        torch.allclose(scores[name].double(), torch.tensor(value, dtype=torch.float64)) for name, value in expected.items()
    )


def streams(seed: int):
    return lambda layer: torch.Generator().manual_seed(seed + sum(layer.encode()))


def load(file: Path) -> Criterion:
    return make(OmegaConf.load(file))


def test_magnitude_is_the_absolute_weight():
    assert close(magnitude(PARAMS), {"a": [[1, 2], [0, 3]], "b": [0.5, 4]})


def test_gradient_is_the_absolute_gradient():
    assert close(gradient(GRADS), {"a": [[4, 0.5], [9, 1]], "b": [2, 0.25]})


def test_snip_is_the_share_in_the_sum_over_all_layers():
    # |w g|: 4, 1, 0, 3 and 1, 1; their sum over both layers is 10.
    scores = snip(PARAMS, GRADS)
    assert close(scores, {"a": [[0.4, 0.1], [0, 0.3]], "b": [0.1, 0.1]})
    assert sum(float(score.sum()) for score in scores.values()) == pytest.approx(1)


def test_snip_does_not_change_its_order_with_the_scale_of_the_loss():
    scaled = snip(PARAMS, {name: 1000 * g for name, g in GRADS.items()})
    assert close(scaled, {name: score.tolist() for name, score in snip(PARAMS, GRADS).items()})


def test_snip_of_vanished_gradients_is_zero_and_not_nan():
    assert close(snip(PARAMS, {name: 0 * g for name, g in GRADS.items()}), {"a": [[0, 0], [0, 0]], "b": [0, 0]})


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        (1, 1, {"a": [[4, 1], [0, 3]], "b": [1, 1]}),
        (1, 0, {"a": [[1, 2], [0, 3]], "b": [0.5, 4]}),
        (0, 1, {"a": [[4, 0.5], [9, 1]], "b": [2, 0.25]}),
        (2, 0.5, {"a": [[2, 4 * math.sqrt(0.5)], [0, 9]], "b": [0.25 * math.sqrt(2), 8]}),
    ],
)
def test_magnitude_gradient_raises_each_factor_to_its_power(alpha, beta, expected):
    assert close(magnitude_gradient(PARAMS, GRADS, alpha=alpha, beta=beta), expected)


def test_magnitude_gradient_is_the_product_unless_told_otherwise():
    assert close(magnitude_gradient(PARAMS, GRADS), {"a": [[4, 1], [0, 3]], "b": [1, 1]})


def test_lamp_divides_by_the_squares_that_are_no_smaller_in_the_same_layer():
    # a: squares 1, 4, 0, 9. Largest first: 9 / 9 = 1, 4 / 13, 1 / 14, 0 / 14. b: 16 / 16 = 1, 0.25 / 16.25 = 1 / 65.
    assert close(lamp(PARAMS), {"a": [[1 / 14, 4 / 13], [0, 1]], "b": [1 / 65, 1]})


def test_lamp_counts_the_lower_flat_index_of_equal_magnitudes_as_the_larger():
    # Squares 4, 9, 4, 4: 9 / 9, then 4 / 13, 4 / 17, 4 / 21 by index.
    assert close(lamp({"w": torch.tensor([[2.0, -3.0], [-2.0, 2.0]])}), {"w": [[4 / 13, 1], [4 / 17, 4 / 21]]})


def test_lamp_of_zeros_is_zero_and_not_nan():
    assert close(lamp({"w": torch.zeros(2, 2), "v": torch.tensor([0.0, 5.0, 0.0])}), {"w": [[0, 0], [0, 0]], "v": [0, 1, 0]})


def test_lamp_does_not_change_with_the_scale_of_a_layer():
    # 1e-20 squared is below the smallest float32.
    for scale in (1e-20, 1e15):
        assert close(lamp({"a": scale * PARAMS["a"]}), {"a": [[1 / 14, 4 / 13], [0, 1]]})


def test_the_largest_weight_of_every_layer_scores_1_in_lamp():
    torch.manual_seed(0)
    params = {f"layer{i}": 10.0**i * torch.randn(5, 7) for i in range(-3, 4)}
    for name, score in lamp(params).items():
        assert float(score.max()) == 1.0
        assert int(score.argmax()) == int(params[name].abs().argmax())


def test_random_scores_are_uniform_from_a_stream_per_layer():
    params = {"a": torch.zeros(100, 50), "b": torch.zeros(100, 50)}
    scores = random(params, streams(0))
    assert all(float(s.min()) >= 0 and float(s.max()) < 1 and abs(float(s.mean()) - 0.5) < 0.02 for s in scores.values())
    assert not torch.equal(scores["a"], scores["b"])


def test_random_scores_depend_on_neither_the_order_nor_the_company_of_layers():
    params = {"a": torch.zeros(4, 5), "b": torch.zeros(6), "c": torch.zeros(2, 2)}
    all_three = random(params, streams(0))
    for names in (("c", "b", "a"), ("b",), ("a", "c")):
        for name, score in random({n: params[n] for n in names}, streams(0)).items():
            assert torch.equal(score, all_three[name])


def test_random_scores_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    random(PARAMS, streams(0))
    assert torch.equal(torch.get_rng_state(), before)


# --- the yamls -------------------------------------------------------------------------------------------------------------


def evidence(seed: int) -> dict[str, Params]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 1, 3, 3)}
    made = {n: {k: torch.randn(s, generator=generator) for k, s in shapes.items()} for n in KNOWN if n != "generator"}
    made["mask"] = {k: value > 0 for k, value in made["mask"].items()}
    return made | {"generator": streams(seed)}


def test_the_well_known_criteria_are_what_they_are_called():
    table = {
        "magnitude": (magnitude, None),
        "random": (random, None),
        "gradient": (gradient, None),
        "snip": (snip, None),
        "lamp": (lamp, None),
        "rigl": (magnitude, gradient),
        "set": (magnitude, random),
    }
    for name, (drop, grow) in table.items():
        assert load(CONF / f"{name}.yaml") == Criterion(drop, grow)


def test_every_formula_has_a_yaml():
    # Those are formulas that are public and return Scores.
    formulas = {
        function
        for file in (criterion, second_order, structured)
        for name, function in inspect.getmembers(file, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == file.__name__
    }
    chosen = [formula for file in YAMLS for formula in (load(file).drop, load(file).grow)]
    assert formulas == {formula.func if isinstance(formula, partial) else formula for formula in chosen if formula}


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_every_yaml_gives_formulas_whose_needs_are_known(file):
    chosen = load(file)
    for formula in filter(None, (chosen.drop, chosen.grow)):
        assert needs(formula)
        assert unknown(formula) == []


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_every_formula_scores_every_entry_and_changes_nothing(file):
    chosen = load(file)
    for formula in filter(None, (chosen.drop, chosen.grow)):
        given, untouched = evidence(1), evidence(1)
        scores = formula(**{name: given[name] for name in needs(formula)})
        assert {name: score.shape for name, score in scores.items()} == {n: t.shape for n, t in given["params"].items()}
        assert all(score.dtype in (torch.float32, torch.float64) and bool(score.isfinite().all()) for score in scores.values())
        assert all(torch.equal(given[k][n], untouched[k][n]) for k in given if k != "generator" for n in given[k])


@pytest.mark.parametrize("formula", [magnitude, snip, magnitude_gradient, lamp], ids=lambda formula: formula.__name__)
def test_higher_means_keep_a_large_weight_outscores_a_small_one(formula):
    given = {"params": {"w": torch.tensor([0.1, -5.0, 2.0])}, "grads": {"w": torch.ones(3)}}
    scores = formula(**{name: given[name] for name in needs(formula)})["w"]
    assert scores.argsort().tolist() == [0, 2, 1]
