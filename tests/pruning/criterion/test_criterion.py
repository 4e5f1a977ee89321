"""Every formula, with numbers worked by hand, and every yaml that names one."""

import inspect
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedprune.config.instantiate import make
from fedprune.pruning import criterion
from fedprune.pruning.criterion import (
    Criterion,
    across_layers,
    compensation,
    curvature,
    gradient,
    grasp,
    lamp,
    large_final_same_sign,
    learnt,
    magnitude,
    magnitude_gradient,
    magnitude_increase,
    movement,
    random,
    snip,
    snip_of_clients,
    structured,
    synflow,
    taylor,
)
from fedprune.pruning.criterion.curvature import (
    fisher_empirical,
    fisher_true,
    obd_exact,
    obd_gauss_newton,
    obd_sweep,
    taylor_second,
    woodfisher,
)
from fedprune.pruning.criterion.structured import activation, apoz, bn_scale, filter_norm, fpgm
from fedprune.pruning.evidence import KNOWN, needs, unknown
from fedprune.pruning.what.unit import filters
from fedprune.types import Params, Scores

CONF = Path(__file__).parents[3] / "conf" / "criterion"
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


def test_the_mean_snip_of_clients_takes_absolute_values_first():
    """Two equal clients with gradients (2, 1) and (-2, 3) at weights (1, -2): |g| averages to (2, 2), so |w g| is (2, 4), of 6
    in all. The gradients average to (0, 2): SNIP of the pool would give the first weight nothing."""
    assert close(snip_of_clients({"a": torch.tensor([1.0, -2.0])}, {"a": torch.tensor([2.0, 2.0])}), {"a": [1 / 3, 2 / 3]})


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


def test_grasp_is_signed_weight_times_hessian_gradient():
    # w * (H g): 1 * -4, -2 * 0.5, 0 * 9, 3 * 1 and -0.5 * 2, 4 * -0.25. The paper's S is the negative, its highest are removed.
    assert close(grasp(PARAMS, GRADS), {"a": [[-4, -1], [0, 3]], "b": [-1, -1]})


def test_synflow_is_never_negative():
    assert close(synflow(PARAMS, GRADS), {"a": [[4, 1], [0, 3]], "b": [1, 1]})


def test_taylor_is_the_absolute_product_or_the_signed_change_of_the_loss():
    assert close(taylor(PARAMS, GRADS), {"a": [[4, 1], [0, 3]], "b": [1, 1]})
    # L(w - w) - L(w) = -w g to first order.
    assert close(taylor(PARAMS, GRADS, signed=True), {"a": [[4, 1], [0, -3]], "b": [1, 1]})


def test_movement_is_its_evidence():
    assert close(movement(GRADS), {"a": [[-4, 0.5], [9, 1]], "b": [2, -0.25]})


def test_large_final_same_sign_is_zero_where_the_sign_changed():
    # Signs of the initial weights: -, +, +, + and -, 0. Only 1 against -, -2 against + changed; 4 began at 0.
    init = {"a": torch.tensor([[-4.0, 0.5], [9.0, 1.0]]), "b": torch.tensor([-2.0, 0.0])}
    assert close(large_final_same_sign(PARAMS, init), {"a": [[0, 0], [0, 3]], "b": [0.5, 0]})


def test_magnitude_increase_is_signed():
    # |w| - |w_0|: 1 - 4, 2 - 0.5, 0 - 9, 3 - 1 and 0.5 - 2, 4 - 0.25.
    assert close(magnitude_increase(PARAMS, GRADS), {"a": [[-3, 1.5], [-9, 2]], "b": [-1.5, 3.75]})


CURVATURE = {"a": torch.tensor([[2.0, 3.0], [5.0, -4.0]]), "b": torch.tensor([8.0, 0.5])}


@pytest.mark.parametrize("formula", [obd_exact, obd_sweep, obd_gauss_newton, fisher_empirical, fisher_true])
def test_saliency_is_half_the_curvature_times_the_squared_weight(formula):
    # h w^2 / 2: 2 * 1 / 2, 3 * 4 / 2, 0, -4 * 9 / 2 and 8 * 0.25 / 2, 0.5 * 16 / 2.
    assert close(formula(PARAMS, CURVATURE), {"a": [[1, 6], [0, -18]], "b": [1, 4]})


def test_taylor_second_adds_the_slope_to_the_saliency():
    # -w g + h w^2 / 2: 4 + 1, 1 + 6, 0, -3 - 18 and 1 + 1, 1 + 4.
    assert close(taylor_second(PARAMS, GRADS, CURVATURE), {"a": [[5, 7], [0, -21]], "b": [2, 5]})


def test_saliency_is_the_rise_of_a_quadratic_loss_and_its_second_order_change_exactly():
    # L = (h1 w1^2 + h2 w2^2) / 2 - c w, at w, with gradient h w - c: removing one weight changes L by what taylor_second says.
    w, h, c = torch.tensor([1.5, -2.0]).double(), torch.tensor([4.0, 0.5]).double(), torch.tensor([1.0, 3.0]).double()
    loss = lambda w: (h * w.square()).sum() / 2 - (c * w).sum()  # noqa: E731
    removed = [loss(w * keep) - loss(w) for keep in (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))]
    assert close(taylor_second({"w": w}, {"w": h * w - c}, {"w": h}), {"w": [float(change) for change in removed]})


def test_woodfisher_is_the_rise_after_the_others_have_moved():
    # w^2 / (2 [F^-1]_qq): 1 / 4, 4 / 6, 0, 9 / 2 and 0.25 / 16, 16 / 1.
    inverse = {"a": torch.tensor([[2.0, 3.0], [5.0, 1.0]]), "b": torch.tensor([8.0, 0.5])}
    assert close(woodfisher(PARAMS, inverse), {"a": [[1 / 4, 2 / 3], [0, 4.5]], "b": [1 / 64, 16]})


def test_woodfisher_is_what_the_quadratic_loss_rises_by_at_its_new_minimum():
    # Brute force: E(d) = d' F d / 2 with d_q = -w_q held and the other entry free, d_r = -F_rq d_q / F_rr.
    w, fisher = torch.tensor([1.0, -2.0]).double(), torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    rises = []
    for q, r in ((0, 1), (1, 0)):
        d = torch.zeros(2).double()
        d[q] = -w[q]
        d[r] = -fisher[r, q] * d[q] / fisher[r, r]
        rises.append(float(d @ fisher @ d / 2))
    assert close(woodfisher({"w": w}, {"w": fisher.inverse().diagonal()}), {"w": rises})


FILTERS = {"c": torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]], [[[3.0, 0.0]]]])}


def test_filter_norms_are_constant_over_a_filter():
    # |3| + |-4| = 7 and sqrt(9 + 16) = 5; 0; 3.
    assert close(filter_norm(FILTERS), {"c": [[[[7, 7]]], [[[0, 0]]], [[[3, 3]]]]})
    assert close(filter_norm(FILTERS, p=2), {"c": [[[[5, 5]]], [[[0, 0]]], [[[3, 3]]]]})


def test_fpgm_is_the_sum_of_distances_to_the_living_filters():
    # Distances: (3, -4)-(0, 0) 5, (3, -4)-(3, 0) 4, (0, 0)-(3, 0) 3. Sums: 9, 8, 7: the last is the most replaceable, though
    # the second has the smallest norm.
    alive = {"c": torch.ones(3, 1, 1, 2, dtype=torch.bool)}
    assert close(fpgm(FILTERS, alive), {"c": [[[[9, 9]]], [[[8, 8]]], [[[7, 7]]]]})
    # With the second dead, only the distance of 4 is left between the others.
    alive["c"][1] = False
    scores = fpgm(FILTERS, alive)["c"]
    assert scores[0, 0, 0].tolist() == [4, 4] and scores[2, 0, 0].tolist() == [4, 4]


def test_fpgm_by_brute_force():
    torch.manual_seed(0)
    w = torch.randn(5, 3, 2, 2)
    expected = [sum(float((a - b).norm()) for b in w) for a in w]
    scores = fpgm({"w": w}, {"w": torch.ones_like(w, dtype=torch.bool)})["w"]
    torch.testing.assert_close(scores[:, 0, 0, 0], torch.tensor(expected))
    assert torch.equal(scores, scores[:, :1, :1, :1].expand(w.shape))


@pytest.mark.parametrize("formula", [bn_scale, activation, apoz])
def test_what_belongs_to_units_is_measured_and_passed_on(formula):
    assert close(formula(FILTERS), {"c": FILTERS["c"].tolist()})


@pytest.mark.parametrize("make_formula", [lambda: filter_norm(FILTERS), lambda: filter_norm(FILTERS, p=2)])
def test_the_mean_over_a_filter_is_the_filters_number(make_formula):
    scores = make_formula()["c"]
    assert torch.equal(filters(scores, reduce="mean").flatten(), scores[:, 0, 0, 0])


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
    # Those are formulas that are public.
    formulas = {
        function
        for file in (criterion, curvature, structured, learnt, across_layers, compensation)
        for name, function in inspect.getmembers(file, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == file.__name__
    }
    chosen = [formula for file in YAMLS for formula in load(file).formulas().values()]
    assert formulas == {formula.func if isinstance(formula, partial) else formula for formula in chosen}


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_every_yaml_gives_formulas_whose_needs_are_known(file):
    for role, formula in load(file).formulas().items():
        assert needs(formula)
        assert unknown(formula, role) == []


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
